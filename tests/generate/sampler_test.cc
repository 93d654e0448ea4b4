// The sampler: which tokens each filter keeps, and that draws follow the distribution.
// SPDX-License-Identifier: Apache-2.0
#include "generate/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "parallax/error.h"

namespace parallax::generate {
namespace {

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::vector<int32_t> kept_tokens(const std::vector<float>& logits, SamplingOptions options) {
  if (options.temperature == 0.0) options.temperature = 1.0;
  std::vector<int32_t> tokens;
  double total = 0.0;
  for (const Candidate& candidate : filter_logits(logits, options)) {
    tokens.push_back(candidate.token);
    total += candidate.probability;
  }
  EXPECT_NEAR(total, 1.0, 1e-14);
  return tokens;
}

using Tokens = std::vector<int32_t>;

// Probabilities of tokens 0..5; the sums in order of rank are .35 .60 .80 .90 .97 1.
const std::vector<float> kLogits = logs({0.10, 0.35, 0.03, 0.25, 0.20, 0.07});

TEST(Greedy, TakesTheMostProbableToken) {
  Sampler sampler(SamplingOptions{});
  EXPECT_EQ(sampler.sample(kLogits), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-5.f}), 0);
}

TEST(Greedy, TakesTheLowestIdOfEqualLogits) {
  Sampler sampler(SamplingOptions{});
  EXPECT_EQ(sampler.sample(std::vector<float>{1.f, 3.f, 3.f, -1.f, 3.f}), 1);
}

TEST(TopK, KeepsExactlyK) {
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 1}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 3}), (Tokens{1, 3, 4}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 5}), (Tokens{1, 3, 4, 0, 5}));
}

TEST(TopK, OffOrAtLeastTheVocabularyKeepsAll) {
  const Tokens all = {1, 3, 4, 0, 5, 2};
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 0}), all);
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 6}), all);
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 1000}), all);
}

TEST(TopK, CutsEqualLogitsAtTheLowestIds) {
  EXPECT_EQ(kept_tokens({0.f, 2.f, 0.f, 0.f, 2.f}, {.top_k = 3}), (Tokens{1, 4, 0}));
}

TEST(TopP, KeepsTheFewestTokensThatReachIt) {
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.01}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.34}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.36}), (Tokens{1, 3}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.79}), (Tokens{1, 3, 4}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.81}), (Tokens{1, 3, 4, 0}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 1.0}), (Tokens{1, 3, 4, 0, 5, 2}));
}

TEST(TopP, ReachedExactlyIsReached) {
  const std::vector<float> equal(8, 0.5f);  // weights are exactly 1: sums have no rounding
  EXPECT_EQ(kept_tokens(equal, {.top_p = 0.5}), (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(kept_tokens(equal, {.top_p = 0.501}), (Tokens{0, 1, 2, 3, 4}));
  EXPECT_EQ(kept_tokens(equal, {.top_k = 4, .top_p = 0.5}), (Tokens{0, 1}));
  EXPECT_EQ(kept_tokens(equal, {.top_k = 4, .top_p = 0.501}), (Tokens{0, 1, 2}));
}

TEST(TopP, CountsSharesOfWhatTopKKept) {
  // Of the three kept tokens' .80, .35 is 44 % and .60 is 75 %.
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 3, .top_p = 0.43}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 3, .top_p = 0.74}), (Tokens{1, 3}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 3, .top_p = 0.76}), (Tokens{1, 3, 4}));
}

