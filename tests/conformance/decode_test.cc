// Decode of every backend against the float64 forward over each sequence's valid keys.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>

#include "support/decode_case.h"

namespace parallax::testing {
namespace {

class Decode : public ::testing::TestWithParam<DecodeCase> {};

TEST_P(Decode, EqualsTheForwardOverTheValidKeys) {
  expect_decode_conforms(GetParam(), test_seed());
}

std::string case_name(const ::testing::TestParamInfo<DecodeCase>& instance) {
  return instance.param.name();
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// One new token per sequence, lengths around tiles and pages, an empty cache among them.
std::vector<DecodeCase> one_token_cases() {
  const std::vector<CachedSequence> lengths{{1, 1}, {1, 63}, {1, 64}, {1, 65}, {1, 0}, {1, 300}};
  std::vector<DecodeCase> cases;
  for (const DType dtype : kTypes)
    for (const int64_t page_size : {0, 1, 16, 64})
      cases.push_back(
          {.sequences = lengths, .Hq = 8, .Hkv = 2, .dtype = dtype, .page_size = page_size});
  for (const int64_t group : {1, 3, 8, 9, 40})
    cases.push_back({.sequences = {{1, 137}, {1, 90}}, .Hq = 2 * group, .Hkv = 2, .page_size = 24});
  for (const int64_t D : {1, 33, 100, 256})
    cases.push_back({.sequences = {{1, 77}, {1, 30}, {1, 5}}, .Hq = 4, .Hkv = 2, .D = D});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(OneToken, Decode, ::testing::ValuesIn(one_token_cases()), case_name);

/// Several tokens, the same number or packed; chunked prefill with more rows than a tile; fewer
/// keys than tokens.
std::vector<DecodeCase> several_token_cases() {
  std::vector<DecodeCase> cases;
  for (const int64_t page_size : {0, 16}) {
    cases.push_back(
        {.sequences = {{4, 100}, {4, 64}, {4, 3}}, .Hq = 4, .Hkv = 2, .page_size = page_size});
    cases.push_back({.sequences = {{4, 100}, {0, 64}, {70, 170}, {1, 9}, {9, 9}},
                     .Hq = 4,
                     .Hkv = 2,
                     .dtype = DType::kBFloat16,
                     .page_size = page_size});
    cases.push_back({.sequences = {{3, 100, 20}, {1, 64, 63}, {2, 50, 50}, {5, 33, 30}},
                     .Hq = 2,
                     .Hkv = 2,
                     .page_size = page_size});
    cases.push_back({.sequences = {{1, 100}, {7, 64}, {2, 150, 11}},
                     .Hq = 4,
                     .Hkv = 2,
                     .page_size = page_size,
                     .window = 30});
  }
  for (const Layout layout : {Layout::kPadded, Layout::kHeadsFirst})
    for (const DType dtype : kTypes)
      cases.push_back({.sequences = {{2, 75}, {2, 20, 4}},
                       .Hq = 6,
                       .Hkv = 2,
                       .D = 37,
                       .dtype = dtype,
                       .page_size = 8,
                       .layout = layout});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(SeveralTokens, Decode, ::testing::ValuesIn(several_token_cases()),
                         case_name);

/// Long enough to be split into pieces: one below, at and above the cut, and windows that leave
/// some of it out.
std::vector<DecodeCase> split_cases() {
  std::vector<DecodeCase> cases;
  for (const int64_t length : {511, 512, 513, 1500})
    cases.push_back({.sequences = {{1, length}, {1, length / 2}}, .Hq = 2, .Hkv = 1, .D = 32});
  cases.push_back({.sequences = {{3, 1700}}, .Hq = 12, .Hkv = 1, .D = 32, .page_size = 16});
  cases.push_back({.sequences = {{1, 9000, 5}}, .D = 16, .dtype = DType::kBFloat16});
  cases.push_back({.sequences = {{2, 2000}}, .D = 32, .window = 600});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Split, Decode, ::testing::ValuesIn(split_cases()), case_name);

/// A sequence's bits do not depend on its neighbours in the batch.
TEST(DecodeBatch, ASequenceHasTheSameBitsAloneAndInABatch) {
  const DecodeInputs batch({.sequences = {{1, 1300}, {1, 40}, {1, 700}}, .Hq = 4, .Hkv = 2}, 5);
  DecodeInputs alone = batch;
  alone.description.sequences = {{1, 1300}};
  alone.problem.sequences.resize(1);
  // Keeps the first sequence of a tensor.
  const auto cut = [&](HostTensor& tensor) {
    std::vector<int64_t> sizes = tensor.sizes();
    const int64_t keep = tensor.num_elements() / sizes[0];
    sizes[0] = 1;
    std::vector<double> values = tensor.values();
    values.resize(static_cast<size_t>(keep));
    tensor = HostTensor::of(tensor.dtype(), sizes, values);
  };
  for (HostTensor* tensor : {&alone.q, &alone.r, &alone.k_cache, &alone.v_cache,
                             &alone.cache_starts, &alone.cache_seqlens})
    cut(*tensor);
  for (const auto& [label, backend] : tested_backends()) {
    const std::vector<double> together = run_decode(*backend, batch).out.values();
    const std::vector<double> single = run_decode(*backend, alone).out.values();
    EXPECT_TRUE(std::equal(single.begin(), single.end(), together.begin())) << label;
  }
}

}  // namespace
}  // namespace parallax::testing
