// The stages in order: UTF-8 repair, added tokens, normalisation, normalised added tokens, cutting,
// merging.
// SPDX-License-Identifier: Apache-2.0
#include "text/bpe_tokenizer.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <ranges>
#include <utility>

#include "parallax/error.h"
#include "text/nfc.h"
#include "text/utf8.h"

namespace parallax::text {
namespace {

using nlohmann::json;

json field(const json& description, const char* name) {
  const auto value = description.find(name);
  return value == description.end() ? json() : *value;
}

/// True for NFC, false for none, an Error for any other normalizer.
bool reads_nfc(const json& normalizer) {
  if (normalizer.is_null()) return false;
  const std::string type = normalizer.at("type");
  if (type == "NFC") return true;
  PLX_CHECK(type == "Sequence", "normalizer: type '", type,
            "' is not supported (supported: none, NFC, Sequence)");
  bool nfc = false;
  for (const json& step : normalizer.at("normalizers")) nfc = reads_nfc(step) || nfc;
  return nfc;
}

std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized, bool nfc) {
  std::vector<AddedToken> selected;
  for (AddedToken token : tokens) {
    if (token.normalized != normalized) continue;
    if (normalized && nfc) token.content = to_nfc(token.content);
    selected.push_back(std::move(token));
  }
  return selected;
}

/// The whole characters of `span`, which lies in `text`, where added tokens are the same whatever
/// follows.
std::string_view decided(std::string_view span, std::string_view text,
                         const AddedTokenMatcher& matcher) {
  const size_t open_bytes = std::max<size_t>(matcher.longest_token_bytes(), 1) - 1;
  const auto begin = static_cast<size_t>(span.data() - text.data());
  const size_t end = text.size() - std::min(text.size(), open_bytes);
  span = span.substr(0, end - std::min(begin, end));
  return span.substr(0, span.size() - unfinished_utf8(span));
}

bool is_beside_line_end(std::string_view text, size_t pos) {
  return text[pos - 1] == '\n' || text[pos] == '\n';
}

/// The place in `to` of a place beside a line end in `from`; one text is the other one repaired or
/// normalised, which keeps line ends.
size_t same_place(std::string_view from, size_t pos, std::string_view to) {
  const bool is_after = from[pos - 1] == '\n';
  auto num_lines = std::ranges::count(from.substr(0, pos), '\n') + (is_after ? 0 : 1);
  size_t line_start = 0;
  for (; num_lines > 0; --num_lines) line_start = to.find('\n', line_start) + 1;
  return is_after ? line_start : line_start - 1;
}

}  // namespace

struct BpeTokenizer::Scratch {
  PreTokenizer::Scratch regexes;
  BpeModel::Scratch merging;
};

BpeTokenizer::BpeTokenizer(const json& description, std::string serialized)
    : serialized_(std::move(serialized)),
      model_(description.at("model")),
      nfc_(reads_nfc(field(description, "normalizer"))),
      pre_tokenizer_(field(description, "pre_tokenizer")),
      added_(read_added_tokens(field(description, "added_tokens"))),
      before_normalizing_(select(added_, false, nfc_)),
      after_normalizing_(select(added_, true, nfc_)),
      vocab_size_(model_.vocab_size()) {
  for (const AddedToken& token : added_) {
    vocab_size_ = std::max(vocab_size_, token.id + 1);
    added_by_id_.emplace(token.id, token);
  }
  for (const char* name : kEndTokens) {
    if (!eos_id_) eos_id_ = find_special(name);
  }
}

std::vector<AddedToken> BpeTokenizer::read_added_tokens(const json& description) const {
  std::vector<AddedToken> tokens;
  if (description.is_null()) return tokens;
  // The format's own readers number the tokens that the vocab lacks in order, whatever the file
  // says, so a file that says otherwise means different ids to different readers.
  auto next_id = static_cast<int32_t>(model_.num_tokens());
  for (const json& entry : description) {
    AddedToken token{.content = entry.at("content"),
                     .special = entry.at("special"),
                     .normalized = entry.at("normalized"),
                     .strips_left = entry.at("lstrip"),
                     .strips_right = entry.at("rstrip")};
    PLX_CHECK(!token.content.empty(), "an added token is empty");
    PLX_CHECK(!entry.at("single_word").get<bool>(), "added token '", token.content,
              "': single_word is not supported");
    PLX_CHECK(std::ranges::none_of(tokens, [&](auto& t) { return t.content == token.content; }),
              "added token '", token.content, "' stands twice");
    const int32_t in_vocab = model_.find(token.content);
    token.id = in_vocab >= 0 ? in_vocab : next_id++;
    PLX_CHECK(entry.at("id").is_number_integer() && entry.at("id") == token.id, "added token '",
              token.content, "' has id ", entry.at("id").dump(), " where ", token.id,
              in_vocab >= 0 ? " stands in the vocab" : " is next after the vocab");
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool parse_special) const {
  PLX_CHECK(text.size() < std::numeric_limits<int32_t>::max(), "a text of ", text.size(),
            " bytes is too long to encode at once (at most 2 GiB)");
  std::string repaired;
  if (valid_utf8_prefix(text) < text.size()) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4);
  Scratch scratch{pre_tokenizer_.make_scratch(), {}};
  for (const auto& span : before_normalizing_.split(text, parse_special)) {
    if (span.token_id >= 0) {
      ids.push_back(span.token_id);
    } else if (nfc_ && !is_surely_nfc(span.text)) {
      encode_normalized(to_nfc(span.text), parse_special, scratch, ids);
    } else {
      encode_normalized(span.text, parse_special, scratch, ids);
    }
  }
  return ids;
}

