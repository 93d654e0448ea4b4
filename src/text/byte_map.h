// The byte-level alphabet of GPT-2: each byte is one printable character, so that a vocabulary of
// byte strings can stand in JSON. Bytes 21..7E, A1..AC, AE..FF are the character of the same code;
// the other 68 are U+0100, U+0101, ... in byte order (so a space is U+0120).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace parallax::text {

/// The character of one byte, in UTF-8.
std::string byte_to_symbol(uint8_t byte);

/// The bytes that valid UTF-8 text stands for, or nothing if a character is not of the alphabet.
std::optional<std::string> symbols_to_bytes(std::string_view symbols);

}  // namespace parallax::text
