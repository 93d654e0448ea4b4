// Reads files through a tokenizer and writes what it gives, for the equality tests in Python:
//   plx_tokenize_tool TOKENIZER IN OUT            ids of IN as little-endian int32
//   plx_tokenize_tool TOKENIZER IN OUT plain      the same, special tokens as ordinary text
//   plx_tokenize_tool TOKENIZER IN OUT pieces N   as plain, IN read in pieces of N bytes
//   plx_tokenize_tool TOKENIZER IN OUT decode     the bytes of the int32 ids in IN, special kept
//   plx_tokenize_tool TOKENIZER IN OUT serialize  tokenizer.json
// IN is one text; TOKENIZER "bytes" is the byte tokenizer.
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "io/atomic_file.h"
#include "parallax/error.h"
#include "text/document.h"
#include "text/tokenizer.h"

namespace {

using parallax::text::Tokenizer;

std::string encoded(const Tokenizer& tokenizer, std::string_view text, bool parse_special) {
  const std::clock_t start = std::clock();
  const std::vector<int32_t> ids = tokenizer.encode(text, parse_special);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  std::printf("%zu bytes, %zu tokens, %.1f MB per second of processor time\n", text.size(),
              ids.size(), static_cast<double>(text.size()) / seconds / 1e6);
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)};
}

std::string encoded_in_pieces(const Tokenizer& tokenizer, const std::string& text,
                              int64_t piece_bytes) {
  std::string output;
  const parallax::text::DocumentText document(text);
  parallax::text::PieceReader pieces(document, tokenizer, piece_bytes);
  int num_pieces = 0;
  for (; !pieces.at_end(); ++num_pieces) {
    const std::vector<int32_t> ids = tokenizer.encode(pieces.next(), false);
    output.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  }
  std::printf("%d pieces\n", num_pieces);
  return output;
}

std::string decoded(const Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(int32_t));
  return tokenizer.decode(ids, true);
}

void run(const std::vector<std::string>& arguments) {
  PLX_CHECK(arguments.size() >= 3 && arguments.size() <= 5,
            "usage: plx_tokenize_tool TOKENIZER IN OUT [plain|pieces N|decode|serialize]");
  const std::string mode = arguments.size() > 3 ? arguments[3] : "encode";
  const auto tokenizer = arguments[0] == "bytes" ? parallax::text::make_byte_tokenizer()
                                                 : parallax::text::load_tokenizer(arguments[0]);
  const std::string input = parallax::io::read_file(arguments[1]);
  std::string output;
  if (mode == "encode" || mode == "plain") {
    output = encoded(*tokenizer, input, mode == "encode");
  } else if (mode == "pieces") {
    output = encoded_in_pieces(*tokenizer, input, std::stoll(arguments.at(4)));
  } else if (mode == "decode") {
    output = decoded(*tokenizer, input);
  } else {
    PLX_CHECK(mode == "serialize", "unknown mode '", mode, "'");
    output = tokenizer->serialized();
  }
  parallax::io::write_file(arguments[2], output);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, argv + argc});
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plx_tokenize_tool: %s\n", error.what());
    return 1;
  }
}
