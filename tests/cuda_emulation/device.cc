// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulation/device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <unordered_map>
#include <vector>

#include "cuda_emulation/cuda_on_host.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The kernels' `extern __shared__` arrays, all one memory: 227 KB, and some more to see writes
// beyond. Names in unnamed namespaces are those that no declaration can define.
extern "C" {
alignas(1024) char parallax_shared_memory[240 * 1024];
extern char sm90_array[] asm("_ZN8parallax4cuda4sm9013shared_memoryE")
    __attribute__((alias("parallax_shared_memory")));
extern char row_ops_array[] asm("_ZN8parallax4cuda7row_ops12_GLOBAL__N_116norm_rope_memoryE")
    __attribute__((alias("parallax_shared_memory")));
extern char portable_array[] asm("_ZN8parallax4cuda8portable12_GLOBAL__N_113shared_memoryE")
    __attribute__((alias("parallax_shared_memory")));
}

namespace parallax::emulation {
namespace {

constexpr unsigned kHopperSharedBytes = 227 * 1024;
constexpr size_t kStackBytes = 128 * 1024;
constexpr int kWarp = 32, kWarpgroup = 128;
constexpr char kPoison = '\xff';

struct Barrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  int phase = 0;
};
struct NamedBarrier {
  int arrived = 0;
  int64_t generation = 0;
  bool any = false;              // of the conditions so far
  bool last_any[2] = {};         // of whole generations, even and odd
  std::source_location where{};  // of the first arrival
};
struct Copy {
  Map map;
  Box box;
  unsigned delay;  // turns
};
struct IssuedProduct {
  Product product;
  int group;
};
struct Fiber {
  void* stack_pointer = nullptr;
  std::vector<char> stack{};
  bool is_done = false;
  int64_t num_exchanges = 0;
  uint32_t words[4] = {};  // of the last exchanges
  std::vector<IssuedProduct> products{};
  int num_groups = 0;
};

/// What is drawn, some of it anew from time to time.
struct Schedule {
  unsigned copy_delay = 1;           // turns, at most
  std::vector<int> order{};          // of the warps
  std::vector<unsigned> idleness{};  // of a warp: of 64 turns, how many it leaves out
  std::vector<bool> late{};          // a warp's products are computed when they are waited for
};

struct Device {
  std::vector<Fiber> fibers{};
  int current = 0, num_threads = 0;
  void* scheduler = nullptr;
  const std::function<void()>* body = nullptr;
  int64_t progress = 0;  // grows with everything that may let somebody go on
  std::unordered_map<uint32_t, Barrier> barriers{};
  NamedBarrier named_barriers[16]{}, warpgroups[8]{}, all_threads{};
  std::vector<Copy> copies{};
  Schedule schedule{};
  uint64_t seed = 1;
  std::mt19937_64 random{1};
  unsigned shared_limit = kHopperSharedBytes;
  Fragments fragments[32];
};
Device device;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated device: %s (block %u, thread %u, PLX_TEST_SEED=%llu)\n", what,
               blockIdx.x, threadIdx.x, static_cast<unsigned long long>(device.seed));
  std::abort();
}

template <typename Number, size_t kCount>
Number one_of(const Number (&numbers)[kCount]) {
  return numbers[device.random() % kCount];
}

// --- fibers ---

/// Pushes what a called function must keep, and goes on where `load` was saved. swapcontext() would
/// do too, but takes two system calls, 0.2 us: minutes for the tests of this folder.
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

Fiber& fiber_of(int thread) { return device.fibers[static_cast<size_t>(thread)]; }
Fiber& current_fiber() { return fiber_of(device.current); }

void run_fiber() {
  (*device.body)();
  if (!current_fiber().products.empty()) fail("a thread ended before its products");
  current_fiber().is_done = true;
  ++device.progress;
  yield();
  std::abort();
}

