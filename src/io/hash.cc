// See hash.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/hash.h"

#include <array>

namespace parallax::io {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? 0xEDB88320u : 0u);
    }
    table[byte] = remainder;
  }
  return table;
}

}  // namespace

uint32_t crc32(const void* data, size_t num_bytes, uint32_t previous) {
  static constexpr std::array<uint32_t, 256> kTable = make_crc_table();
  const auto* bytes = static_cast<const unsigned char*>(data);
  uint32_t remainder = ~previous;
  for (size_t idx = 0; idx < num_bytes; ++idx) {
    remainder = kTable[(remainder ^ bytes[idx]) & 0xFF] ^ (remainder >> 8);
  }
  return ~remainder;
}

uint64_t mix64(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

void Hash64::add(std::string_view bytes) {
  for (const char byte : bytes) {
    state_ = (state_ ^ static_cast<unsigned char>(byte)) * 0x100000001B3ull;
  }
}

uint64_t Hash64::value() const { return mix64(state_); }

uint64_t hash64(std::string_view bytes) {
  Hash64 hash;
  hash.add(bytes);
  return hash.value();
}

std::string to_hex(uint64_t value, int num_digits) {
  std::string digits(static_cast<size_t>(num_digits), '0');
  for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit, value >>= 4) {
    *digit = "0123456789abcdef"[value & 15];
  }
  return digits;
}

}  // namespace parallax::io