TEST(TopP, SeesTheTemperature) {
  // At temperature 0.5 probabilities are squared: .1225 .0625 .04 .01 .0049 .0009 of .2408.
  EXPECT_EQ(kept_tokens(kLogits, {.temperature = 0.5, .top_p = 0.50}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(kLogits, {.temperature = 0.5, .top_p = 0.76}), (Tokens{1, 3}));
  EXPECT_EQ(kept_tokens(kLogits, {.temperature = 0.5, .top_p = 0.77}), (Tokens{1, 3, 4}));
}

TEST(MinP, ComparesWithTheMostProbable) {
  // .25/.35 = .714, .20/.35 = .571, .10/.35 = .286, .07/.35 = .2, .03/.35 = .086
  EXPECT_EQ(kept_tokens(kLogits, {.min_p = 0.0}), (Tokens{1, 3, 4, 0, 5, 2}));
  EXPECT_EQ(kept_tokens(kLogits, {.min_p = 0.1}), (Tokens{1, 3, 4, 0, 5}));
  EXPECT_EQ(kept_tokens(kLogits, {.min_p = 0.58}), (Tokens{1, 3}));
  EXPECT_EQ(kept_tokens(kLogits, {.min_p = 1.0}), (Tokens{1}));
  EXPECT_EQ(kept_tokens({4.f, 1.f, 4.f}, {.min_p = 1.0}), (Tokens{0, 2}));
}

TEST(MinP, AppliesAfterTheOthers) {
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 5, .top_p = 0.95, .min_p = 0.25}), (Tokens{1, 3, 4, 0}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_k = 2, .min_p = 0.25}), (Tokens{1, 3}));
  EXPECT_EQ(kept_tokens(kLogits, {.top_p = 0.7, .min_p = 0.6}), (Tokens{1, 3}));
}

TEST(Filters, ProbabilitiesAreThoseOfTheKeptTokens) {
  const auto kept = filter_logits(kLogits, {.temperature = 1.0, .top_k = 2});
  EXPECT_NEAR(kept[0].probability, 0.35 / 0.60, 1e-7);  // logits are float: 6e-8 relative
  EXPECT_NEAR(kept[1].probability, 0.25 / 0.60, 1e-7);
}

TEST(Filters, ExtremeLogitsAndTemperaturesStayFinite) {
  const std::vector<float> logits = {-3e38f, 3e38f, 0.f};
  EXPECT_EQ(kept_tokens(logits, {.temperature = 1e-300, .top_p = 0.9}), (Tokens{1}));
  EXPECT_EQ(kept_tokens(logits, {.temperature = 1e300, .min_p = 0.5}), (Tokens{0, 1, 2}));
}

TEST(LogProbability, IsOfTheUnfilteredLogits) {
  for (size_t i = 0; i < kLogits.size(); ++i) {
    EXPECT_NEAR(log_probability(kLogits, static_cast<int32_t>(i)), static_cast<double>(kLogits[i]),
                1e-7);
  }
}

/// Pearson's statistic of `num_draws` draws against the given probabilities, every draw checked to
/// be of a token with a positive one.
double chi_square(const std::vector<float>& logits, const SamplingOptions& options,
                  const std::map<int32_t, double>& probabilities, int num_draws) {
  Sampler sampler(options);
  std::map<int32_t, int> counts;
  for (int i = 0; i < num_draws; ++i) ++counts[sampler.sample(logits)];
  for (const auto& [token, count] : counts) EXPECT_TRUE(probabilities.contains(token)) << token;
  double statistic = 0.0;
  for (const auto& [token, probability] : probabilities) {
    const double expected = probability * num_draws;
    const double difference = counts[token] - expected;
    statistic += difference * difference / expected;
  }
  return statistic;
}

/// The value that chi-square with `freedom` degrees exceeds with probability 1e-4 (Wilson and
/// Hilferty's approximation, z = 3.719). Seeds are fixed: a correct sampler passes or fails for
/// ever.
double chi_square_bound(double freedom) {
  const double spread = 2.0 / (9.0 * freedom);
  return freedom * std::pow(1.0 - spread + 3.719 * std::sqrt(spread), 3.0);
}

TEST(Draws, FollowSoftmax) {
  const double p = chi_square(kLogits, {.temperature = 1.0, .seed = 11},
                              {{0, .10}, {1, .35}, {2, .03}, {3, .25}, {4, .20}, {5, .07}}, 100000);
  EXPECT_LT(p, chi_square_bound(5));
}

TEST(Draws, FollowSoftmaxAtATemperature) {
  std::map<int32_t, double> probabilities = {{0, .10}, {1, .35}, {2, .03},
                                             {3, .25}, {4, .20}, {5, .07}};
  double total = 0.0;
  for (auto& [token, probability] : probabilities) {
    total += probability = std::pow(probability, 1 / 1.7);
  }
  for (auto& [token, probability] : probabilities) probability /= total;
  EXPECT_LT(chi_square(kLogits, {.temperature = 1.7, .seed = 12}, probabilities, 100000),
            chi_square_bound(5));
}

