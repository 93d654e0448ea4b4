// A device made of fibers: the threads of a block run in turn, each until it waits; blocks follow
// each other. What hardware leaves open is drawn from a seed: the order of warps and lanes,
// warps that fall behind, when and in which order copies land, whether a product reads its operands
// when it is issued or only when it is waited for. Right kernels give the same bits with each seed.
// Deadlocks, too many arrivals, warp operations without all lanes, warpgroups whose warps part
// ways, writes beyond the shared memory, and copies or products that nobody waited for end the
// program with one line.
//
// Not shown: timing; memory order (fences are empty: copy engine, tensor cores, other blocks); the
// swizzle (both sides leave it out) and the hardware's checks of descriptors; the number of
// registers; products that nvcc serialises; the rounding of tensor cores, ex2 and CUDA's functions.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

/// The shared memory of the block that runs (device.cc).
extern "C" char parallax_shared_memory[];

namespace parallax::emulation {

struct Size {
  unsigned blocks_x, blocks_y, threads, shared_bytes;
};

/// Runs `body` once for every thread of every block. threadIdx and the like are set.
void launch(const Size& size, const std::function<void()>& body);

/// Starts the draws anew.
void set_seed(uint64_t seed);

/// Bytes of shared memory that a block may ask for: 227 KB, as on sm_90, unless it was changed.
void set_shared_limit(unsigned bytes);
unsigned shared_limit();

// What follows is called by the threads of a block.

/// Lets the other threads go on.
void yield();
void sync_threads();
/// What the lane that `source` names has passed: the lane itself, or this one's number xor it.
enum class Source : uint8_t { kLane, kXor };
uint32_t exchange(uint32_t value, int source, Source kind);

/// Shared memory by address; addresses do not begin at 0, which a kernel could take for "none".
inline constexpr uint32_t kFirstAddress = 4096;
inline char* shared(uint32_t address) { return parallax_shared_memory + (address - kFirstAddress); }
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - parallax_shared_memory) +
         kFirstAddress;
}

void barrier_init(uint32_t barrier, int arrivals);
void barrier_arrive(uint32_t barrier, int expected_bytes);
bool barrier_phase_is_over(uint32_t barrier, int parity);
enum class Arrival : uint8_t { kGoOn, kWait };
/// Whether any thread has passed true as `condition`, if this one waits.
bool named_barrier(int id, int threads, Arrival arrival, bool condition = false);

/// A tensor of 16-bit numbers as the copy engine sees it; strides in bytes.
struct Map {
  const void* data;
  int64_t sizes[4];  // D, tokens, heads, batches
  int64_t strides[3];
  int box_tokens;
};
struct Box {
  uint32_t target, barrier;
  int column, token, head, batch;
};
/// Rows of 128 bytes, zeros outside the tensor.
void copy_box(const Map& map, const Box& box);

/// A thread's part of a matrix product: `run` adds to `sums` or overwrites it.
struct Product {
  void (*run)(const Product& product);
  float* sums;
  const uint32_t* rows_in_registers;  // null: in shared memory
  uint64_t rows, columns;             // operands in shared memory (shadow wgmma.cuh)
  bool accumulate;
};
void issue_product(const Product& product);
void commit_products();
/// Returns when at most `groups` of the newest groups are unfinished, in all four warps, which must
/// call it from the same place: the instruction is one of the warpgroup.
void wait_products(int groups, const std::source_location& where);

/// A fragments of a warp: four words per lane.
using Fragments = uint32_t[32][4];
Fragments& fragments(int warp);

}  // namespace parallax::emulation
