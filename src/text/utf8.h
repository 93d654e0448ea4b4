// UTF-8 as Python's bytes.decode(errors="replace") reads it: every maximal subpart of an ill-formed
// sequence becomes one U+FFFD (Unicode standard, table 3-7 and "U+FFFD substitution").
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace parallax::text {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Kind {
  kValid,      // a whole character
  kInvalid,    // bytes that no continuation can make a character
  kTruncated,  // the text ends inside what may still become a character
};

struct Utf8Unit {
  size_t num_bytes;
  Utf8Kind kind;
};

/// The character, or the maximal subpart of one, at the start of `text`, which is not empty.
Utf8Unit next_utf8(std::string_view text);

/// Bytes at the end of `text`, at most three, that what follows may make a character.
size_t unfinished_utf8(std::string_view text);

/// Length of the longest prefix of whole characters.
size_t valid_utf8_prefix(std::string_view text);

/// `text` with each maximal invalid subpart, and a truncated end, replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

/// Appends the UTF-8 form of a code point (no surrogate, at most U+10FFFF).
void append_utf8(std::string& text, char32_t code_point);

/// The code point at the start of valid, non-empty UTF-8.
char32_t first_code_point(std::string_view text);

/// Unicode property White_Space, which is also \s of the patterns in tokenizer.json files.
bool is_white_space(char32_t code_point);

}  // namespace parallax::text