void BpeTokenizer::encode_normalized(std::string_view text, bool parse_special, Scratch& scratch,
                                     std::vector<int32_t>& ids) const {
  for (const auto& span : after_normalizing_.split(text, parse_special)) {
    if (span.token_id >= 0) {
      ids.push_back(span.token_id);
      continue;
    }
    pre_tokenizer_.split(span.text, scratch.regexes, [&](std::string_view piece) {
      model_.encode(piece, scratch.merging, ids);
    });
  }
}

// Two facts are needed. What lies before the cut is encoded the same when the text goes on, and a
// text that begins at the cut is encoded like the rest: settled_cut() finds such places. And it is
// encoded the same when the text ends at the cut, which a pattern that looks ahead can break. So
// the cut is tried, from a settled place on that was found without the bytes around the cut: from
// the pieces before that place no pattern looks as far.
size_t BpeTokenizer::last_cut(std::string_view text) const {
  constexpr size_t kTriedBytes = size_t{1} << 16;
  const bool strips = std::ranges::any_of(added_, [](const AddedToken& token) {
    return !token.special && (token.strips_left || token.strips_right);
  });
  if (strips) return 0;
  const size_t tried =
      settled_cut(text.substr(0, text.size() - std::min(text.size() / 2, kTriedBytes)));
  const std::string_view rest = text.substr(tried);
  const size_t cut = settled_cut(rest);
  if (cut == 0) return 0;
  std::vector<int32_t> ids = encode(rest.substr(0, cut), /*parse_special=*/false);
  const std::vector<int32_t> after = encode(rest.substr(cut), /*parse_special=*/false);
  ids.insert(ids.end(), after.begin(), after.end());
  return ids == encode(rest, /*parse_special=*/false) ? tried + cut : 0;
}

/// A place where any text that goes on from `raw` is cut, and after which it is encoded as a text
/// of its own; 0 if none is found.
size_t BpeTokenizer::settled_cut(std::string_view raw) const {
  raw.remove_suffix(unfinished_utf8(raw));
  const bool is_valid = valid_utf8_prefix(raw) == raw.size();
  const std::string repaired = is_valid ? std::string() : replace_invalid_utf8(raw);
  const std::string_view text = is_valid ? raw : repaired;
  auto spans = before_normalizing_.split(text, /*parse_special=*/false);
  for (const auto& span : spans | std::views::reverse) {
    if (span.token_id >= 0) continue;
    const std::string_view plain = decided(span.text, text, before_normalizing_);
    const size_t cut = settled_cut_in(text, plain, /*at_lines_only=*/!is_valid);
    if (cut > 0) return is_valid ? cut : same_place(text, cut, raw);
  }
  return 0;
}

/// The last settled cut of `text` inside `plain`, a part of it without added tokens.
size_t BpeTokenizer::settled_cut_in(std::string_view text, std::string_view plain,
                                    bool at_lines_only) const {
  std::string_view steps = plain;
  std::string normalized;
  const bool changes = nfc_ && !is_surely_nfc(plain);
  if (changes) {  // a line end joins nothing, so that what follows it has no say
    plain = plain.substr(0, plain.rfind('\n') + 1);
    normalized = to_nfc(plain);
    steps = normalized;
  }
  const auto offset = static_cast<size_t>(plain.data() - text.data());
  PreTokenizer::Scratch scratch = pre_tokenizer_.make_scratch();
  const auto spans = after_normalizing_.split(steps, /*parse_special=*/false);
  for (const auto& span : spans | std::views::reverse) {
    if (span.token_id >= 0) continue;
    const std::string_view part = decided(span.text, steps, after_normalizing_);
    const auto begin = static_cast<size_t>(part.data() - steps.data());
    for (const size_t cut : pre_tokenizer_.settled_cuts(part, scratch) | std::views::reverse) {
      const size_t pos = begin + cut;
      if ((changes || at_lines_only) && !is_beside_line_end(steps, pos)) continue;
      if (after_normalizing_.has_token_across(steps, pos)) continue;
      const size_t in_text = offset + (changes ? same_place(steps, pos, plain) : pos);
      if (!before_normalizing_.has_token_across(text, in_text)) return in_text;
    }
  }
  return 0;
}

std::string_view BpeTokenizer::token_bytes(int32_t id) const {
  const auto added = added_by_id_.find(id);
  if (added != added_by_id_.end()) return added->second.content;
  PLX_CHECK(id >= 0 && id < vocab_size_, "token id ", id, " is not in 0..", vocab_size_ - 1);
  PLX_CHECK(model_.has(id), "token id ", id, " has no entry in the vocab");
  return model_.token_bytes(id);
}

bool BpeTokenizer::is_special(int32_t id) const {
  const auto added = added_by_id_.find(id);
  return added != added_by_id_.end() && added->second.special;
}

std::optional<int32_t> BpeTokenizer::find_special(std::string_view name) const {
  for (const AddedToken& token : added_) {
    if (token.special && token.content == name) return token.id;
  }
  return std::nullopt;
}

}  // namespace parallax::text
