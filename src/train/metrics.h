// What a run reports: lines of JSON in a file, and progress on stderr.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace parallax::train {

/// Appends one JSON object per line, each on disk when write() returns to the caller.
class MetricsFile {
 public:
  /// Keeps the lines of an existing file whose "step" is at most keep_until_step (those of later
  /// steps will be written again), none if it is negative.
  MetricsFile(std::filesystem::path path, int64_t keep_until_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  void write(const nlohmann::json& line);
  /// Whether the last line that was kept is the end of a run of num_steps at `step`.
  bool ends_at(int64_t step, int64_t num_steps) const;

 private:
  std::filesystem::path path_;
  nlohmann::json last_kept_;
  int descriptor_ = -1;
};

/// Progress on stderr: one line that is overwritten on a terminal, else a plain line every few
/// seconds.
class Progress {
 public:
  explicit Progress(bool enabled);

  struct Status {
    int64_t step = 0, num_steps = 0;
    double loss = 0, tokens_per_second = 0, seconds_left = 0;
  };
  void update(const Status& status);
  /// A line of its own that stays.
  void note(const std::string& text);

 private:
  bool enabled_, is_terminal_, line_is_open_ = false;
  std::chrono::steady_clock::time_point last_update_;
};

/// The most memory this process has held, bytes: resident on a CPU, of the allocator on a GPU.
int64_t peak_memory_bytes(torch::Device device);

/// "1:05", "2:03:09".
std::string duration_text(double seconds);

}  // namespace parallax::train
