// Text to token ids and back.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace parallax::text {

/// The special tokens that stand for the end of a document, where a tokenizer has them; the first
/// one that it has counts.
inline constexpr const char* kEndTokens[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Token ids of `text`, no special tokens added. With parse_special, special tokens that stand in
  /// the text are recognised as such; otherwise they are ordinary text. Invalid UTF-8 is replaced
  /// as Python's decode(errors="replace") does it, except by the byte tokenizer, which keeps bytes.
  virtual std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const = 0;
  /// A place to cut a text that starts with `text`, the last that is found; 0 if none is. Whatever
  /// follows `text`, the ids of the text before the cut and after it are, joined, those of the
  /// whole, without parse_special.
  virtual size_t last_cut(std::string_view text) const = 0;
  /// The bytes of one token; a special token's bytes are its text.
  virtual std::string_view token_bytes(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;

  /// One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual std::optional<int32_t> find_special(std::string_view name) const = 0;
  /// The contents of tokenizer.json, as copied into checkpoints; identifies the tokenizer.
  virtual const std::string& serialized() const = 0;

  /// The text of the ids, special tokens left out unless asked for; may cut a UTF-8 character.
  std::string decode(std::span<const int32_t> ids, bool keep_special = false) const;
  /// A short hash of serialized(), stored beside tokens so that mismatches are found.
  std::string fingerprint() const;
};

/// Ids 0..255 are bytes, 256 is <|endoftext|>.
std::unique_ptr<Tokenizer> make_byte_tokenizer();
/// A Hugging Face tokenizer.json with a byte-level BPE model, or the folder that holds one. Also
/// reads what the byte tokenizer serialises. A feature that is not supported is an Error that names
/// it.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);
/// The same of the contents of a tokenizer.json; errors call it `source`.
std::unique_ptr<Tokenizer> parse_tokenizer(std::string contents, const std::string& source);

}  // namespace parallax::text