void start(Fiber& fiber) {
  fiber.stack.resize(kStackBytes);
  fiber.stack.front() = kPoison;
  const auto end = reinterpret_cast<uintptr_t>(fiber.stack.data()) + kStackBytes;
  auto** top = reinterpret_cast<void**>(end & ~uintptr_t{63});
  *--top = nullptr;  // the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.is_done = false;
  fiber.num_exchanges = 0;
  fiber.num_groups = 0;
}

void resume(int thread) {
  device.current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  parallax_switch_stack(&device.scheduler, fiber_of(thread).stack_pointer);
}

// --- barriers and copies ---

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

/// Whether any of the threads has passed true, once all are here.
bool wait_at(NamedBarrier& barrier, int threads, Arrival arrival, bool condition = false) {
  ++device.progress;
  const int64_t generation = barrier.generation;
  barrier.any |= condition;
  if (++barrier.arrived > threads) fail("too many threads at a barrier");
  if (barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.last_any[generation % 2] = barrier.any;
    barrier.any = false;
    ++barrier.generation;
  } else if (arrival == Arrival::kWait) {
    while (barrier.generation == generation) yield();
  }
  return barrier.last_any[generation % 2];
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

/// Lets that many turns pass for the copy engine.
void run_copies(unsigned turns) {
  std::vector<Copy> later;
  for (Copy& copy : device.copies) {
    if (copy.delay < turns) {
      finish_copy(copy);
    } else {
      copy.delay -= turns;
      later.push_back(copy);
    }
  }
  device.copies = std::move(later);
}

/// Nobody goes on before the next copy lands.
void skip_to_next_copy() {
  const auto earlier = [](const Copy& a, const Copy& b) { return a.delay < b.delay; };
  run_copies(std::min_element(device.copies.begin(), device.copies.end(), earlier)->delay + 1);
}

// --- the schedule ---

/// Until the next call. A step of the Hopper kernels takes some 50 turns if no warp idles.
void draw_pace(Schedule& schedule) {
  schedule.copy_delay = one_of({1u, 20u, 200u, 2000u});
  const bool some_idle = device.random() % 2 == 0;
  for (unsigned& idleness : schedule.idleness)
    idleness = some_idle ? one_of({0u, 0u, 0u, 32u, 62u}) : 0u;
}

Schedule draw_schedule(int num_warps) {
  Schedule schedule;
  for (int warp = 0; warp < num_warps; ++warp) {
    schedule.order.push_back(warp);
    schedule.late.push_back(device.random() % 2 == 0);
  }
  schedule.idleness.resize(schedule.order.size());
  draw_pace(schedule);
  return schedule;
}

enum class Turn : uint8_t { kDrawn, kEverybody };

/// Lets warps run until each of their threads waits. Returns whether a thread is left.
bool run_turn(Turn turn) {
  constexpr unsigned kTurnsOfAPace = 256;
  if (device.random() % kTurnsOfAPace == 0) draw_pace(device.schedule);
  auto& order = device.schedule.order;
  const bool forward = device.random() % 2 == 0;
  std::swap(order[device.random() % order.size()], order[device.random() % order.size()]);
  bool is_left = false;
  for (const int warp : order) {
    const bool idle = device.random() % 64 < device.schedule.idleness[static_cast<size_t>(warp)];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int thread = warp * kWarp + (forward ? lane : kWarp - 1 - lane);
      if (fiber_of(thread).is_done) continue;
      is_left = true;
      if (idle && turn == Turn::kDrawn) break;
      resume(thread);
    }
  }
  return is_left;
}

void run_block() {
  for (int thread = 0; thread < device.num_threads; ++thread) start(fiber_of(thread));
  Turn turn = Turn::kDrawn;
  while (true) {
    const int64_t before = device.progress;
    run_copies(1);
    if (!run_turn(turn)) break;
    if (device.progress != before) {
      turn = Turn::kDrawn;
    } else if (turn == Turn::kDrawn) {
      turn = Turn::kEverybody;
    } else if (!device.copies.empty()) {
      skip_to_next_copy();
    } else {
      fail("deadlock");
    }
  }
  if (!device.copies.empty()) fail("a block ended before its copies");
  for (int thread = 0; thread < device.num_threads; ++thread)
    if (fiber_of(thread).stack.front() != kPoison) fail("a thread's stack is too small");
}

}  // namespace

