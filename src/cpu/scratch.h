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

/// Memory for one call, made and freed by the calling thread, which keeps up to kKeptBytes of it
/// for its next call: fresh pages cost as much as filling them.
constexpr int64_t kKeptBytes = int64_t{32} << 20;
struct KeepMemory {
  void operator()(void* pointer) const;
};
template <typename Element>
using CallArray = std::unique_ptr<Element[], KeepMemory>;

/// 64-byte aligned, uninitialised.
void* take_call_memory(int64_t bytes);
template <typename Element>
CallArray<Element> make_call_array(int64_t count) {
  return CallArray<Element>(
      static_cast<Element*>(take_call_memory(count * static_cast<int64_t>(sizeof(Element)))));
}

/// `count` floats, 64-byte aligned, owned by the calling thread and reused by its next call: a task
/// must not keep the pointer. In debug and sanitizer builds they start as NaN.
float* thread_scratch(int64_t count);

}  // namespace parallax::cpu
