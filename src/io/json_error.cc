// SPDX-License-Identifier: Apache-2.0
#include "io/json_error.h"

#include <string_view>

namespace parallax::io {

std::string plain_what(const std::exception& error) {
  constexpr std::string_view kEnd = "] ";
  const std::string_view text = error.what();
  const size_t end = text.find(kEnd);
  const bool is_tagged = text.starts_with("[json.exception.") && end != std::string_view::npos;
  return std::string(is_tagged ? text.substr(end + kEnd.size()) : text);
}

}  // namespace parallax::io
