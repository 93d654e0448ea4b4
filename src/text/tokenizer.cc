// What all tokenizers share, and the reader that chooses one for a file.
// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/json_error.h"
#include "parallax/error.h"
#include "text/bpe_tokenizer.h"

namespace parallax::text {
namespace {

using nlohmann::json;

std::unique_ptr<Tokenizer> tokenizer_of(std::string contents) {
  const json description = json::parse(contents);
  PLX_CHECK(description.is_object(), "the JSON is not an object");
  // The byte tokenizer's file is also a valid byte-level BPE file without merges; read as its own
  // kind it keeps invalid UTF-8 as it is.
  auto bytes = make_byte_tokenizer();
  if (description == json::parse(bytes->serialized())) return bytes;
  return std::make_unique<BpeTokenizer>(description, std::move(contents));
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, bool keep_special) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (keep_special || !is_special(id)) text.append(bytes);
  }
  return text;
}

std::string Tokenizer::fingerprint() const {
  // FNV-1a, 64 bits: it finds mistakes, it is no protection against forgery.
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : serialized()) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  std::string hex;
  for (int shift = 60; shift >= 0; shift -= 4) hex += "0123456789abcdef"[(hash >> shift) & 15];
  return hex;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  return parse_tokenizer(io::read_file(file), file.string());
}

std::unique_ptr<Tokenizer> parse_tokenizer(std::string contents, const std::string& source) {
  try {
    return tokenizer_of(std::move(contents));
  } catch (const json::parse_error& error) {
    PLX_FAIL(source, " is not JSON: ", io::plain_what(error));
  } catch (const json::exception& error) {
    PLX_FAIL(source, " is not a tokenizer.json: ", io::plain_what(error));
  } catch (const Error& error) {
    PLX_FAIL(source, ": ", error.what());
  }
}

}  // namespace parallax::text