TEST(Draws, FollowTheFilteredDistribution) {
  EXPECT_LT(chi_square(kLogits, {.temperature = 1.0, .top_k = 3, .seed = 13},
                       {{1, .35 / .80}, {3, .25 / .80}, {4, .20 / .80}}, 100000),
            chi_square_bound(2));
  EXPECT_LT(chi_square(kLogits, {.temperature = 1.0, .top_p = 0.85, .seed = 14},
                       {{1, .35 / .9}, {3, .25 / .9}, {4, .20 / .9}, {0, .10 / .9}}, 100000),
            chi_square_bound(3));
  EXPECT_LT(chi_square(kLogits, {.temperature = 1.0, .min_p = 0.6, .seed = 15},
                       {{1, .35 / .6}, {3, .25 / .6}}, 100000),
            chi_square_bound(1));
}

TEST(Draws, FollowAUniformDistributionOverManyTokens) {
  const std::vector<float> logits(1000, -2.f);
  std::map<int32_t, double> probabilities;
  for (int32_t i = 0; i < 1000; ++i) probabilities[i] = 1e-3;
  EXPECT_LT(chi_square(logits, {.temperature = 1.0, .seed = 16}, probabilities, 100000),
            chi_square_bound(999));
}

TEST(Draws, SuccessiveDrawsAndCloseSeedsAreIndependent) {
  // Pairs (a draw, the next one) and (a draw, the draw of the next seed) over four equal tokens.
  const std::vector<float> logits(4, 0.f);
  std::vector<double> successive(16, 0.0), neighbours(16, 0.0);
  constexpr int kPairs = 16000;
  Sampler sampler({.temperature = 1.0, .seed = 3});
  for (int i = 0; i < kPairs; ++i) {
    const auto first = static_cast<size_t>(sampler.sample(logits));
    successive[first * 4 + static_cast<size_t>(sampler.sample(logits))] += 1.0;
    Sampler a({.temperature = 1.0, .seed = static_cast<uint64_t>(2 * i)});
    Sampler b({.temperature = 1.0, .seed = static_cast<uint64_t>(2 * i + 1)});
    neighbours[static_cast<size_t>(a.sample(logits)) * 4 + static_cast<size_t>(b.sample(logits))] +=
        1.0;
  }
  for (const auto& counts : {successive, neighbours}) {
    double statistic = 0.0;
    for (const double count : counts)
      statistic += std::pow(count - kPairs / 16.0, 2) / (kPairs / 16.0);
    EXPECT_LT(statistic, chi_square_bound(15));
  }
}

TEST(Draws, TheSeedDecides) {
  const auto draw = [](uint64_t seed) {
    Sampler sampler({.temperature = 1.0, .seed = seed});
    Tokens tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.sample(kLogits));
    return tokens;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
}

TEST(BadLogits, NanOrInfinityIsRefusedWithItsToken) {
  for (const double temperature : {0.0, 1.0}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      Sampler sampler({.temperature = temperature});
      try {
        sampler.sample(std::vector<float>{0.f, 1.f, bad, 2.f});
        FAIL() << "no error for " << bad;
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("token 2"), std::string::npos) << error.what();
      }
    }
  }
  EXPECT_THROW(Sampler(SamplingOptions{}).sample({}), Error);
}

TEST(BadOptions, AreRefusedByName) {
  const auto message = [](const SamplingOptions& options) -> std::string {
    try {
      Sampler sampler(options);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(message({.temperature = -0.1}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.temperature = nan}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top-k"), std::string::npos);
  EXPECT_NE(message({.top_p = 0.0}).find("top-p"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5}).find("top-p"), std::string::npos);
  EXPECT_NE(message({.top_p = nan}).find("top-p"), std::string::npos);
  EXPECT_NE(message({.min_p = -0.5}).find("min-p"), std::string::npos);
  EXPECT_NE(message({.min_p = 1.01}).find("min-p"), std::string::npos);
}

}  // namespace
}  // namespace parallax::generate
