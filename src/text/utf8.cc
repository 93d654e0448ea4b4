// A table-free UTF-8 reader: the lead byte gives the length and the range of the second byte, all
// later bytes are 80..BF.
// SPDX-License-Identifier: Apache-2.0
#include "text/utf8.h"

#include <algorithm>

#include <cstring>

namespace parallax::text {
namespace {

unsigned byte_at(std::string_view text, size_t idx) {
  return static_cast<unsigned char>(text[idx]);
}

}  // namespace

Utf8Unit next_utf8(std::string_view text) {
  const unsigned lead = byte_at(text, 0);
  if (lead < 0x80) return {1, Utf8Kind::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {1, Utf8Kind::kInvalid};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte also excludes overlong forms, surrogates and code points above U+10FFFF.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t idx = 1; idx < length; ++idx) {
    if (idx == text.size()) return {idx, Utf8Kind::kTruncated};
    if (byte_at(text, idx) < low || byte_at(text, idx) > high) return {idx, Utf8Kind::kInvalid};
    low = 0x80, high = 0xBF;
  }
  return {length, Utf8Kind::kValid};
}

size_t unfinished_utf8(std::string_view text) {
  for (size_t num_bytes = 1; num_bytes <= std::min<size_t>(3, text.size()); ++num_bytes) {
    const Utf8Unit unit = next_utf8(text.substr(text.size() - num_bytes));
    if (unit.kind == Utf8Kind::kTruncated) return num_bytes;
  }
  return 0;
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    uint64_t word = 0;  // eight ASCII bytes at once
    if (text.size() - pos >= sizeof(word)) {
      std::memcpy(&word, text.data() + pos, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        pos += sizeof(word);
        continue;
      }
    }
    const Utf8Unit unit = next_utf8(text.substr(pos));
    if (unit.kind != Utf8Kind::kValid) break;
    pos += unit.num_bytes;
  }
  return pos;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string replaced;
  replaced.reserve(text.size());
  while (!text.empty()) {
    const size_t num_valid = valid_utf8_prefix(text);
    replaced.append(text.substr(0, num_valid));
    text.remove_prefix(num_valid);
    if (text.empty()) break;
    replaced.append(kReplacementCharacter);
    text.remove_prefix(next_utf8(text).num_bytes);
  }
  return replaced;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto append = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  const auto continuation = [&](int shift) { append(0x80 | ((code_point >> shift) & 0x3F)); };
  if (code_point < 0x80) {
    append(code_point);
  } else if (code_point < 0x800) {
    append(0xC0 | (code_point >> 6));
    continuation(0);
  } else if (code_point < 0x10000) {
    append(0xE0 | (code_point >> 12));
    continuation(6);
    continuation(0);
  } else {
    append(0xF0 | (code_point >> 18));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

char32_t first_code_point(std::string_view text) {
  const unsigned lead = byte_at(text, 0);
  if (lead < 0x80) return lead;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = lead & (0x7Fu >> length);
  for (size_t idx = 1; idx < length; ++idx) {
    code_point = (code_point << 6) | (byte_at(text, idx) & 0x3F);
  }
  return code_point;
}

bool is_white_space(char32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
  return code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
         code_point == 0x3000;
}

}  // namespace parallax::text
