// Learning-rate and weight-decay schedules.
// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <cmath>
#include <numbers>

#include "parallax/error.h"

namespace parallax::optim {
namespace {

double shape_at(DecayShape shape, double progress) {
  switch (shape) {
    case DecayShape::kLinear:
      return 1 - progress;
    case DecayShape::kSqrt:
      return 1 - std::sqrt(progress);
    case DecayShape::kCosine:
      return (1 + std::cos(std::numbers::pi * progress)) / 2;
  }
  PLX_FAIL("unknown decay shape");
}

int64_t decay_steps_of(const ScheduleOptions& options) {
  switch (options.kind) {
    case ScheduleKind::kWsd:
      return std::llround(options.decay_ratio * static_cast<double>(options.num_steps));
    case ScheduleKind::kCosine:
      return options.num_steps - options.warmup_steps;
    case ScheduleKind::kConstant:
      return 0;
  }
  PLX_FAIL("unknown schedule");
}

}  // namespace

ScheduleKind parse_schedule_kind(std::string_view name) {
  if (name == "wsd") return ScheduleKind::kWsd;
  if (name == "cosine") return ScheduleKind::kCosine;
  if (name == "constant") return ScheduleKind::kConstant;
  PLX_FAIL("unknown schedule '", name, "'; it is one of wsd, cosine, constant");
}

DecayShape parse_decay_shape(std::string_view name) {
  if (name == "linear") return DecayShape::kLinear;
  if (name == "sqrt") return DecayShape::kSqrt;
  if (name == "cosine") return DecayShape::kCosine;
  PLX_FAIL("unknown decay shape '", name, "'; it is one of linear, sqrt, cosine");
}

Schedule::Schedule(const ScheduleOptions& options) : options_(options) {
  PLX_CHECK(options.num_steps >= 1, "a schedule needs steps, given ", options.num_steps);
  PLX_CHECK(options.warmup_steps >= 0 && options.warmup_steps <= options.num_steps, "warm-up of ",
            options.warmup_steps, " steps does not fit in ", options.num_steps);
  PLX_CHECK(options.decay_ratio >= 0 && options.decay_ratio <= 1, "decay ratio is ",
            options.decay_ratio, "; 0 to 1");
  PLX_CHECK(options.min_lr_factor >= 0 && options.min_lr_factor <= 1, "minimal lr factor is ",
            options.min_lr_factor, "; 0 to 1");
  PLX_CHECK(options.weight_decay_gamma >= 0, "weight-decay gamma is ", options.weight_decay_gamma,
            "; 0 or more");
  if (options.kind == ScheduleKind::kCosine) options_.decay_shape = DecayShape::kCosine;
  decay_steps_ = decay_steps_of(options);
  PLX_CHECK(options.warmup_steps + decay_steps_ <= options.num_steps, "warm-up of ",
            options.warmup_steps, " and decay of ", decay_steps_, " steps do not fit in ",
            options.num_steps);
}

StepScales Schedule::at(int64_t step_idx) const {
  StepScales scales;
  if (step_idx < options_.warmup_steps) {
    scales.lr = static_cast<double>(step_idx + 1) / static_cast<double>(options_.warmup_steps);
    return scales;
  }
  const int64_t decayed_steps = step_idx + decay_steps_ - options_.num_steps;
  if (decay_steps_ == 0 || decayed_steps <= 0) return scales;
  // Steps beyond the last stay at the end of the decay.
  const double progress =
      std::min(1.0, static_cast<double>(decayed_steps) / static_cast<double>(decay_steps_));
  const double floor = options_.min_lr_factor;
  scales.lr = floor + (1 - floor) * shape_at(options_.decay_shape, progress);
  if (options_.weight_decay_gamma > 0)
    scales.weight_decay = std::pow(1 - progress, options_.weight_decay_gamma);
  return scales;
}

}  // namespace parallax::optim
