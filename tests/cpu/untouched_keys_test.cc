// Keys and values that nobody sees are not read: here their pages cannot be. (Poison shows only
// what reaches a result.)
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#ifdef __linux__

#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "parallax/error.h"
#include "support/cpu_backends.h"
#include "support/host_tensor.h"

namespace parallax::testing {
namespace {

constexpr int64_t kKeys = 4096, kD = 64;

/// [1, kKeys, 1, kD], all zeros, of which the keys begin .. end, whole pages, can be read.
class GuardedKeys {
 public:
  GuardedKeys(DType dtype, int64_t begin, int64_t end)
      : dtype_(dtype), bytes_(static_cast<size_t>(kKeys * kD * size_of(dtype))) {
    data_ = ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    PLX_CHECK(data_ != MAP_FAILED, "mmap");
    const auto key_bytes = static_cast<size_t>(kD * size_of(dtype));
    char* const first = static_cast<char*>(data_) + static_cast<size_t>(begin) * key_bytes;
    const size_t length = static_cast<size_t>(end - begin) * key_bytes;
    PLX_CHECK(::mprotect(first, length, PROT_READ) == 0, "mprotect");
  }
  ~GuardedKeys() { ::munmap(data_, bytes_); }
  GuardedKeys(const GuardedKeys&) = delete;
  GuardedKeys& operator=(const GuardedKeys&) = delete;

  ConstTensorView view() const {
    HostTensor shape(dtype_, {1, kKeys, 1, kD});
    ConstTensorView view = std::as_const(shape).view();
    view.data = data_;
    return view;
  }

 private:
  DType dtype_;
  size_t bytes_;
  void* data_;
};

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

HostTensor zeros(DType dtype, const std::vector<int64_t>& sizes) {
  HostTensor tensor(dtype, sizes);
  for (int64_t idx = 0; idx < tensor.num_elements(); ++idx) tensor.set(idx, 0.0);
  return tensor;
}

/// Forward and backward of the newest `num_queries` queries, two heads.
void run_training(const Backend& backend, DType dtype, int64_t num_queries, int64_t window,
                  const GuardedKeys& keys) {
  const HostTensor q = zeros(dtype, {1, num_queries, 2, kD});
  HostTensor out = q, out_softmax = q, dq = q, dr = q;
  HostTensor lse = zeros(DType::kFloat32, {1, 2, num_queries}), t_mean = lse;
  HostTensor dk(dtype, {1, kKeys, 1, kD}), dv = dk;
  const AttentionOptions options{.window = window};
  backend.forward({.q = q.view(),
                   .r = q.view(),
                   .k = keys.view(),
                   .v = keys.view(),
                   .options = options,
                   .out = out.view(),
                   .out_softmax = out_softmax.view(),
                   .lse = lse.view(),
                   .t_mean = t_mean.view()});
  backend.backward({.d_out = q.view(),
                    .q = q.view(),
                    .r = q.view(),
                    .k = keys.view(),
                    .v = keys.view(),
                    .out = out.view(),
                    .out_softmax = out_softmax.view(),
                    .lse = lse.view(),
                    .t_mean = t_mean.view(),
                    .options = options,
                    .dq = dq.view(),
                    .dr = dr.view(),
                    .dk = dk.view(),
                    .dv = dv.view()});
  EXPECT_EQ(out.get(0), 0.0);
  EXPECT_EQ(dk.get(0), 0.0);
}

void run_decoding(const Backend& backend, DType dtype, int64_t num_queries,
                  const AttentionOptions& options, int64_t length, const GuardedKeys& keys) {
  const HostTensor q = zeros(dtype, {1, num_queries, 2, kD});
  HostTensor out = q;
  const HostTensor lengths = HostTensor::ints({static_cast<int32_t>(length)}, {1});
  backend.decode({.q = q.view(),
                  .r = q.view(),
                  .k_cache = keys.view(),
                  .v_cache = keys.view(),
                  .cache_seqlens = lengths.view(),
                  .options = options,
                  .out = out.view()});
  EXPECT_EQ(out.get(0), 0.0);
}

// The oldest key that is seen is 4096 - 40 + 1 - 64 = 3993; the tile of 64 keys begins at 3968.
TEST(UntouchedKeys, TilesBeforeTheWindowAreNotRead) {
  for (const DType dtype : kTypes) {
    const GuardedKeys keys(dtype, 3968, kKeys);
    for (const Backend* backend : cpu_backends()) {
      run_training(*backend, dtype, 40, 64, keys);
      for (const int64_t num_queries : {1, 4, 40})  // few rows, narrow tiles, wide ones
        run_decoding(*backend, dtype, num_queries, {.window = 64}, kKeys, keys);
    }
  }
}

TEST(UntouchedKeys, ACacheIsNotReadBeyondItsLength) {
  for (const DType dtype : kTypes) {
    const GuardedKeys keys(dtype, 0, 2048);
    for (const Backend* backend : cpu_backends())
      for (const int64_t num_queries : {1, 4, 40})
        run_decoding(*backend, dtype, num_queries, {}, 2048, keys);
  }
}

}  // namespace
}  // namespace parallax::testing

#endif
