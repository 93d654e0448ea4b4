// Properties of in-context recall.
// SPDX-License-Identifier: Apache-2.0
#include "mad/in_context_recall.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "mad/random.h"
#include "parallax/error.h"

namespace parallax::mad {
namespace {

constexpr uint64_t kNumSequences = 2000;

TEST(InContextRecall, AlternatesKeysAndValuesOfFixedPairs) {
  for (uint64_t idx = 0; idx < 200; ++idx) {
    const auto sequence = in_context_recall({.vocab_size = 16, .length = 128, .seed = 3}, idx);
    ASSERT_EQ(sequence.tokens.size(), 128U);
    std::map<int64_t, int64_t> values;
    for (size_t i = 0; i < 128; i += 2) {
      const int64_t key = sequence.tokens[i], value = sequence.tokens[i + 1];
      ASSERT_TRUE(key >= 0 && key < 8) << key;
      ASSERT_TRUE(value >= 8 && value < 16) << value;
      EXPECT_EQ(values.emplace(key, value).first->second, value);
    }
  }
}

TEST(InContextRecall, MarksExactlyTheKeysSeenBefore) {
  for (uint64_t idx = 0; idx < 200; ++idx) {
    const auto sequence = in_context_recall({.length = 64, .seed = 4}, idx);
    std::set<int64_t> seen;
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      const bool is_key = i % 2 == 0;
      EXPECT_EQ(sequence.is_recall[i], is_key && seen.contains(sequence.tokens[i])) << i;
      if (is_key) seen.insert(sequence.tokens[i]);
    }
    EXPECT_TRUE(sequence.is_recall[62]) << "the last key is a probe";
  }
}

TEST(InContextRecall, ALookUpTableAnswersEveryMarkedPosition) {
  for (uint64_t idx = 0; idx < 200; ++idx) {
    const auto sequence = in_context_recall({.vocab_size = 32, .seed = 5}, idx);
    std::map<int64_t, int64_t> table;
    for (size_t i = 0; i + 1 < sequence.tokens.size(); i += 2) {
      const int64_t key = sequence.tokens[i], value = sequence.tokens[i + 1];
      if (sequence.is_recall[i]) {
        EXPECT_EQ(table.at(key), value);
      }
      table[key] = value;
    }
  }
}

TEST(InContextRecall, DrawsKeysAndValuesUniformly) {
  std::vector<double> keys(8), first_values(8), probes(8);
  double num_keys = 0, num_first_values = 0;
  for (uint64_t idx = 0; idx < kNumSequences; ++idx) {
    const auto sequence = in_context_recall({.length = 32, .seed = 6}, idx);
    for (size_t i = 0; i + 2 < 32; i += 2) {
      ++keys[static_cast<size_t>(sequence.tokens[i])], ++num_keys;
      if (sequence.is_recall[i]) continue;
      ++first_values[static_cast<size_t>(sequence.tokens[i + 1] - 8)], ++num_first_values;
    }
    ++probes[static_cast<size_t>(sequence.tokens[30])];
  }
  // Six standard deviations of a binomial count with p = 1/8.
  const auto expect_uniform = [](const std::vector<double>& counts, double total) {
    for (const double count : counts) EXPECT_NEAR(count, total / 8, 6 * std::sqrt(total * 7 / 64));
  };
  expect_uniform(keys, num_keys);
  expect_uniform(first_values, num_first_values);
  expect_uniform(probes, static_cast<double>(kNumSequences));
}

TEST(InContextRecall, IsAFunctionOfSeedAndIndex) {
  const auto tokens = [](uint64_t seed, uint64_t idx) {
    return in_context_recall({.seed = seed}, idx).tokens;
  };
  EXPECT_EQ(tokens(1, 5), tokens(1, 5));
  std::set<std::vector<int64_t>> different;
  for (uint64_t seed = 0; seed < 30; ++seed)
    for (uint64_t idx = 0; idx < 30; ++idx) different.insert(tokens(seed, idx));
  EXPECT_EQ(different.size(), 900U);
}

TEST(InContextRecall, IsTheSameOnEveryMachine) {
  const auto sequence = in_context_recall({.vocab_size = 16, .length = 16, .seed = 1}, 0);
  EXPECT_EQ(sequence.tokens,
            (std::vector<int64_t>{2, 8, 7, 10, 0, 9, 5, 9, 3, 10, 5, 9, 1, 12, 7, 10}));
}

TEST(InContextRecall, RefusesOptionsOutOfRange) {
  EXPECT_THROW(in_context_recall({.vocab_size = 15}, 0), Error);
  EXPECT_THROW(in_context_recall({.vocab_size = 0}, 0), Error);
  EXPECT_THROW(in_context_recall({.length = 127}, 0), Error);
  EXPECT_THROW(in_context_recall({.length = 2}, 0), Error);
}

TEST(Random, StaysBelowItsBoundAndReachesEveryValue) {
  Random random(1, 2);
  std::set<uint64_t> values;
  for (int i = 0; i < 1000; ++i) values.insert(random.below(7));
  EXPECT_EQ(values, (std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(random.below(1), 0U);
}

}  // namespace
}  // namespace parallax::mad
