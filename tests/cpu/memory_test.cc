// Forward and backward at a length where a Tq x Tk buffer would be seen.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "cpu/backend.h"
#include "parallax/tensor.h"

// Every allocation of this test program is counted. Not under sanitizers, which bring their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {

std::atomic<int64_t> allocated_bytes = 0;

void* counted(size_t bytes, size_t alignment) {
  allocated_bytes += static_cast<int64_t>(bytes);
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (void* const pointer = std::aligned_alloc(alignment, rounded)) return pointer;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* pointer) noexcept { std::free(pointer); }
void operator delete(void* pointer, size_t) noexcept { std::free(pointer); }
void operator delete(void* pointer, std::align_val_t) noexcept { std::free(pointer); }
void operator delete(void* pointer, size_t, std::align_val_t) noexcept { std::free(pointer); }

namespace parallax::testing {
namespace {

constexpr int64_t kT = 16384, kD = 8;

struct Buffers {
  std::vector<float> q = input(1), r = input(2), k = input(3), v = input(4), d_out = input(5);
  std::vector<float> out = input(0), out_softmax = out, dq = out, dr = out, dk = out, dv = out;
  std::vector<float> lse = std::vector<float>(kT), t_mean = lse;

  static std::vector<float> input(int seed) {
    std::vector<float> values(kT * kD);
    for (size_t idx = 0; idx < values.size(); ++idx)
      values[idx] =
          static_cast<float>((idx * 7919 + static_cast<size_t>(seed) * 104729) % 101) / 50.0f -
          1.0f;
    return values;
  }
};

auto rows(std::vector<float>& values) { return make_view(values.data(), {1, kT, 1, kD}); }
auto stats(std::vector<float>& values) { return make_view(values.data(), {1, 1, kT}); }

TEST(CpuMemory, LongForwardAndBackwardAllocateInProportionToTheLength) {
  Buffers b;
  const int64_t before = allocated_bytes;
  cpu::backend().forward({.q = rows(b.q),
                          .r = rows(b.r),
                          .k = rows(b.k),
                          .v = rows(b.v),
                          .out = rows(b.out),
                          .out_softmax = rows(b.out_softmax),
                          .lse = stats(b.lse),
                          .t_mean = stats(b.t_mean)});
  const int64_t after_forward = allocated_bytes;
  cpu::backend().backward({.d_out = rows(b.d_out),
                           .q = rows(b.q),
                           .r = rows(b.r),
                           .k = rows(b.k),
                           .v = rows(b.v),
                           .out = rows(b.out),
                           .out_softmax = rows(b.out_softmax),
                           .lse = stats(b.lse),
                           .t_mean = stats(b.t_mean),
                           .dq = rows(b.dq),
                           .dr = rows(b.dr),
                           .dk = rows(b.dk),
                           .dv = rows(b.dv)});
  // Everything ever allocated, freed or not: scratch per thread, and 16 bytes per row backward. The
  // scores alone would be 1 GB.
  constexpr int64_t kThreads = 256, kScratchBytes = 200 << 10;
  EXPECT_LT(after_forward - before, kThreads * kScratchBytes);
  EXPECT_LT(allocated_bytes - after_forward, kThreads * kScratchBytes + 32 * kT);
}

}  // namespace
}  // namespace parallax::testing

#endif
