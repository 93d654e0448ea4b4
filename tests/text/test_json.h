// A small tokenizer.json to start from, and a file to load it from.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <unistd.h>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "io/atomic_file.h"
#include "parallax/error.h"
#include "text/byte_map.h"
#include "text/tokenizer.h"

namespace parallax::text {

inline nlohmann::json added_token(const std::string& content, int id, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// GPT-2's pipeline: 256 bytes in byte order, then "ab" 256, "abc" 257, " a" 258, <|endoftext|>
/// 259.
inline nlohmann::json small_tokenizer() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[byte_to_symbol(static_cast<uint8_t>(byte))] = byte;
  const std::string space = byte_to_symbol(' ');
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab[space + "a"] = 258;
  return {
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"added_tokens", {added_token("<|endoftext|>", 259)}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", space + " a"}}}}};
}

inline std::unique_ptr<Tokenizer> load_contents(const std::string& contents) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("plx_text_test_" + std::to_string(::getpid()) + ".json");
  io::write_file(path, contents);
  struct Remover {
    std::filesystem::path path;
    ~Remover() { std::filesystem::remove(path); }
  } remover{path};
  return load_tokenizer(path);
}

inline std::unique_ptr<Tokenizer> load_json(const nlohmann::json& description) {
  return load_contents(description.dump());
}

/// Expects an Error whose message contains `part`.
template <typename Call>
void expect_error(Call&& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

}  // namespace parallax::text
