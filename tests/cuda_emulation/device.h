// A device made of fibers: the threads of one block run in turn on one CPU thread, in changing
// order, and copies of the copy engine land a random number of turns after they were asked for. A
// block that cannot go on, too many arrivals at a barrier and writes beyond the shared memory end
// the program.
//
// Not shown: timing, the memory order between the copy engine, the tensor cores and ordinary
// accesses, the swizzle (both sides leave it out), and limits of registers.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace parallax::emulation {

struct Size {
  unsigned blocks, threads, shared_bytes;
};

/// Runs `body` once for every thread of every block; the blocks follow each other.
void launch(Size size, const std::function<void()>& body);
/// Another seed, another order of fibers and copies.
void set_seed(unsigned seed);

/// Lets the other threads go on.
void yield();
void sync_threads();
/// What the lane that `source` names has passed: the lane itself, or this one's number xor it.
enum class Source : uint8_t { kLane, kXor };
uint32_t exchange(uint32_t value, int source, Source kind);

/// Shared memory by address.
char* shared(uint32_t address);
uint32_t shared_address(const void* pointer);

void barrier_init(uint32_t barrier, int arrivals);
void barrier_arrive(uint32_t barrier, int expected_bytes);
bool barrier_phase_is_over(uint32_t barrier, int parity);
void named_barrier(int id, int threads, bool wait);

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

/// A fragments of a warp: four words per lane.
using Fragments = uint32_t[32][4];
Fragments& fragments(int warp);

}  // namespace parallax::emulation
