// Tokens that are found in the text before it is cut and merged: the "added_tokens" of
// tokenizer.json.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace parallax::text {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;
  bool normalized = false;    // looked for after normalisation, not before
  bool strips_left = false;   // takes the white space before it
  bool strips_right = false;  // takes the white space after it
};

/// Finds tokens leftmost first and, from the same start, longest first.
class AddedTokenMatcher {
 public:
  /// A stretch of text: a token, or what lies between tokens (token_id -1).
  struct Span {
    int32_t token_id;
    std::string_view text;
  };

  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  /// Cuts `text` into spans, none of them plain and empty. Without parse_special a special token is
  /// plain text, and no other token is looked for inside it.
  std::vector<Span> split(std::string_view text, bool parse_special) const;

  /// Whether the bytes of some token begin before `pos` in `text` and end after it.
  bool has_token_across(std::string_view text, size_t pos) const;
  size_t longest_token_bytes() const { return longest_token_bytes_; }

 private:
  static constexpr int32_t kNone = -1;
  int32_t child(int32_t node, char byte) const;
  int32_t longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  // A trie: node 0 is the root, an edge is keyed by (node << 8 | byte).
  std::unordered_map<uint64_t, int32_t> edges_;
  std::vector<int32_t> token_at_node_;
  std::array<bool, 256> can_begin_{};
  size_t longest_token_bytes_ = 0;
};

}  // namespace parallax::text
