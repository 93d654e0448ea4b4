// Hashes that are the same on every machine: they end up in files.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace parallax::io {

/// CRC-32 as zlib computes it: crc32(b, crc32(a)) is the checksum of a followed by b.
uint32_t crc32(const void* data, size_t num_bytes, uint32_t previous = 0);

/// FNV-1a over the bytes, its bits mixed once more (splitmix64) so that every bit of the result is
/// usable. Not safe against someone who wants collisions.
uint64_t hash64(std::string_view bytes);
/// The same of bytes that come in parts.
class Hash64 {
 public:
  void add(std::string_view bytes);
  uint64_t value() const;

 private:
  uint64_t state_ = 0xCBF29CE484222325ull;
};
/// splitmix64's finaliser: a bijection on 64 bits.
uint64_t mix64(uint64_t value);

/// Lower-case hexadecimal with leading zeros.
std::string to_hex(uint64_t value, int num_digits = 16);

}  // namespace parallax::io
