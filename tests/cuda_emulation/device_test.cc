// The emulated device itself: it sees what kernels do wrong, and its schedules differ.
// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulation/device.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "cuda_emulation/cuda_on_host.h"

namespace parallax::emulation {
namespace {

constexpr Size kTwoWarps{.blocks_x = 1, .blocks_y = 1, .threads = 64, .shared_bytes = 1024};
constexpr uint32_t kBarrier = 4096;

TEST(EmulatedDeviceDeathTest, ABlockThatCannotGoOnEnds) {
  const auto one_warp_waits = [] {
    if (threadIdx.x < 32) sync_threads();
  };
  EXPECT_DEATH(launch(kTwoWarps, one_warp_waits), "deadlock");
  const auto nobody_arrives = [] {
    if (threadIdx.x == 0) barrier_init(kBarrier, 2);
    sync_threads();
    if (threadIdx.x == 0) barrier_arrive(kBarrier, 0);
    while (!barrier_phase_is_over(kBarrier, 0)) yield();
  };
  EXPECT_DEATH(launch(kTwoWarps, nobody_arrives), "deadlock");
}

TEST(EmulatedDeviceDeathTest, TooManyArrivalsEnd) {
  const auto both_arrive = [] {
    if (threadIdx.x == 0) barrier_init(kBarrier, 1);
    sync_threads();
    if (threadIdx.x == 32) barrier_arrive(kBarrier, /*expected_bytes=*/128);
    sync_threads();
    if (threadIdx.x == 0) barrier_arrive(kBarrier, 0);
  };
  EXPECT_DEATH(launch(kTwoWarps, both_arrive), "too many arrivals");
}

TEST(EmulatedDeviceDeathTest, WarpOperationsNeedEveryLane) {
  const auto one_lane_left = [] {
    if (threadIdx.x != 5) __syncwarp();
  };
  EXPECT_DEATH(launch(kTwoWarps, one_lane_left), "without all of its lanes");
}

TEST(EmulatedDeviceDeathTest, AWarpgroupWaitsForProductsInOnePlace) {
  constexpr Size kWarpgroup{.blocks_x = 1, .blocks_y = 1, .threads = 128, .shared_bytes = 0};
  const auto place = [](bool first) {
    const auto here = std::source_location::current();
    return first ? here : std::source_location::current();
  };
  launch(kWarpgroup, [&] { wait_products(0, place(true)); });
  const auto one_warp_elsewhere = [&] { wait_products(0, place(threadIdx.x / 32 != 2)); };
  EXPECT_DEATH(launch(kWarpgroup, one_warp_elsewhere), "in different places");
}

TEST(EmulatedDevice, ABarrierTellsWhetherAnyThreadSaysYes) {
  std::vector<bool> found;
  launch(kTwoWarps, [&] {
    for (const unsigned who : {40u, 64u, 0u}) {
      const bool any = named_barrier(3, 64, Arrival::kWait, threadIdx.x == who);
      if (threadIdx.x == 50) found.push_back(any);
    }
  });
  EXPECT_EQ(found, (std::vector<bool>{true, false, true}));
}

TEST(EmulatedDeviceDeathTest, WritesBeyondTheSharedMemoryEnd) {
  const auto one_byte_too_far = [] { shared(kBarrier)[kTwoWarps.shared_bytes] = 0; };
  EXPECT_DEATH(launch(kTwoWarps, one_byte_too_far), "beyond the shared memory");
}

TEST(EmulatedDeviceDeathTest, CopiesAndProductsMustBeWaitedFor) {
  const std::vector<uint16_t> data(64 * 8, 7);
  const Map map{
      .data = data.data(), .sizes = {64, 8, 1, 1}, .strides = {128, 1024, 1024}, .box_tokens = 8};
  // With other seeds the copy may land in time, and products when they are issued.
  const auto over_seeds = [](const std::function<void()>& body) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      set_seed(seed);
      launch(kTwoWarps, body);
    }
  };
  const auto no_wait = [&] {
    if (threadIdx.x != 0) return;
    barrier_init(kBarrier + 8, 1);
    barrier_arrive(kBarrier + 8, 1024);
    copy_box(map, {.target = kBarrier,
                   .barrier = kBarrier + 8,
                   .column = 0,
                   .token = 0,
                   .head = 0,
                   .batch = 0});
  };
  EXPECT_DEATH(over_seeds(no_wait), "before its copies");
  const auto no_product_wait = [] {
    issue_product({.run = [](const Product&) {},
                   .sums = nullptr,
                   .rows_in_registers = nullptr,
                   .rows = 0,
                   .columns = 0,
                   .accumulate = false});
  };
  EXPECT_DEATH(over_seeds(no_product_wait), "before its products");
}

/// Threads that write, and read what their neighbour wrote: with a barrier in between there is one
/// result, without there are several.
std::set<int> results_over_seeds(Arrival arrival) {
  std::set<int> results;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    set_seed(seed);
    int sum = 0;
    launch(kTwoWarps, [&] {
      auto* const numbers = reinterpret_cast<int*>(shared(kBarrier));
      const int own = static_cast<int>(threadIdx.x);
      numbers[own] = own;
      if (arrival == Arrival::kWait) sync_threads();
      sum += numbers[(own + 1) % 64] == (own + 1) % 64;
    });
    results.insert(sum);
  }
  return results;
}

TEST(EmulatedDevice, SchedulesShowAMissingBarrier) {
  EXPECT_EQ(results_over_seeds(Arrival::kWait), std::set<int>{64});
  EXPECT_GT(results_over_seeds(Arrival::kGoOn).size(), 1u);
}

}  // namespace
}  // namespace parallax::emulation
