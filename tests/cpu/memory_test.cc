// Forward and backward at a length where a Tq x Tk buffer would be seen.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/backend.h"
#include "parallax/parallel.h"
#include "parallax/tensor.h"
#include "support/cpu_backends.h"
#include "support/host_tensor.h"

// Every allocation of this test program is counted, operator new's among them: it calls these. Only
// with glibc, and not under sanitizers, which bring their own.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {

std::atomic<int64_t> allocated_bytes = 0;

}  // namespace

extern "C" {

void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* pointer, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) {
  allocated_bytes += static_cast<int64_t>(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  allocated_bytes += static_cast<int64_t>(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* pointer, size_t bytes) {
  allocated_bytes += static_cast<int64_t>(bytes);
  return __libc_realloc(pointer, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  allocated_bytes += static_cast<int64_t>(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** pointer, size_t alignment, size_t bytes) {
  *pointer = aligned_alloc(alignment, bytes);
  return *pointer == nullptr ? ENOMEM : 0;
}

}  // extern "C"

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

/// Everything that `call` allocates, freed or not, on one thread.
template <typename Call>
int64_t allocated_by(const Call& call) {
  set_parallel_for([](int64_t num_tasks, const std::function<void(int64_t)>& body) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task);
  });
  const int64_t before = allocated_bytes;
  call();
  const int64_t after = allocated_bytes;
  set_parallel_for({});
  return after - before;
}

// One thread's scratch at D = 8. The scores of one head would be 1 GB, a bit for each 33 MB.
constexpr int64_t kScratchBytes = 200 << 10;

TEST(CpuMemory, AllocationsAreCounted) {
  EXPECT_GE(allocated_by([] { std::vector<char> bytes(1000); }), 1000);
  EXPECT_GE(allocated_by([] { std::free(std::malloc(2000)); }), 2000);
  EXPECT_GE(allocated_by([] {
              ::operator delete(::operator new(64, std::align_val_t(64)), std::align_val_t(64));
            }),
            64);
}

TEST(CpuMemory, LongForwardAllocatesAFixedScratch) {
  Buffers b;
  const auto forward = [&] {
    cpu::backend().forward({.q = rows(b.q),
                            .r = rows(b.r),
                            .k = rows(b.k),
                            .v = rows(b.v),
                            .out = rows(b.out),
                            .out_softmax = rows(b.out_softmax),
                            .lse = stats(b.lse),
                            .t_mean = stats(b.t_mean)});
  };
  EXPECT_LT(allocated_by(forward), kScratchBytes);
}

TEST(CpuMemory, LongBackwardAllocatesInProportionToTheLength) {
  Buffers b;
  const auto backward = [&] {
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
  };
  EXPECT_LT(allocated_by(backward), kScratchBytes + 32 * kT);  // 16 bytes per row are needed
}

TEST(CpuMemory, DecodeAllocatesAFixedScratch) {
  Buffers b;
  const auto decode = [&](int64_t num_queries) {
    cpu::backend().decode({.q = make_view(b.q.data(), {1, num_queries, 1, kD}),
                           .r = make_view(b.r.data(), {1, num_queries, 1, kD}),
                           .k_cache = rows(b.k),
                           .v_cache = rows(b.v),
                           .out = make_view(b.out.data(), {1, num_queries, 1, kD})});
  };
  EXPECT_LT(allocated_by([&] { decode(1); }), kScratchBytes);
  EXPECT_LT(allocated_by([&] { decode(4096); }), kScratchBytes);  // chunked prefill
}

// Each of the sequences, which share a cache, is cut into 16 pieces. The pieces' states of all
// would be 37 MB.
TEST(CpuMemory, DecodeOfManySequencesUsesTheStatesMemoryAgain) {
  constexpr int64_t kSequences = 2048;
  Buffers b;
  std::vector<float> out(kSequences * kD);
  const auto decode = [&](int64_t count) {
    cpu::backend().decode({.q = make_view(b.q.data(), {count, 1, 1, kD}),
                           .r = make_view(b.r.data(), {count, 1, 1, kD}),
                           .k_cache = make_view(b.k.data(), {count, kT, 1, kD}, {0, kD, kD, 1}),
                           .v_cache = make_view(b.v.data(), {count, kT, 1, kD}, {0, kD, kD, 1}),
                           .out = make_view(out.data(), {count, 1, 1, kD})});
  };
  EXPECT_LT(allocated_by([&] { decode(kSequences); }), 20 << 20);
  const std::vector<float> all = out;
  for (const int64_t idx : {int64_t{0}, kSequences / 2, kSequences - 1}) {
    const auto first = static_cast<size_t>(idx * kD);
    std::copy_n(b.q.begin() + idx * kD, kD, b.q.begin());
    std::copy_n(b.r.begin() + idx * kD, kD, b.r.begin());
    decode(1);
    for (size_t d = 0; d < kD; ++d) EXPECT_EQ(out[d], all[first + d]) << idx;
  }
}

/// Forward and backward, or decoding, of some heads.
class HeadsCall {
 public:
  explicit HeadsCall(int64_t heads, int64_t tokens = kTokens, int64_t size = kSize,
                     DType dtype = DType::kBFloat16)
      : rows_{1, tokens, heads, size}, stats_{1, heads, tokens}, in_(dtype, rows_) {}

  void decode(const Backend& backend) {
    backend.decode({.q = token_.view(),
                    .r = token_.view(),
                    .k_cache = in_.view(),
                    .v_cache = in_.view(),
                    .out = token_out_.view()});
  }

  void forward(const Backend& backend) {
    backend.forward({.q = in_.view(),
                     .r = in_.view(),
                     .k = in_.view(),
                     .v = in_.view(),
                     .out = out_.view(),
                     .out_softmax = out_softmax_.view(),
                     .lse = lse_.view(),
                     .t_mean = t_mean_.view()});
  }

  void backward(const Backend& backend) {
    backend.backward({.d_out = in_.view(),
                      .q = in_.view(),
                      .r = in_.view(),
                      .k = in_.view(),
                      .v = in_.view(),
                      .out = out_.view(),
                      .out_softmax = out_softmax_.view(),
                      .lse = lse_.view(),
                      .t_mean = t_mean_.view(),
                      .dq = dq_.view(),
                      .dr = dr_.view(),
                      .dk = dk_.view(),
                      .dv = dv_.view()});
  }

  void run(const Backend& backend) {
    forward(backend);
    backward(backend);
  }

  static constexpr int64_t kTokens = 320, kSize = 32;  // five tiles: a wave is one head
  static constexpr int64_t kPackedBytes = 9 * kTokens * kSize * 2;  // of one head, backward

 private:
  std::vector<int64_t> rows_, stats_;
  HostTensor in_, out_ = in_, out_softmax_ = in_;
  HostTensor token_{in_.dtype(), {1, 1, rows_[2], rows_[3]}}, token_out_ = token_;
  HostTensor dq_ = in_, dr_ = in_, dk_ = in_, dv_ = in_;
  HostTensor lse_{DType::kFloat32, stats_}, t_mean_ = lse_;
};

// Packed operands are those of one wave of heads; the next wave gets their memory.
TEST(CpuMemory, ManyHeadsPackNoMoreThanOneWave) {
  const Backend& matrix_unit = *cpu_backends().back();
  HeadsCall one(1), eight(8);
  EXPECT_GT(allocated_by([&] { one.run(matrix_unit); }), HeadsCall::kPackedBytes);
  EXPECT_LT(allocated_by([&] { eight.run(matrix_unit); }), HeadsCall::kPackedBytes);
}

/// The same on a new thread, which has no scratch yet.
template <typename Call>
int64_t allocated_by_a_thread(const Call& call) {
  int64_t bytes = 0;
  std::thread([&] { bytes = allocated_by(call); }).join();
  return bytes;
}

// The largest head size, and as many heads as a task of decoding takes. Beside the scratch: 9
// packed copies, or two fp32 sums, of 64 tokens.
TEST(CpuMemory, AThreadWorksInTwoMegabytes) {
  constexpr int64_t kLimit = 2 << 20, kTokens = 64, kCopies = 9 * kTokens * cpu::kMaxHeadDim * 2;
  for (const Backend* backend : cpu_backends())
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      HeadsCall one(1, kTokens, cpu::kMaxHeadDim, dtype);
      HeadsCall many(cpu::kMaxTileHeads * 16, kTokens, cpu::kMaxHeadDim, dtype);
      // A thread each: one that has a call's scratch frees it for a call that needs more.
      EXPECT_LE(allocated_by_a_thread([&] { one.forward(*backend); }), kLimit + kCopies)
          << backend->description();
      EXPECT_LE(allocated_by_a_thread([&] { one.backward(*backend); }), kLimit + kCopies)
          << backend->description();
      EXPECT_LE(allocated_by_a_thread([&] { many.decode(*backend); }), kLimit)
          << backend->description();
    }
}

}  // namespace
}  // namespace parallax::testing

#endif
