// SPDX-License-Identifier: Apache-2.0
#include "cpu/scratch.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

namespace parallax::cpu {
namespace {

#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kPoison = true;
#else
constexpr bool kPoison = false;
#endif

constexpr std::align_val_t kAlignment{64};

struct AlignedDelete {
  void operator()(float* pointer) const { ::operator delete[](pointer, kAlignment); }
};

struct Scratch {
  std::unique_ptr<float[], AlignedDelete> data;
  int64_t capacity = 0;
};

}  // namespace

float* thread_scratch(int64_t count) {
  static thread_local Scratch scratch;
  if (scratch.capacity < count) {
    scratch.capacity = 0;
    scratch.data.reset(new (kAlignment) float[static_cast<size_t>(count)]);
    scratch.capacity = count;
  }
  if (kPoison) std::fill_n(scratch.data.get(), count, std::numeric_limits<float>::quiet_NaN());
  return scratch.data.get();
}

}  // namespace parallax::cpu
