// SPDX-License-Identifier: Apache-2.0
#include "cpu/scratch.h"

#include <algorithm>
#include <limits>

namespace parallax::cpu {
namespace {

#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kPoison = true;
#else
constexpr bool kPoison = false;
#endif

struct Scratch {
  AlignedArray<float> data;
  int64_t capacity = 0;
};

}  // namespace

float* thread_scratch(int64_t count) {
  static thread_local Scratch scratch;
  if (scratch.capacity < count) {
    scratch.capacity = 0;
    scratch.data = make_aligned_array<float>(count);
    scratch.capacity = count;
  }
  if (kPoison) std::fill_n(scratch.data.get(), count, std::numeric_limits<float>::quiet_NaN());
  return scratch.data.get();
}

}  // namespace parallax::cpu
