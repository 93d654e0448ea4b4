// Bytes in, whole characters out: for printing a text token by token.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace parallax::text {

/// A token may end inside a UTF-8 character. The stream holds such an end back (at most three
/// bytes) until the next bytes decide it. Everything push() and finish() return, joined, is
/// replace_invalid_utf8 of everything pushed, however the bytes were cut.
class Utf8Stream {
 public:
  /// The characters that `bytes` completes; invalid bytes come out as U+FFFD.
  std::string push(std::string_view bytes);
  /// What was held back, as U+FFFD if there is something. The stream is then empty and usable.
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace parallax::text
