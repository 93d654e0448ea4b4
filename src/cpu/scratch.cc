// SPDX-License-Identifier: Apache-2.0
#include "cpu/scratch.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

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

/// Call memory has its size in front of it.
constexpr int64_t kHeaderBytes = 64;

int64_t& size_of_block(char* block) { return *reinterpret_cast<int64_t*>(block); }

/// The freed call memory of one thread, oldest first.
struct KeptBlocks {
  static constexpr size_t kMaxBlocks = 16;
  std::vector<AlignedArray<char>> blocks{};
  int64_t bytes = 0;

  KeptBlocks() { blocks.reserve(kMaxBlocks + 1); }  // so that keep(), a deleter's, cannot throw

  /// The smallest that is large enough, and at most twice as large as needed.
  AlignedArray<char> take(int64_t size) {
    auto best = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it) {
      const int64_t has = size_of_block(it->get());
      if (has >= size && has <= 2 * size &&
          (best == blocks.end() || has < size_of_block(best->get())))
        best = it;
    }
    if (best == blocks.end()) return {};
    AlignedArray<char> block = std::move(*best);
    blocks.erase(best);
    bytes -= size_of_block(block.get());
    return block;
  }

  void keep(AlignedArray<char> block) {
    const int64_t size = size_of_block(block.get());
    if (size > kKeptBytes) return;
    blocks.push_back(std::move(block));
    bytes += size;
    while (bytes > kKeptBytes || blocks.size() > kMaxBlocks) {
      bytes -= size_of_block(blocks.front().get());
      blocks.erase(blocks.begin());
    }
  }
};

KeptBlocks& kept_blocks() {
  static thread_local KeptBlocks kept;
  return kept;
}

}  // namespace

void* take_call_memory(int64_t bytes) {
  AlignedArray<char> block = kept_blocks().take(bytes);
  if (block == nullptr) {
    block = make_aligned_array<char>(kHeaderBytes + bytes);
    size_of_block(block.get()) = bytes;
  }
  return block.release() + kHeaderBytes;
}

void KeepMemory::operator()(void* pointer) const {
  kept_blocks().keep(AlignedArray<char>(static_cast<char*>(pointer) - kHeaderBytes));
}

float* thread_scratch(int64_t count) {
  static thread_local Scratch scratch;
  if (scratch.capacity < count) {
    scratch.capacity = 0;
    scratch.data.reset();  // first, so that never both are held
    scratch.data = make_aligned_array<float>(count);
    scratch.capacity = count;
  }
  if (kPoison) std::fill_n(scratch.data.get(), count, std::numeric_limits<float>::quiet_NaN());
  return scratch.data.get();
}

}  // namespace parallax::cpu
