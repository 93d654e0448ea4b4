// Unicode normalisation form C.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace parallax::text {

/// True if a look at the bytes shows that `text` is in form C: no character from U+0300 on.
bool is_surely_nfc(std::string_view text);

/// Form C of valid UTF-8, in O(n log n) for any input, by the tables of utf8proc (Unicode 13 in
/// utf8proc 2.6); newer characters stay where they are. `tokenizers` carries the tables of Unicode
/// 9: where several marks follow one character, it does not reorder those that came later.
std::string to_nfc(std::string_view text);

}  // namespace parallax::text
