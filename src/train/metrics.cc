// Metrics and progress.
// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <ATen/DeviceAccelerator.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/atomic_file.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{100};
constexpr std::chrono::seconds kPlainInterval{5};

/// The lines of `text` up to the given step, the last of them in *last; a line that is cut short or
/// has no step is dropped.
std::string lines_until(const std::string& text, int64_t step, nlohmann::json* last) {
  std::istringstream stream(text);
  std::string kept;
  for (std::string line; std::getline(stream, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto found = json.find("step");  // of an object; the end of anything else
    if (found == json.end() || !found->is_number_integer()) continue;
    if (found->get<int64_t>() > step) continue;
    kept += line + "\n";
    *last = json;
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(std::filesystem::path path, int64_t keep_until_step)
    : path_(std::move(path)) {
  const bool keeps = keep_until_step >= 0 && std::filesystem::exists(path_);
  io::write_file(path_,
                 keeps ? lines_until(io::read_file(path_), keep_until_step, &last_kept_) : "");
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  PLX_CHECK(descriptor_ >= 0, "cannot open ", path_.string(), ": ", std::strerror(errno));
}

MetricsFile::~MetricsFile() { ::close(descriptor_); }

void MetricsFile::write(const nlohmann::json& line) {
  const std::string text = line.dump() + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(descriptor_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    PLX_CHECK(count >= 0, "cannot write ", path_.string(), ": ", std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

bool MetricsFile::ends_at(int64_t step, int64_t num_steps) const {
  return last_kept_.is_object() && last_kept_.value("event", nlohmann::json()) == "end" &&
         last_kept_.value("step", nlohmann::json()) == step &&
         last_kept_.value("finished", nlohmann::json()) == (step == num_steps);
}

Progress::Progress(bool enabled)
    : enabled_(enabled),
      is_terminal_(::isatty(STDERR_FILENO) == 1),
      last_update_(std::chrono::steady_clock::now()) {}

void Progress::update(const Status& status) {
  const auto now = std::chrono::steady_clock::now();
  const bool is_last = status.step == status.num_steps;
  const bool is_due =
      is_terminal_ ? now - last_update_ >= kTerminalInterval : now - last_update_ >= kPlainInterval;
  if (!enabled_ || !(is_due || is_last)) return;
  last_update_ = now;
  std::ostringstream line;
  line << "step " << status.step << "/" << status.num_steps << "  loss " << std::fixed
       << std::setprecision(4) << status.loss << "  " << std::setprecision(0)
       << status.tokens_per_second << " tokens/s  " << duration_text(status.seconds_left)
       << " left";
  if (is_terminal_)
    std::fprintf(stderr, "\r\033[K%s", line.str().c_str());
  else
    std::fprintf(stderr, "%s\n", line.str().c_str());
  std::fflush(stderr);
  line_is_open_ = is_terminal_;
}

void Progress::note(const std::string& text) {
  if (!enabled_) return;
  std::fprintf(stderr, "%s%s\n", line_is_open_ ? "\n" : "", text.c_str());
  line_is_open_ = false;
}

int64_t peak_memory_bytes(torch::Device device) {
  if (device.is_cuda()) {
    const auto stats = at::accelerator::getDeviceStats(at::accelerator::getDeviceIndex());
    return stats.reserved_bytes[0].peak;
  }
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{1024} * usage.ru_maxrss;
}

std::string duration_text(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  std::ostringstream text;
  text << std::setfill('0');
  if (total >= 3600) text << total / 3600 << ":" << std::setw(2);
  text << total / 60 % 60 << ":" << std::setw(2) << total % 60;
  return text.str();
}

}  // namespace parallax::train
