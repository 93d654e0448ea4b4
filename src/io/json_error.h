// The messages of the JSON library in plain words.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>

namespace parallax::io {

/// error.what() without the "[json.exception.parse_error.101] " that nlohmann's exceptions start
/// with; the text of any other exception as it is.
std::string plain_what(const std::exception& error);

}  // namespace parallax::io
