// Only the end of the input can be undecided, so push() cuts there and replaces in the rest.
// SPDX-License-Identifier: Apache-2.0
#include "text/utf8_stream.h"

#include "text/utf8.h"

namespace parallax::text {

std::string Utf8Stream::push(std::string_view bytes) {
  pending_.append(bytes);
  std::string_view rest = pending_;
  std::string whole;
  while (!rest.empty()) {
    const size_t num_valid = valid_utf8_prefix(rest);
    whole.append(rest.substr(0, num_valid));
    rest.remove_prefix(num_valid);
    if (rest.empty()) break;
    const Utf8Unit unit = next_utf8(rest);
    if (unit.kind == Utf8Kind::kTruncated) break;
    whole.append(kReplacementCharacter);
    rest.remove_prefix(unit.num_bytes);
  }
  pending_ = std::string(rest);
  return whole;
}

std::string Utf8Stream::finish() {
  // What is held back is one truncated character, hence one maximal subpart.
  std::string last(pending_.empty() ? std::string_view() : kReplacementCharacter);
  pending_.clear();
  return last;
}

}  // namespace parallax::text
