// Calls of the public functions on owned float64 tensors, for tests of the definition itself.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/validate.h"
#include "parallax/parallax.h"
#include "reference/backend.h"

namespace parallax::testing {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A contiguous tensor with its memory.
template <typename T>
struct Tensor {
  std::vector<int64_t> sizes;
  std::vector<T> data;

  Tensor() = default;
  explicit Tensor(std::vector<int64_t> shape, T value = T{}) : sizes(std::move(shape)) {
    size_t count = 1;
    for (int64_t size : sizes) count *= static_cast<size_t>(size);
    data.assign(count, value);
  }
  /// Undefined if no shape was given.
  TensorView view() {
    TensorView result;
    result.data = data.data();
    result.dtype = internal::dtype_of<T>();
    result.rank = static_cast<int>(sizes.size());
    int64_t stride = 1;
    for (size_t dim = sizes.size(); dim-- > 0;) {
      result.sizes[dim] = sizes[dim];
      result.strides[dim] = stride;
      stride *= sizes[dim];
    }
    return result;
  }
  /// Row `token` of head `head` of batch entry `batch`, for [B, T, H, D].
  T* row(int64_t batch, int64_t token, int64_t head) {
    return data.data() + ((batch * sizes[1] + token) * sizes[2] + head) * sizes[3];
  }
};

using Doubles = Tensor<double>;
using Ints = Tensor<int32_t>;

inline Ints ints(std::vector<int32_t> values) {
  Ints tensor({static_cast<int64_t>(values.size())});
  tensor.data = std::move(values);
  return tensor;
}

inline Doubles random_tensor(std::vector<int64_t> sizes, unsigned seed, double scale = 1.0) {
  Doubles tensor(std::move(sizes));
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, scale);
  for (double& value : tensor.data) value = normal(generator);
  return tensor;
}

struct Shape {
  int64_t B = 1, Tq = 1, Tk = 1, Hq = 1, Hkv = 1, D = 1;
};

/// Inputs of forward and backward. Packed when the cu_seqlens are set.
struct Inputs {
  Doubles q{}, r{}, k{}, v{};
  Ints cu_seqlens_q{}, cu_seqlens_k{};
  AttentionOptions options{};

  static Inputs random(const Shape& s, AttentionOptions options = {}, unsigned seed = 1) {
    return {.q = random_tensor({s.B, s.Tq, s.Hq, s.D}, seed),
            .r = random_tensor({s.B, s.Tq, s.Hq, s.D}, seed + 1),
            .k = random_tensor({s.B, s.Tk, s.Hkv, s.D}, seed + 2),
            .v = random_tensor({s.B, s.Tk, s.Hkv, s.D}, seed + 3),
            .options = options};
  }
  bool packed() const { return !cu_seqlens_q.sizes.empty(); }
};

/// Results start as NaN, so that a row nobody writes is seen.
struct Result {
  Doubles out, out_softmax, lse, t_mean;

  explicit Result(const std::vector<int64_t>& q_sizes)
      : out(q_sizes, kNaN), out_softmax(q_sizes, kNaN) {
    const bool packed = q_sizes.size() == 3;
    const std::vector<int64_t> stats =
        packed ? std::vector<int64_t>{q_sizes[1], q_sizes[0]}
               : std::vector<int64_t>{q_sizes[0], q_sizes[2], q_sizes[1]};
    lse = Doubles(stats, kNaN);
    t_mean = Doubles(stats, kNaN);
  }
  PartialState state() { return {out.view(), out_softmax.view(), lse.view(), t_mean.view()}; }
};

inline Result forward(Inputs& in) {
  Result result(in.q.sizes);
  const ForwardArgs args{.q = in.q.view(),
                         .r = in.r.view(),
                         .k = in.k.view(),
                         .v = in.v.view(),
                         .cu_seqlens_q = in.cu_seqlens_q.view(),
                         .cu_seqlens_k = in.cu_seqlens_k.view(),
                         .options = in.options,
                         .out = result.out.view(),
                         .out_softmax = result.out_softmax.view(),
                         .lse = result.lse.view(),
                         .t_mean = result.t_mean.view()};
  core::validate(args);
  reference::backend().forward(args);
  return result;
}

struct Gradients {
  Doubles dq, dr, dk, dv;
};

inline Gradients backward(Inputs& in, Doubles d_out) {
  Result saved = forward(in);
  Gradients grads{Doubles(in.q.sizes, kNaN), Doubles(in.q.sizes, kNaN), Doubles(in.k.sizes, kNaN),
                  Doubles(in.k.sizes, kNaN)};
  const BackwardArgs args{.d_out = d_out.view(),
                          .q = in.q.view(),
                          .r = in.r.view(),
                          .k = in.k.view(),
                          .v = in.v.view(),
                          .out = saved.out.view(),
                          .out_softmax = saved.out_softmax.view(),
                          .lse = saved.lse.view(),
                          .t_mean = saved.t_mean.view(),
                          .cu_seqlens_q = in.cu_seqlens_q.view(),
                          .cu_seqlens_k = in.cu_seqlens_k.view(),
                          .options = in.options,
                          .dq = grads.dq.view(),
                          .dr = grads.dr.view(),
                          .dk = grads.dk.view(),
                          .dv = grads.dv.view()};
  core::validate(args);
  reference::backend().backward(args);
  return grads;
}

/// Largest |a - b|; infinite if a NaN or an infinity stands on one side only.
inline double max_difference(const Doubles& a, const Doubles& b) {
  EXPECT_EQ(a.sizes, b.sizes);
  double worst = 0.0;
  for (size_t idx = 0; idx < a.data.size(); ++idx) {
    if (a.data[idx] == b.data[idx]) continue;
    const double difference = std::abs(a.data[idx] - b.data[idx]);
    worst = std::isnan(difference) ? kInfinity : std::max(worst, difference);
  }
  return worst;
}

inline void expect_same(const Result& a, const Result& b, double tolerance) {
  EXPECT_LE(max_difference(a.out, b.out), tolerance) << "out";
  EXPECT_LE(max_difference(a.out_softmax, b.out_softmax), tolerance) << "out_softmax";
  EXPECT_LE(max_difference(a.lse, b.lse), tolerance) << "lse";
  EXPECT_LE(max_difference(a.t_mean, b.t_mean), tolerance) << "t_mean";
}

}  // namespace parallax::testing
