// Schedules point by point.
// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "parallax/error.h"

namespace parallax::optim {
namespace {

std::vector<double> rates(const ScheduleOptions& options) {
  const Schedule schedule(options);
  std::vector<double> result;
  for (int64_t step = 0; step < options.num_steps; ++step) result.push_back(schedule.at(step).lr);
  return result;
}

void expect_near(const std::vector<double>& given, const std::vector<double>& expected) {
  ASSERT_EQ(given.size(), expected.size());
  for (size_t i = 0; i < given.size(); ++i)
    EXPECT_NEAR(given[i], expected[i], 1e-15) << "step " << i;
}

TEST(Schedule, WsdWarmsUpHoldsAndDecaysLinearly) {
  expect_near(rates({.num_steps = 10, .warmup_steps = 2, .decay_ratio = 0.4}),
              {0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25});
}

TEST(Schedule, WsdDecayShapesAndFloor) {
  expect_near(rates({.num_steps = 4, .decay_ratio = 1, .decay_shape = DecayShape::kSqrt}),
              {1, 1 - std::sqrt(0.25), 1 - std::sqrt(0.5), 1 - std::sqrt(0.75)});
  expect_near(rates({.num_steps = 4, .decay_ratio = 1, .min_lr_factor = 0.2}),
              {1, 0.2 + 0.8 * 0.75, 0.2 + 0.8 * 0.5, 0.2 + 0.8 * 0.25});
}

TEST(Schedule, CosineDecaysOverAllThatFollowsTheWarmUp) {
  const double half = std::sqrt(0.5);
  expect_near(rates({.kind = ScheduleKind::kCosine, .num_steps = 6, .warmup_steps = 2}),
              {0.5, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2});
}

TEST(Schedule, ConstantOnlyWarmsUp) {
  expect_near(rates({.kind = ScheduleKind::kConstant, .num_steps = 4, .warmup_steps = 3}),
              {1.0 / 3, 2.0 / 3, 1, 1});
  EXPECT_EQ(Schedule({.kind = ScheduleKind::kConstant, .num_steps = 4}).at(100).lr, 1);
}

TEST(Schedule, WeightDecayIsAnnealedDuringTheDecayOnly) {
  const Schedule schedule(
      {.num_steps = 8, .warmup_steps = 2, .decay_ratio = 0.5, .weight_decay_gamma = 2});
  const std::vector<double> expected = {1, 1, 1, 1, 1, 0.75 * 0.75, 0.5 * 0.5, 0.25 * 0.25};
  for (int64_t step = 0; step < 8; ++step)
    EXPECT_NEAR(schedule.at(step).weight_decay, expected[static_cast<size_t>(step)], 1e-15);
}

TEST(Schedule, StepsBeyondTheEndStayAtTheFloor) {
  EXPECT_EQ(Schedule({.num_steps = 4, .decay_ratio = 0.5, .min_lr_factor = 0.1}).at(50).lr, 0.1);
}

TEST(Schedule, RefusesWhatDoesNotFit) {
  EXPECT_THROW(Schedule({.num_steps = 10, .warmup_steps = 9, .decay_ratio = 0.2}), Error);
  EXPECT_THROW(Schedule({.num_steps = 10, .warmup_steps = 11}), Error);
  EXPECT_THROW(Schedule({.num_steps = 0}), Error);
  EXPECT_THROW(Schedule({.num_steps = 10, .decay_ratio = 1.5}), Error);
  EXPECT_THROW(Schedule({.num_steps = 10, .min_lr_factor = -1}), Error);
  EXPECT_THROW(parse_schedule_kind("step"), Error);
  EXPECT_THROW(parse_decay_shape("exponential"), Error);
}

}  // namespace
}  // namespace parallax::optim
