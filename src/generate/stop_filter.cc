// Stop strings: plain searches, since what is held is shorter than a stop string plus one token.
// SPDX-License-Identifier: Apache-2.0
#include "generate/stop_filter.h"

#include <algorithm>
#include <utility>

#include "parallax/error.h"

namespace parallax::generate {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    PLX_CHECK(!stop.empty(), "a stop string is empty: it would stop before the first character");
  }
}

std::string StopFilter::push(std::string_view bytes) {
  if (found_) return {};
  held_ += bytes;
  size_t first_end = std::string::npos, first_start = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t start = held_.find(stop);
    if (start == std::string::npos) continue;
    const size_t end = start + stop.size();
    if (end < first_end || (end == first_end && start < first_start)) {
      first_end = end;
      first_start = start;
    }
  }
  if (first_start != std::string::npos) {
    found_ = true;
    std::string before = held_.substr(0, first_start);
    held_.clear();
    return before;
  }
  size_t num_held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > num_held; --length) {
      if (held_.ends_with(std::string_view(stop).substr(0, length))) num_held = length;
    }
  }
  std::string released = held_.substr(0, held_.size() - num_held);
  held_.erase(0, released.size());
  return released;
}

std::string StopFilter::finish() { return std::exchange(held_, {}); }

}  // namespace parallax::generate
