// The CPU backend's merge has the reference's bits, whatever the layout, dtype and number of rows.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/validate.h"
#include "cpu/backend.h"
#include "reference/backend.h"

namespace parallax::testing {
namespace {

struct Sizes {
  int64_t B, T, H, D;
  bool packed = false;
};

/// The four tensors of a partial, or of a merged result; `gap` elements lie between the rows.
template <typename T>
struct State {
  Sizes sizes;
  int64_t gap;
  std::vector<T> out, out_softmax;
  std::vector<float> lse, t_mean;

  State(const Sizes& given, int64_t between)
      : sizes(given),
        gap(between),
        out(static_cast<size_t>(given.B * given.T * given.H * (given.D + between))),
        out_softmax(out.size()),
        lse(static_cast<size_t>(given.B * given.T * given.H)),
        t_mean(lse.size()) {}

  void fill(std::mt19937& generator, bool without_keys) {
    std::normal_distribution<float> normal;
    for (auto* values : {&out, &out_softmax})
      for (T& value : *values) value = static_cast<T>(normal(generator));
    for (size_t idx = 0; idx < lse.size(); ++idx) {
      lse[idx] = without_keys && idx % 3 != 1 ? -std::numeric_limits<float>::infinity()
                                              : 5.0f * normal(generator);
      t_mean[idx] = 3.0f * normal(generator);
    }
  }

  TensorView values(std::vector<T>& memory) {
    const auto [B, length, H, D, packed] = sizes;
    const int64_t row = D + gap;
    if (packed) return make_view(memory.data(), {length, H, D}, {H * row, row, 1});
    return make_view(memory.data(), {B, length, H, D}, {length * H * row, H * row, row, 1});
  }
  TensorView stats(std::vector<float>& memory) {
    if (sizes.packed) return make_view(memory.data(), {sizes.H, sizes.T});
    return make_view(memory.data(), {sizes.B, sizes.H, sizes.T});
  }
  bool same_bits(const State& other) const {
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
    };
    return same(out, other.out) && same(out_softmax, other.out_softmax) && lse == other.lse &&
           t_mean == other.t_mean;
  }
};

template <typename T>
State<T> merged(const Backend& backend, std::vector<State<T>>& parts, int64_t gap) {
  std::vector<PartialState> partials;
  for (State<T>& part : parts)
    partials.push_back({.out = part.values(part.out),
                        .out_softmax = part.values(part.out_softmax),
                        .lse = part.stats(part.lse),
                        .t_mean = part.stats(part.t_mean)});
  State<T> result(parts.front().sizes, gap);
  const MergeArgs args{.partials = partials,
                       .out = result.values(result.out),
                       .out_softmax = result.values(result.out_softmax),
                       .lse = result.stats(result.lse),
                       .t_mean = result.stats(result.t_mean)};
  core::validate(args);
  EXPECT_TRUE(backend.supports(args).ok);
  backend.merge(args);
  return result;
}

template <typename T>
void expect_the_references_bits(const Sizes& sizes, int num_partials) {
  std::mt19937 generator(static_cast<unsigned>(sizes.B * 1000 + sizes.T * 10 + sizes.D));
  std::vector<State<T>> parts;
  for (int idx = 0; idx < num_partials; ++idx) {
    parts.emplace_back(sizes, /*between=*/idx % 2 * 5);
    parts.back().fill(generator, /*without_keys=*/idx == 0);
  }
  const State<T> expected = merged(reference::backend(), parts, 3);
  EXPECT_TRUE(merged(cpu::backend(), parts, 3).same_bits(expected))
      << sizes.B << " x " << sizes.T << " x " << sizes.H << " x " << sizes.D;
}

TEST(CpuMerge, HasTheReferencesBits) {
  for (const Sizes& sizes :
       {Sizes{2, 3, 4, 64}, Sizes{1, 1, 1, 1}, Sizes{70, 1, 3, 100}, Sizes{1, 300, 2, 256},
        Sizes{3, 5, 130, 7}, Sizes{1, 90, 3, 33, true}, Sizes{0, 4, 2, 8}, Sizes{2, 0, 2, 8}}) {
    for (const int num_partials : {1, 2, 5}) {
      expect_the_references_bits<float>(sizes, num_partials);
      expect_the_references_bits<BFloat16>(sizes, num_partials);
      expect_the_references_bits<Float16>(sizes, num_partials);
    }
  }
}

TEST(CpuMerge, Float64IsTheReferences) {
  std::vector<double> values(8);
  const TensorView view = make_view(values.data(), {1, 1, 1, 8});
  const Support support = cpu::backend().supports(MergeArgs{.out = view});
  EXPECT_FALSE(support.ok);
  EXPECT_EQ(support.reason,
            "cpu merge: dtype float64 is not built (built: float32, bfloat16, float16)");
}

}  // namespace
}  // namespace parallax::testing
