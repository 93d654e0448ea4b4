// Random shapes, strides, masks and dtypes against the reference, for PLX_FUZZ_SECONDS (2 when
// unset). A failure prints the one line that repeats its case; PLX_FUZZ_SEED runs that case alone.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "support/checks.h"
#include "support/decode_case.h"

namespace parallax::testing {
namespace {

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool one_in(int64_t count) { return between(1, count) == 1; }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }
  /// Often right at a tile's edge.
  int64_t length() {
    const int64_t length =
        one_in(2) ? pick<int64_t>({1, 8, 16, 32, 64, 96, 128}) + between(-1, 1) : between(1, 150);
    return std::max<int64_t>(length, 1);
  }

 private:
  std::mt19937_64 random_;
};

AttentionCase random_attention_case(Dice& dice) {
  AttentionCase c{.B = dice.between(1, 3),
                  .Tq = dice.length(),
                  .D = dice.one_in(2) ? dice.pick<int64_t>({32, 64, 128}) : dice.between(1, 140)};
  if (dice.one_in(2)) c.Tk = dice.length();
  c.Hkv = dice.between(1, 2);
  c.Hq = c.Hkv * dice.between(1, 5);
  c.dtype = dice.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  c.layout = dice.pick({Layout::kContiguous, Layout::kPadded, Layout::kHeadsFirst});
  c.mask = dice.one_in(3) ? Mask::kFull : Mask::kCausal;
  if (c.mask == Mask::kCausal && dice.one_in(2)) c.window = dice.between(1, 150);
  c.regime = dice.pick({Regime::kNormal, Regime::kNormal, Regime::kSharpLogits, Regime::kValueMean2,
                        Regime::kMaxInLastTile, Regime::kZeroProbe});
  if (dice.one_in(3))
    for (int64_t count = dice.between(1, 4); count > 0; --count)
      c.packed.push_back({dice.between(0, 90), dice.between(0, 90)});
  return c;
}

DecodeCase random_decode_case(Dice& dice) {
  DecodeCase c{.Hkv = dice.between(1, 2),
               .D = dice.between(1, 140),
               .dtype = dice.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16}),
               .page_size = dice.pick<int64_t>({0, 0, 1, 7, 16, 64}),
               .layout = dice.pick({Layout::kContiguous, Layout::kPadded, Layout::kHeadsFirst})};
  c.Hq = c.Hkv * dice.between(1, 9);
  if (dice.one_in(3)) c.window = dice.between(1, 700);
  const bool ragged = dice.one_in(2);
  const int64_t num_queries = dice.between(1, 4);
  for (int64_t count = dice.between(1, 3); count > 0; --count) {
    CachedSequence sequence{.num_queries = ragged ? dice.between(0, 40) : num_queries,
                            .length = dice.one_in(6) ? dice.between(500, 1200) : dice.length()};
    if (dice.one_in(3)) sequence.start = dice.between(0, sequence.length);
    c.sequences.push_back(sequence);
  }
  return c;
}

void run_case(uint64_t seed) {
  Dice dice(seed);
  const std::string reproducer =
      "PLX_FUZZ_SEED=" + std::to_string(seed) + " conformance_test --gtest_filter=Fuzz.*";
  SCOPED_TRACE("reproduce with: " + reproducer);
  if (dice.one_in(3))
    expect_decode_conforms(random_decode_case(dice), seed);
  else
    expect_case_conforms(random_attention_case(dice), seed);
}

TEST(Fuzz, RandomCallsEqualTheReference) {
  if (const char* const seed = std::getenv("PLX_FUZZ_SEED"); seed != nullptr) {
    run_case(std::strtoull(seed, nullptr, 10));
    return;
  }
  const char* const seconds = std::getenv("PLX_FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::duration<double>(seconds != nullptr ? std::atof(seconds) : 2.0);
  std::mt19937_64 seeds(test_seed());
  int num_cases = 0;
  while (std::chrono::steady_clock::now() < end && !HasFailure()) {
    run_case(seeds() >> 16);
    ++num_cases;
  }
  RecordProperty("cases", num_cases);
  std::printf("%d cases\n", num_cases);
}

}  // namespace
}  // namespace parallax::testing
