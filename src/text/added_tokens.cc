// A trie walk from each byte that can begin a token: linear in the text times the longest token.
// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

#include <algorithm>

#include "text/utf8.h"

namespace parallax::text {
namespace {

uint64_t edge_key(int32_t node, char byte) {
  return (static_cast<uint64_t>(node) << 8) | static_cast<unsigned char>(byte);
}

size_t white_space_at_start(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size() && is_white_space(first_code_point(text.substr(pos)))) {
    pos += next_utf8(text.substr(pos)).num_bytes;
  }
  return pos;
}

/// Where the white space at the end of `text` begins.
size_t white_space_at_end(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t previous = begin - 1;
    while ((static_cast<unsigned char>(text[previous]) & 0xC0) == 0x80) --previous;
    if (!is_white_space(first_code_point(text.substr(previous)))) break;
    begin = previous;
  }
  return begin;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) : tokens_(tokens) {
  token_at_node_.push_back(kNone);
  for (size_t token_idx = 0; token_idx < tokens_.size(); ++token_idx) {
    const std::string& content = tokens_[token_idx].content;
    can_begin_[static_cast<unsigned char>(content.front())] = true;
    longest_token_bytes_ = std::max(longest_token_bytes_, content.size());
    int32_t node = 0;
    for (const char byte : content) {
      const auto next = static_cast<int32_t>(token_at_node_.size());
      const auto [edge, is_new] = edges_.try_emplace(edge_key(node, byte), next);
      if (is_new) token_at_node_.push_back(kNone);
      node = edge->second;
    }
    token_at_node_[static_cast<size_t>(node)] = static_cast<int32_t>(token_idx);
  }
}

int32_t AddedTokenMatcher::child(int32_t node, char byte) const {
  const auto edge = edges_.find(edge_key(node, byte));
  return edge == edges_.end() ? kNone : edge->second;
}

/// Index of the longest token that `text` starts with, or kNone.
int32_t AddedTokenMatcher::longest_at(std::string_view text) const {
  int32_t node = 0, longest = kNone;
  for (const char byte : text) {
    node = child(node, byte);
    if (node == kNone) break;
    const int32_t ends_here = token_at_node_[static_cast<size_t>(node)];
    if (ends_here != kNone) longest = ends_here;
  }
  return longest;
}

bool AddedTokenMatcher::has_token_across(std::string_view text, size_t pos) const {
  for (size_t begin = pos - std::min(pos, longest_token_bytes_); begin < pos; ++begin) {
    if (!can_begin_[static_cast<unsigned char>(text[begin])]) continue;
    const int32_t token_idx = longest_at(text.substr(begin));
    if (token_idx == kNone) continue;
    if (begin + tokens_[static_cast<size_t>(token_idx)].content.size() > pos) return true;
  }
  return false;
}

std::vector<AddedTokenMatcher::Span> AddedTokenMatcher::split(std::string_view text,
                                                              bool parse_special) const {
  std::vector<Span> spans;
  const auto add_span = [&](int32_t token_id, size_t begin, size_t end) {
    if (token_id != kNone || begin < end)
      spans.push_back({token_id, text.substr(begin, end - begin)});
  };
  size_t done = 0;  // the spans so far cover the text up to here
  for (size_t pos = 0; pos < text.size();) {
    const int32_t token_idx =
        can_begin_[static_cast<unsigned char>(text[pos])] ? longest_at(text.substr(pos)) : kNone;
    if (token_idx == kNone) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(token_idx)];
    size_t begin = pos, end = pos + token.content.size();
    pos = end;
    if (token.special && !parse_special) continue;
    if (token.strips_left) begin = done + white_space_at_end(text.substr(done, begin - done));
    if (token.strips_right) end += white_space_at_start(text.substr(end));
    add_span(kNone, done, begin);
    add_span(token.id, begin, end);
    done = end;
    pos = std::max(pos, end);
  }
  add_span(kNone, done, text.size());
  return spans;
}

}  // namespace parallax::text
