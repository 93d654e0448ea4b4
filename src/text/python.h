// The Python programs that this one may call, and the sources that come with them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace parallax::text {

/// In the order in which they are tried: the one that the build was configured with (PLX_PYTHON),
/// and python3 of the search path.
std::vector<std::string> python_programs();

/// The folder of the standard library of the first that runs; an Error if none does.
std::filesystem::path python_library();

}  // namespace parallax::text
