// Both directions of the map as tables, made once.
// SPDX-License-Identifier: Apache-2.0
#include "text/byte_map.h"

#include <array>

#include "text/utf8.h"

namespace parallax::text {
namespace {

constexpr int kNumShifted = 68;

struct Tables {
  std::array<char32_t, 256> code_points{};
  std::array<int, 256 + kNumShifted> bytes{};

  Tables() {
    bytes.fill(-1);
    char32_t next_shifted = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t code_point = printable ? static_cast<char32_t>(byte) : next_shifted++;
      code_points[static_cast<size_t>(byte)] = code_point;
      bytes[code_point] = byte;
    }
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

std::string byte_to_symbol(uint8_t byte) {
  std::string symbol;
  append_utf8(symbol, tables().code_points[byte]);
  return symbol;
}

std::optional<std::string> symbols_to_bytes(std::string_view symbols) {
  std::string bytes;
  while (!symbols.empty()) {
    const char32_t code_point = first_code_point(symbols);
    if (code_point >= tables().bytes.size() || tables().bytes[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(tables().bytes[code_point]));
    symbols.remove_prefix(next_utf8(symbols).num_bytes);
  }
  return bytes;
}

}  // namespace parallax::text
