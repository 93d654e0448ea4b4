// See python.h.
// SPDX-License-Identifier: Apache-2.0
#include "text/python.h"

#include "io/child_process.h"
#include "parallax/error.h"
#include "text/build_settings.h"

namespace parallax::text {

std::vector<std::string> python_programs() { return {kConfiguredPython, "python3"}; }

std::filesystem::path python_library() {
  std::string reasons;
  for (const std::string& python : python_programs()) {
    try {
      io::ChildProcess process(
          {python, "-c", "import sysconfig; print(sysconfig.get_paths()['stdlib'])"});
      const std::string library = process.read_line().value_or("");
      std::error_code unknown;
      if (process.wait() == 0 && std::filesystem::is_directory(library, unknown)) return library;
      reasons += "; " + python + " names no folder of its library";
    } catch (const Error& error) {
      reasons += std::string("; ") + error.what();
    }
  }
  PLX_FAIL("no Python to take the source files of", reasons);
}

}  // namespace parallax::text
