// For messages about misspelt names: which known name was probably meant.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace parallax {

/// The name with the fewest single-character insertions, deletions and replacements to `given`, the
/// first of equals; empty if that takes more than a third of the characters of `given`, rounded up:
/// such a name was hardly meant.
std::string nearest_name(std::string_view given, std::span<const std::string> names);

}  // namespace parallax
