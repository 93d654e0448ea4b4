// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulation/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <unordered_map>
#include <vector>

#include "cuda_emulation/cuda_on_host.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace parallax::cuda::sm90 {
// The kernels' `extern __shared__` array. 227 KB, and some more to see writes beyond.
alignas(1024) char shared_memory[240 * 1024];
}  // namespace parallax::cuda::sm90

namespace parallax::emulation {
namespace {

using cuda::sm90::shared_memory;

/// Addresses do not begin at 0, which a kernel could take for "none".
constexpr uint32_t kFirstAddress = 4096;
constexpr size_t kStackBytes = 128 * 1024;
constexpr int kWarp = 32;
constexpr char kPoison = '\xff';

struct Barrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  int phase = 0;
};
struct NamedBarrier {
  int arrived = 0;
  int64_t generation = 0;
};
struct Copy {
  Map map;
  Box box;
  int delay;  // turns
};
struct Fiber {
  void* stack_pointer = nullptr;
  std::vector<char> stack{};
  bool is_done = false;
  int64_t num_exchanges = 0;
  uint32_t words[4] = {};  // of the last exchanges
};

struct Device {
  std::vector<Fiber> fibers{};
  int current = 0, num_threads = 0;
  void* scheduler = nullptr;
  const std::function<void()>* body = nullptr;
  int64_t progress = 0;  // grows with everything that may let somebody go on
  std::unordered_map<uint32_t, Barrier> barriers{};
  NamedBarrier named_barriers[16]{}, all_threads{};
  std::vector<Copy> copies{};
  std::mt19937 random{1};
  Fragments fragments[32];
};
Device device;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated device: %s (block %u, thread %u)\n", what, blockIdx.x,
               threadIdx.x);
  std::abort();
}

extern "C" void parallax_switch_stack(void** save, void* load);
asm(R"(
.text
.globl parallax_switch_stack
parallax_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void run_fiber() {
  (*device.body)();
  device.fibers[static_cast<size_t>(device.current)].is_done = true;
  ++device.progress;
  yield();
  std::abort();
}

void start(Fiber& fiber) {
  fiber.stack.resize(kStackBytes);
  const auto end = reinterpret_cast<uintptr_t>(fiber.stack.data()) + kStackBytes;
  auto** top = reinterpret_cast<void**>(end & ~uintptr_t{63});
  *--top = nullptr;  // the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.is_done = false;
  fiber.num_exchanges = 0;
}

void resume(int thread) {
  device.current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  parallax_switch_stack(&device.scheduler,
                        device.fibers[static_cast<size_t>(thread)].stack_pointer);
}

Barrier& barrier_at(uint32_t address) {
  const auto found = device.barriers.find(address);
  if (found == device.barriers.end()) fail("there is no barrier");
  return found->second;
}

void settle(Barrier& barrier) {
  ++device.progress;
  if (barrier.pending < 0) fail("too many arrivals at a barrier");
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
}

void finish_copy(const Copy& copy) {
  const auto& [map, box, delay] = copy;
  for (int row = 0; row < map.box_tokens; ++row)
    for (int column = 0; column < 64; ++column) {
      const int64_t at[4] = {box.column + column, box.token + row, box.head, box.batch};
      bool inside = true;
      for (int dim = 0; dim < 4; ++dim) inside &= at[dim] >= 0 && at[dim] < map.sizes[dim];
      uint16_t number = 0;
      if (inside)
        std::memcpy(&number,
                    static_cast<const char*>(map.data) + 2 * at[0] + at[1] * map.strides[0] +
                        at[2] * map.strides[1] + at[3] * map.strides[2],
                    sizeof number);
      std::memcpy(shared(box.target) + row * 128 + column * 2, &number, sizeof number);
    }
  Barrier& barrier = barrier_at(box.barrier);
  barrier.bytes -= map.box_tokens * 128;
  settle(barrier);
}

void run_copies() {
  std::vector<Copy> later;
  for (Copy& copy : device.copies) {
    ++device.progress;
    if (copy.delay-- > 0)
      later.push_back(copy);
    else
      finish_copy(copy);
  }
  device.copies = std::move(later);
}

void run_block() {
  for (int thread = 0; thread < device.num_threads; ++thread)
    start(device.fibers[static_cast<size_t>(thread)]);
  while (true) {
    const int64_t before = device.progress;
    run_copies();
    const bool forward = device.random() % 2 == 0;
    int num_left = 0;
    for (int turn = 0; turn < device.num_threads; ++turn) {
      const int thread = forward ? turn : device.num_threads - 1 - turn;
      if (device.fibers[static_cast<size_t>(thread)].is_done) continue;
      ++num_left;
      resume(thread);
    }
    if (num_left == 0) return;
    if (device.progress == before) fail("deadlock");
  }
}

}  // namespace

