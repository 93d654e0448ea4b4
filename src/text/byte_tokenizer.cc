// Bytes as tokens. The serialised form is a byte-level BPE tokenizer.json without merges, which
// other readers of that format turn into the same ids for valid UTF-8.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "parallax/error.h"
#include "text/byte_map.h"
#include "text/tokenizer.h"

namespace parallax::text {
namespace {

using nlohmann::ordered_json;

constexpr int32_t kEosId = 256;
constexpr std::string_view kEos = "<|endoftext|>";

std::string serialize() {
  ordered_json vocab = ordered_json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[byte_to_symbol(static_cast<uint8_t>(byte))] = byte;
  const ordered_json eos = {{"id", kEosId},    {"content", kEos}, {"single_word", false},
                            {"lstrip", false}, {"rstrip", false}, {"normalized", false},
                            {"special", true}};
  const ordered_json byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", true},
                                   {"use_regex", false}};
  const ordered_json model = {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", false},
                              {"vocab", vocab},
                              {"merges", ordered_json::array()}};
  const ordered_json file = {{"version", "1.0"},
                             {"truncation", nullptr},
                             {"padding", nullptr},
                             {"added_tokens", ordered_json::array({eos})},
                             {"normalizer", nullptr},
                             {"pre_tokenizer", byte_level},
                             {"post_processor", nullptr},
                             {"decoder", byte_level},
                             {"model", model}};
  return file.dump(1) + "\n";
}

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() : serialized_(serialize()) {
    for (size_t byte = 0; byte < 256; ++byte) bytes_[byte] = static_cast<char>(byte);
  }

  std::vector<int32_t> encode(std::string_view text, bool parse_special) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    while (!text.empty()) {
      const size_t eos = parse_special ? text.find(kEos) : std::string_view::npos;
      for (const char byte : text.substr(0, eos)) ids.push_back(static_cast<unsigned char>(byte));
      if (eos == std::string_view::npos) break;
      ids.push_back(kEosId);
      text.remove_prefix(eos + kEos.size());
    }
    return ids;
  }

  size_t last_cut(std::string_view text) const override { return text.size(); }

  std::string_view token_bytes(int32_t id) const override {
    PLX_CHECK(id >= 0 && id <= kEosId, "token id ", id, " is not in 0..", kEosId);
    return id == kEosId ? kEos : std::string_view(bytes_).substr(static_cast<size_t>(id), 1);
  }

  bool is_special(int32_t id) const override { return id == kEosId; }
  int32_t vocab_size() const override { return kEosId + 1; }
  std::optional<int32_t> eos_id() const override { return kEosId; }
  std::optional<int32_t> find_special(std::string_view name) const override {
    return name == kEos ? std::optional(kEosId) : std::nullopt;
  }
  const std::string& serialized() const override { return serialized_; }

 private:
  std::string bytes_ = std::string(256, '\0');
  std::string serialized_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace parallax::text
