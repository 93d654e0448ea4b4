// The one exception type of the library, and the check that throws it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace parallax {

/// Thrown for every fault the library reports: the message says what was wrong, what was given and
/// what is allowed. Nothing has been written when validation throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace internal {

template <typename... Parts>
[[noreturn]] void throw_error(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace internal
}  // namespace parallax

/// Throws parallax::Error with the streamed message parts unless `condition` holds. For faults of
/// the caller; always on.
#define PLX_CHECK(condition, ...)                     \
  do {                                                \
    if (!(condition)) [[unlikely]]                    \
      ::parallax::internal::throw_error(__VA_ARGS__); \
  } while (false)

/// Throws parallax::Error with the streamed message parts.
#define PLX_FAIL(...) ::parallax::internal::throw_error(__VA_ARGS__)
