// Learning-rate and weight-decay schedules: functions of the step alone, so nothing to save.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "optim/optimizer.h"

namespace parallax::optim {

/// kWsd: warm-up, stable, decay over the last part. kCosine: warm-up, then cosine decay over all
/// the rest. kConstant: warm-up only.
enum class ScheduleKind { kWsd, kCosine, kConstant };
/// With u from 0 to 1 over the decay: 1 - u, 1 - sqrt(u), (1 + cos(pi u)) / 2.
enum class DecayShape { kLinear, kSqrt, kCosine };

ScheduleKind parse_schedule_kind(std::string_view name);  ///< "wsd", "cosine", "constant"
DecayShape parse_decay_shape(std::string_view name);      ///< "linear", "sqrt", "cosine"

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kWsd;
  int64_t num_steps = 1;
  int64_t warmup_steps = 0;
  /// The share of all steps that decay; kWsd only.
  double decay_ratio = 0.2;
  DecayShape decay_shape = DecayShape::kLinear;
  /// The factor that the decay tends to.
  double min_lr_factor = 0;
  /// Weight decay times (1 - u)^gamma during the decay; 0 leaves it alone.
  double weight_decay_gamma = 0;
};

/// With W warm-up steps and D = round(decay_ratio N) decay steps of N, for step t from 0:
///   t < W              lr = (t + 1) / W
///   t <= N - D         lr = 1
///   later              lr = min + (1 - min) shape(u), u = (t + D - N) / D
/// so the last step has u = (D - 1) / D and still moves. Cosine: the same with D = N - W.
class Schedule {
 public:
  /// Throws if the options are out of range, or warm-up and decay together exceed the steps.
  explicit Schedule(const ScheduleOptions& options);
  StepScales at(int64_t step_idx) const;

 private:
  ScheduleOptions options_;
  int64_t decay_steps_ = 0;
};

}  // namespace parallax::optim
