// Byte-level BPE as a Hugging Face tokenizer.json describes it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace parallax::text {

/// Ids equal those of the `tokenizers` package with add_special_tokens=False (and, without
/// parse_special, encode_special_tokens=True) on bytes.decode(errors="replace"). Not used:
/// post_processor (it adds special tokens), truncation, padding and the decoder (always ByteLevel).
/// Thread-safe: nothing changes after construction.
class BpeTokenizer final : public Tokenizer {
 public:
  /// `serialized` is the file that `description` was parsed from. Throws Error for what is not
  /// supported or wrong, naming it.
  BpeTokenizer(const nlohmann::json& description, std::string serialized);

  std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const override;
  /// Found where no added token, no step of the pre-tokenizer and no normalisation reaches across;
  /// in text that is repaired or normalised beside a line end only. None is found if an added token
  /// that is not special takes white space with it.
  size_t last_cut(std::string_view text) const override;
  std::string_view token_bytes(int32_t id) const override;
  bool is_special(int32_t id) const override;
  int32_t vocab_size() const override { return vocab_size_; }
  /// The first of kEndTokens: what separates documents. The end of a chat turn is another token.
  std::optional<int32_t> eos_id() const override { return eos_id_; }
  std::optional<int32_t> find_special(std::string_view name) const override;
  const std::string& serialized() const override { return serialized_; }

 private:
  struct Scratch;
  std::vector<AddedToken> read_added_tokens(const nlohmann::json& description) const;
  void encode_normalized(std::string_view text, bool parse_special, Scratch& scratch,
                         std::vector<int32_t>& ids) const;
  size_t settled_cut(std::string_view text) const;
  size_t settled_cut_in(std::string_view text, std::string_view plain, bool at_lines_only) const;

  std::string serialized_;
  BpeModel model_;
  bool nfc_;
  PreTokenizer pre_tokenizer_;
  std::vector<AddedToken> added_;
  std::unordered_map<int32_t, AddedToken> added_by_id_;
  AddedTokenMatcher before_normalizing_, after_normalizing_;
  int32_t vocab_size_ = 0;
  std::optional<int32_t> eos_id_;
};

}  // namespace parallax::text
