// Aligned memory, and the memory that the kernels of one thread work in.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace parallax::cpu {

constexpr std::align_val_t kScratchAlignment{64};

struct AlignedDelete {
  void operator()(void* pointer) const { ::operator delete[](pointer, kScratchAlignment); }
};
template <typename Element>
using AlignedArray = std::unique_ptr<Element[], AlignedDelete>;

/// Uninitialised memory, 64-byte aligned.
template <typename Element>
AlignedArray<Element> make_aligned_array(int64_t count) {
  return AlignedArray<Element>(new (kScratchAlignment) Element[static_cast<size_t>(count)]);
}

/// `count` floats, 64-byte aligned, owned by the calling thread and reused by its next call: a task
/// must not keep the pointer. In debug and sanitizer builds they start as NaN.
float* thread_scratch(int64_t count);

}  // namespace parallax::cpu
