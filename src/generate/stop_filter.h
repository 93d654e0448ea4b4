// Finds stop strings in text that arrives in pieces, and holds back what may be the start of one.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace parallax::generate {

/// Gives the bytes before the first stop string, none of its own, whatever the pieces are. "First"
/// is the one that is complete first; of several that end together, the longest.
class StopFilter {
 public:
  /// Throws parallax::Error if a stop string is empty.
  explicit StopFilter(std::vector<std::string> stops);

  /// Takes the next bytes and returns those that are certain not to belong to a stop string.
  std::string push(std::string_view bytes);
  /// What was still held back; nothing after a stop string was found.
  std::string finish();
  bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace parallax::generate
