// The forward pass: cases computed by hand, and what must hold for every case.
// Values are of order 1 to 10 and sums have at most a few dozen terms, so 1e-12 is 1e3 to 1e4 times
// the rounding of a double.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "reference/float64_call.h"

namespace parallax::testing {
namespace {

constexpr double kTolerance = 1e-12;

TEST(ReferenceForward, TwoKeysByHand) {
  // D = 1, scale 1: s = (0, ln 3), so p = (1/4, 3/4); t = r k = 2 ln3 (0, 1).
  const double ln3 = std::log(3.0);
  Inputs in{.options = {.softmax_scale = 1.0f, .mask = Mask::kFull}};
  in.q = Doubles({1, 1, 1, 1}, 1.0);
  in.r = Doubles({1, 1, 1, 1}, 2.0);
  in.k = Doubles({1, 2, 1, 1});
  in.k.data = {0.0, ln3};
  in.v = Doubles({1, 2, 1, 1});
  in.v.data = {8.0, -4.0};
  const Result result = forward(in);
  EXPECT_NEAR(result.lse.data[0], std::log(4.0), kTolerance);
  EXPECT_NEAR(result.t_mean.data[0], 1.5 * ln3, kTolerance);
  EXPECT_NEAR(result.out_softmax.data[0], -1.0, kTolerance);
  // Cov_p(v, k) = E[vk] - E[v] E[k] = -3 ln3 + 3/4 ln3 = -9/4 ln3, times r = 2.
  EXPECT_NEAR(result.out.data[0], -1.0 + 4.5 * ln3, kTolerance);
}

TEST(ReferenceForward, DefaultScaleIsTheInverseRootOfTheHeadSize) {
  Inputs in = Inputs::random({.Tq = 3, .Tk = 5, .D = 16});
  const Result by_default = forward(in);
  in.options.softmax_scale = 0.25f;
  expect_same(by_default, forward(in), 0.0);
}

TEST(ReferenceForward, ScaleDoesNotTouchTheCovarianceScore) {
  Inputs in = Inputs::random({.Tq = 1, .Tk = 4, .D = 3}, {.softmax_scale = 0.0f});
  const Result result = forward(in);
  double sum_t = 0.0;
  for (int64_t key = 0; key < 4; ++key)
    sum_t += std::inner_product(in.r.data.begin(), in.r.data.end(), in.k.row(0, key, 0), 0.0);
  EXPECT_NEAR(result.t_mean.data[0], sum_t / 4.0, kTolerance);
}

/// Which keys a query sees, found from the outside: v is one-hot in the key, D >= Tk, r = 0.
std::vector<int64_t> seen_keys(Inputs& in, int64_t query) {
  in.v = Doubles(in.v.sizes);
  in.r = Doubles(in.r.sizes);
  for (int64_t key = 0; key < in.k.sizes[1]; ++key) in.v.row(0, key, 0)[key] = 1.0;
  Result result = forward(in);
  std::vector<int64_t> keys;
  for (int64_t key = 0; key < in.k.sizes[1]; ++key)
    if (result.out.row(0, query, 0)[key] != 0.0) keys.push_back(key);
  return keys;
}

TEST(ReferenceForward, CausalMaskIsEndAligned) {
  Inputs in = Inputs::random({.Tq = 3, .Tk = 5, .D = 8});
  EXPECT_EQ(seen_keys(in, 0), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(seen_keys(in, 2), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  Inputs more_queries = Inputs::random({.Tq = 5, .Tk = 3, .D = 8});
  EXPECT_EQ(seen_keys(more_queries, 1), (std::vector<int64_t>{}));
  EXPECT_EQ(seen_keys(more_queries, 2), (std::vector<int64_t>{0}));
}

TEST(ReferenceForward, WindowKeepsTheNewestKeysWithTheDiagonal) {
  Inputs in = Inputs::random({.Tq = 3, .Tk = 6, .D = 8}, {.window = 2});
  EXPECT_EQ(seen_keys(in, 0), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(seen_keys(in, 2), (std::vector<int64_t>{4, 5}));
  in.options.window = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(seen_keys(in, 0), (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(ReferenceForward, FullMaskSeesAllKeys) {
  Inputs in = Inputs::random({.Tq = 4, .Tk = 3, .D = 8}, {.mask = Mask::kFull});
  for (int64_t query : {0, 3}) EXPECT_EQ(seen_keys(in, query), (std::vector<int64_t>{0, 1, 2}));
}

TEST(ReferenceForward, RowWithoutKeysIsZeroWithLseMinusInfinity) {
  Inputs in = Inputs::random({.B = 2, .Tq = 3, .Tk = 2, .Hq = 2, .D = 4});
  in.k = random_tensor({2, 2, 1, 4}, 5);
  Result result = forward(in);
  for (int64_t batch : {0, 1}) {
    for (int64_t head : {0, 1}) {
      for (int64_t d = 0; d < 4; ++d) {
        EXPECT_EQ(result.out.row(batch, 0, head)[d], 0.0);
        EXPECT_EQ(result.out_softmax.row(batch, 0, head)[d], 0.0);
      }
      const auto stat = static_cast<size_t>((batch * 2 + head) * 3);
      EXPECT_EQ(result.lse.data[stat], -kInfinity);
      EXPECT_EQ(result.t_mean.data[stat], 0.0);
      EXPECT_TRUE(std::isfinite(result.lse.data[stat + 1]));
    }
  }
}

TEST(ReferenceForward, OneVisibleKeyGivesItsValueExactly) {
  Inputs in = Inputs::random({.Tq = 6, .Tk = 6, .Hq = 2, .Hkv = 2, .D = 7}, {.window = 1});
  for (double& value : in.r.data) value *= 1e6;
  EXPECT_EQ(forward(in).out.data, in.v.data);
}

TEST(ReferenceForward, ZeroProbeIsSoftmaxAttention) {
  Inputs in = Inputs::random({.B = 2, .Tq = 9, .Tk = 9, .Hq = 4, .Hkv = 2, .D = 5});
  in.r = Doubles(in.r.sizes);
  const Result result = forward(in);
  EXPECT_EQ(result.out.data, result.out_softmax.data);
  EXPECT_EQ(*std::max_element(result.t_mean.data.begin(), result.t_mean.data.end()), 0.0);
}

TEST(ReferenceForward, OutputIsTheMeanMinusTheCovarianceTimesTheProbe) {
  // Cov_p(v, k) computed from its definition with p = softmax of all keys.
  const int64_t Tk = 11, D = 3;
  Inputs in = Inputs::random({.Tq = 1, .Tk = Tk, .D = D});
  Result result = forward(in);
  std::vector<double> p;
  for (int64_t key = 0; key < Tk; ++key)
    p.push_back(
        std::exp(std::inner_product(in.q.data.begin(), in.q.data.end(), in.k.row(0, key, 0), 0.0) /
                 std::sqrt(3.0)));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  EXPECT_NEAR(result.lse.data[0], std::log(sum), kTolerance);
  for (int64_t d = 0; d < D; ++d) {
    double mean_v = 0.0;
    for (int64_t key = 0; key < Tk; ++key)
      mean_v += p[static_cast<size_t>(key)] * in.v.row(0, key, 0)[d];
    double expected = mean_v;
    for (int64_t e = 0; e < D; ++e) {
      double mean_k = 0.0, covariance = 0.0;
      for (int64_t key = 0; key < Tk; ++key)
        mean_k += p[static_cast<size_t>(key)] * in.k.row(0, key, 0)[e];
      for (int64_t key = 0; key < Tk; ++key)
        covariance += p[static_cast<size_t>(key)] * (in.v.row(0, key, 0)[d] - mean_v) *
                      (in.k.row(0, key, 0)[e] - mean_k);
      expected -= covariance * in.r.data[static_cast<size_t>(e)];
    }
    EXPECT_NEAR(result.out.data[static_cast<size_t>(d)], expected, kTolerance);
    EXPECT_NEAR(result.out_softmax.data[static_cast<size_t>(d)], mean_v, kTolerance);
  }
}

TEST(ReferenceForward, QueryHeadReadsItsGroupsKeyHead) {
  Inputs in = Inputs::random({.Tq = 4, .Tk = 4, .Hq = 6, .Hkv = 2, .D = 3});
  const Result grouped = forward(in);
  Inputs repeated = in;
  repeated.k = Doubles({1, 4, 6, 3});
  repeated.v = Doubles({1, 4, 6, 3});
  for (int64_t key = 0; key < 4; ++key) {
    for (int64_t head = 0; head < 6; ++head) {
      std::copy_n(in.k.row(0, key, head / 3), 3, repeated.k.row(0, key, head));
      std::copy_n(in.v.row(0, key, head / 3), 3, repeated.v.row(0, key, head));
    }
  }
  expect_same(grouped, forward(repeated), 0.0);
}

TEST(ReferenceForward, PermutingKeysWithoutMaskChangesNothing) {
  Inputs in = Inputs::random({.Tq = 4, .Tk = 9, .D = 5}, {.mask = Mask::kFull});
  Inputs reversed = in;
  for (int64_t key = 0; key < 9; ++key) {
    std::copy_n(in.k.row(0, key, 0), 5, reversed.k.row(0, 8 - key, 0));
    std::copy_n(in.v.row(0, key, 0), 5, reversed.v.row(0, 8 - key, 0));
  }
  expect_same(forward(in), forward(reversed), kTolerance);
}

TEST(ReferenceForward, ShiftingTheCovarianceScoreOfARowChangesOnlyItsMean) {
  // One more key coordinate, constant over keys: r's entry there shifts t of the whole row.
  Inputs in = Inputs::random({.Tq = 5, .Tk = 7, .D = 4}, {.softmax_scale = 0.5f});
  for (int64_t key = 0; key < 7; ++key) in.k.row(0, key, 0)[3] = 1.0;
  Inputs shifted = in;
  for (int64_t query = 0; query < 5; ++query) shifted.r.row(0, query, 0)[3] += 50.0;
  Result expected = forward(in);
  for (double& t_mean : expected.t_mean.data) t_mean += 50.0;
  expect_same(expected, forward(shifted), 1e-11);  // t near 50 costs two digits
}

TEST(ReferenceForward, FutureKeysDoNotMatterEvenIfNaN) {
  Inputs in = Inputs::random({.Tq = 6, .Tk = 6, .D = 4});
  Result clean = forward(in);
  for (int64_t d = 0; d < 4; ++d) in.k.row(0, 5, 0)[d] = in.v.row(0, 5, 0)[d] = kNaN;
  Result poisoned = forward(in);
  EXPECT_TRUE(
      std::equal(clean.out.data.begin(), clean.out.data.end() - 4, poisoned.out.data.begin()));
  EXPECT_TRUE(std::isnan(poisoned.out.data.back()));
}

TEST(ReferenceForward, PackedSequencesEqualSeparateCalls) {
  const std::vector<int32_t> q_ends = {0, 3, 3, 7, 8}, k_ends = {0, 5, 6, 6, 8};
  Inputs packed{.q = random_tensor({8, 4, 5}, 1),
                .r = random_tensor({8, 4, 5}, 2),
                .k = random_tensor({8, 2, 5}, 3),
                .v = random_tensor({8, 2, 5}, 4),
                .cu_seqlens_q = ints(q_ends),
                .cu_seqlens_k = ints(k_ends)};
  const Result whole = forward(packed);
  for (size_t seq = 0; seq + 1 < q_ends.size(); ++seq) {
    const auto slice = [](const Doubles& from, int32_t begin, int32_t end, int64_t heads) {
      Doubles part({1, end - begin, heads, 5});
      std::copy(from.data.begin() + begin * heads * 5, from.data.begin() + end * heads * 5,
                part.data.begin());
      return part;
    };
    Inputs one{.q = slice(packed.q, q_ends[seq], q_ends[seq + 1], 4),
               .r = slice(packed.r, q_ends[seq], q_ends[seq + 1], 4),
               .k = slice(packed.k, k_ends[seq], k_ends[seq + 1], 2),
               .v = slice(packed.v, k_ends[seq], k_ends[seq + 1], 2)};
    const Result alone = forward(one);
    EXPECT_EQ(alone.out.data, slice(whole.out, q_ends[seq], q_ends[seq + 1], 4).data);
    for (size_t head = 0; head < 4; ++head)
      for (size_t i = 0; i < one.q.data.size() / 20; ++i)
        EXPECT_EQ(alone.lse.data[head * one.q.data.size() / 20 + i],
                  whole.lse.data[head * 8 + static_cast<size_t>(q_ends[seq]) + i]);
  }
}

TEST(ReferenceForward, StridedViewsEqualContiguousOnes) {
  // q and r interleaved in one buffer; k with reversed tokens; out written head-major.
  Inputs in = Inputs::random({.B = 2, .Tq = 4, .Tk = 4, .Hq = 2, .Hkv = 1, .D = 3});
  Result expected = forward(in);
  std::vector<double> both(in.q.data.size() * 2, kNaN), k_reversed(in.k.data.size());
  for (size_t row = 0; row < in.q.data.size() / 3; ++row) {
    std::copy_n(in.q.data.begin() + static_cast<int64_t>(row * 3), 3,
                both.begin() + static_cast<int64_t>(row * 6));
    std::copy_n(in.r.data.begin() + static_cast<int64_t>(row * 3), 3,
                both.begin() + static_cast<int64_t>(row * 6 + 3));
  }
  for (int64_t batch : {0, 1})
    for (int64_t key = 0; key < 4; ++key)
      std::copy_n(in.k.row(batch, key, 0), 3, k_reversed.begin() + (batch * 4 + 3 - key) * 3);
  std::vector<double> out(in.q.data.size(), kNaN);
  const ForwardArgs args{.q = make_view(both.data(), {2, 4, 2, 3}, {48, 12, 6, 1}),
                         .r = make_view(both.data() + 3, {2, 4, 2, 3}, {48, 12, 6, 1}),
                         .k = make_view(k_reversed.data() + 9, {2, 4, 1, 3}, {12, -3, 3, 1}),
                         .v = in.v.view(),
                         .out = make_view(out.data(), {2, 4, 2, 3}, {24, 3, 12, 1})};
  core::validate(args);
  reference::backend().forward(args);
  for (int64_t batch : {0, 1})
    for (int64_t query = 0; query < 4; ++query)
      for (int64_t head : {0, 1})
        for (int64_t d = 0; d < 3; ++d)
          EXPECT_EQ(out[static_cast<size_t>(batch * 24 + query * 3 + head * 12 + d)],
                    expected.out.row(batch, query, head)[d]);
}

template <typename T>
Tensor<T> converted(const Doubles& tensor) {
  Tensor<T> result(tensor.sizes);
  std::transform(tensor.data.begin(), tensor.data.end(), result.data.begin(),
                 [](double value) { return static_cast<T>(static_cast<float>(value)); });
  return result;
}

/// The result in T is the float64 result of the same rounded inputs, rounded once.
template <typename T>
void expect_rounded_float64_result() {
  Inputs in = Inputs::random({.B = 1, .Tq = 5, .Tk = 8, .Hq = 2, .Hkv = 1, .D = 6});
  auto q = converted<T>(in.q), r = converted<T>(in.r), k = converted<T>(in.k),
       v = converted<T>(in.v);
  const auto widen = [](Doubles& wide, const Tensor<T>& narrow) {
    std::transform(narrow.data.begin(), narrow.data.end(), wide.data.begin(),
                   [](T value) { return static_cast<double>(static_cast<float>(value)); });
  };
  widen(in.q, q), widen(in.r, r), widen(in.k, k), widen(in.v, v);
  const Result wide = forward(in);
  Tensor<T> out(in.q.sizes);
  Tensor<float> lse({1, 2, 5});
  const ForwardArgs args{.q = q.view(),
                         .r = r.view(),
                         .k = k.view(),
                         .v = v.view(),
                         .out = out.view(),
                         .lse = lse.view()};
  core::validate(args);
  reference::backend().forward(args);
  for (size_t idx = 0; idx < out.data.size(); ++idx)
    EXPECT_EQ(static_cast<float>(out.data[idx]),
              static_cast<float>(static_cast<T>(static_cast<float>(wide.out.data[idx]))));
  for (size_t idx = 0; idx < lse.data.size(); ++idx)
    EXPECT_EQ(lse.data[idx], static_cast<float>(wide.lse.data[idx]));
}

TEST(ReferenceForward, Float32IsTheRoundedFloat64Result) { expect_rounded_float64_result<float>(); }
TEST(ReferenceForward, BFloat16IsTheRoundedFloat64Result) {
  expect_rounded_float64_result<BFloat16>();
}
TEST(ReferenceForward, Float16IsTheRoundedFloat64Result) {
  expect_rounded_float64_result<Float16>();
}

TEST(ReferenceForward, EmptyBatchAndEmptySequencesAreAllowed) {
  Inputs no_batch = Inputs::random({.B = 0, .Tq = 3, .Tk = 3, .D = 2});
  EXPECT_TRUE(forward(no_batch).out.data.empty());
  Inputs no_query = Inputs::random({.B = 2, .Tq = 0, .Tk = 3, .D = 2});
  EXPECT_TRUE(forward(no_query).out.data.empty());
  Inputs no_key = Inputs::random({.B = 1, .Tq = 2, .Tk = 0, .D = 2});
  EXPECT_EQ(forward(no_key).out.data, (std::vector<double>{0, 0, 0, 0}));
}

}  // namespace
}  // namespace parallax::testing