void set_seed(uint64_t seed) {
  device.seed = seed;
  device.random.seed(seed);
}

void set_shared_limit(unsigned bytes) { device.shared_limit = bytes; }
unsigned shared_limit() { return device.shared_limit; }

void launch(const Size& size, const std::function<void()>& body) {
  if (size.shared_bytes > device.shared_limit) fail("too much shared memory");
  if (size.threads == 0 || size.threads > 1024 || size.threads % kWarp != 0 || size.blocks_x == 0 ||
      size.blocks_y == 0 || size.blocks_y > 65535)
    fail("no such grid");
  device.num_threads = static_cast<int>(size.threads);
  if (device.fibers.size() < size.threads) device.fibers.resize(size.threads);
  device.body = &body;
  gridDim = dim3(size.blocks_x, size.blocks_y);
  blockDim = dim3(size.threads);
  const unsigned num_blocks = size.blocks_x * size.blocks_y;
  const bool forward = device.random() % 2 == 0;
  for (unsigned turn = 0; turn < num_blocks; ++turn) {
    const unsigned block = forward ? turn : num_blocks - 1 - turn;
    blockIdx = {block % size.blocks_x, block / size.blocks_x, 0};
    std::memset(parallax_shared_memory, kPoison, sizeof parallax_shared_memory);
    device.barriers.clear();
    for (NamedBarrier& barrier : device.named_barriers) barrier = {};
    for (NamedBarrier& barrier : device.warpgroups) barrier = {};
    device.all_threads = {};
    device.schedule = draw_schedule(device.num_threads / kWarp);
    run_block();
    const char* const beyond = parallax_shared_memory + size.shared_bytes;
    const size_t rest = sizeof parallax_shared_memory - size.shared_bytes;
    if (*beyond != kPoison || std::memcmp(beyond, beyond + 1, rest - 1) != 0)
      fail("a write beyond the shared memory");
  }
}

void yield() { parallax_switch_stack(&current_fiber().stack_pointer, device.scheduler); }

void sync_threads() { wait_at(device.all_threads, device.num_threads, Arrival::kWait); }

bool named_barrier(int id, int threads, Arrival arrival, bool condition) {
  return wait_at(device.named_barriers[id], threads, arrival, condition);
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
  if (box.target % 1024 != 0) fail("a box that is not at a multiple of 1024 bytes");
  ++device.progress;
  const auto delay = static_cast<unsigned>(device.random() % device.schedule.copy_delay);
  device.copies.push_back({.map = map, .box = box, .delay = delay});
}

void issue_product(const Product& product) {
  Fiber& fiber = current_fiber();
  if (device.schedule.late[static_cast<size_t>(device.current / kWarp)])
    fiber.products.push_back({product, fiber.num_groups});
  else
    product.run(product);
}

void commit_products() { ++current_fiber().num_groups; }

void wait_products(int groups, const std::source_location& where) {
  NamedBarrier& warpgroup = device.warpgroups[device.current / kWarpgroup];
  if (warpgroup.arrived == 0) warpgroup.where = where;
  if (where.line() != warpgroup.where.line() ||
      std::strcmp(where.function_name(), warpgroup.where.function_name()) != 0)
    fail("a warpgroup whose threads wait for products in different places");
  Fiber& fiber = current_fiber();
  auto& issued = fiber.products;
  auto next = issued.begin();
  for (; next != issued.end() && next->group < fiber.num_groups - groups; ++next)
    next->product.run(next->product);
  issued.erase(issued.begin(), next);
  wait_at(warpgroup, kWarpgroup, Arrival::kWait);
}

Fragments& fragments(int warp) { return device.fragments[warp]; }

}  // namespace parallax::emulation