void set_seed(unsigned seed) { device.random.seed(seed); }

void launch(Size size, const std::function<void()>& body) {
  if (size.shared_bytes > 232448) fail("a block has 227 KB of shared memory");
  if (size.threads == 0 || size.threads > 1024 || size.threads % kWarp != 0 || size.blocks == 0)
    fail("no such grid");
  device.num_threads = static_cast<int>(size.threads);
  device.fibers.resize(size.threads);
  device.body = &body;
  gridDim = dim3(size.blocks);
  blockDim = dim3(size.threads);
  for (unsigned block = 0; block < size.blocks; ++block) {
    blockIdx = {block, 0, 0};
    std::memset(shared_memory, kPoison, sizeof shared_memory);
    device.barriers.clear();
    for (NamedBarrier& barrier : device.named_barriers) barrier = {};
    run_block();
    if (!device.copies.empty()) fail("a block ended before its copies");
    for (size_t byte = size.shared_bytes; byte < sizeof shared_memory; ++byte)
      if (shared_memory[byte] != kPoison) fail("a write beyond the shared memory");
  }
}

void yield() {
  parallax_switch_stack(&device.fibers[static_cast<size_t>(device.current)].stack_pointer,
                        device.scheduler);
}

namespace {

void wait_at(NamedBarrier& barrier, int threads, bool wait) {
  ++device.progress;
  const int64_t generation = barrier.generation;
  if (++barrier.arrived > threads) fail("too many threads at a barrier");
  if (barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else if (wait) {
    while (barrier.generation == generation) yield();
  }
}

}  // namespace

void sync_threads() { wait_at(device.all_threads, device.num_threads, /*wait=*/true); }

void named_barrier(int id, int threads, bool wait) {
  wait_at(device.named_barriers[id], threads, wait);
}

uint32_t exchange(uint32_t value, int source, Source kind) {
  const int lane = device.current % kWarp, first = device.current - lane;
  auto* const warp = device.fibers.data() + first;
  const int64_t number = ++warp[lane].num_exchanges;
  warp[lane].words[number % 4] = value;
  ++device.progress;
  for (int other = 0; other < kWarp; ++other)
    while (warp[other].num_exchanges < number) {
      if (warp[other].is_done) fail("a warp's operation without all of its lanes");
      yield();
    }
  return warp[kind == Source::kLane ? source : lane ^ source].words[number % 4];
}

char* shared(uint32_t address) { return shared_memory + (address - kFirstAddress); }
uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - shared_memory) + kFirstAddress;
}

void barrier_init(uint32_t barrier, int arrivals) {
  device.barriers[barrier] = {.arrivals = arrivals, .pending = arrivals, .bytes = 0, .phase = 0};
}
void barrier_arrive(uint32_t barrier, int expected_bytes) {
  Barrier& state = barrier_at(barrier);
  state.bytes += expected_bytes;
  --state.pending;
  settle(state);
}
bool barrier_phase_is_over(uint32_t barrier, int parity) {
  return barrier_at(barrier).phase != parity;
}

void copy_box(const Map& map, const Box& box) {
  constexpr int kMaxDelay = 40;
  if (box.target % 1024 != 0) fail("a box that is not at a multiple of 1024 bytes");
  ++device.progress;
  device.copies.push_back(
      {.map = map, .box = box, .delay = static_cast<int>(device.random() % kMaxDelay)});
}

Fragments& fragments(int warp) { return device.fragments[warp]; }

}  // namespace parallax::emulation
