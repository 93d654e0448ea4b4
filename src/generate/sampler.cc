// Sampling. Weights are exp((logit - max) / temperature) in double: the most probable token weighs
// 1, so nothing overflows and min-p compares with the weights directly. A heap instead of a sort:
// the filters usually keep a few hundred of 150,000 tokens, and only those are put in order.
// SPDX-License-Identifier: Apache-2.0
#include "generate/sampler.h"

#include <algorithm>
#include <cmath>

#include "parallax/error.h"

namespace parallax::generate {
namespace {

double weight_of(float logit, float max_logit, double temperature) {
  return std::exp((static_cast<double>(logit) - static_cast<double>(max_logit)) / temperature);
}

/// Token ids in the order that matters: by logit, equal ones by id. Taken one at a time.
class RankedTokens {
 public:
  explicit RankedTokens(std::span<const float> logits) : logits_(logits), heap_(logits.size()) {
    for (size_t i = 0; i < heap_.size(); ++i) heap_[i] = static_cast<int32_t>(i);
    std::make_heap(heap_.begin(), heap_.end(), Worse{logits_});
  }
  bool empty() const { return heap_.empty(); }
  int32_t take() {
    std::pop_heap(heap_.begin(), heap_.end(), Worse{logits_});
    const int32_t token = heap_.back();
    heap_.pop_back();
    return token;
  }

 private:
  struct Worse {
    std::span<const float> logits;
    bool operator()(int32_t a, int32_t b) const {
      const float logit_a = logits[static_cast<size_t>(a)],
                  logit_b = logits[static_cast<size_t>(b)];
      return logit_a != logit_b ? logit_a < logit_b : a > b;
    }
  };
  std::span<const float> logits_;
  std::vector<int32_t> heap_;
};

/// The tokens that top-k and top-p keep, by rank. Probabilities are still weights.
std::vector<Candidate> take_ranked(std::span<const float> logits, float max_logit,
                                   const SamplingOptions& options) {
  RankedTokens ranked(logits);
  const auto take = [&] {
    const int32_t token = ranked.take();
    return Candidate{token,
                     weight_of(logits[static_cast<size_t>(token)], max_logit, options.temperature)};
  };
  std::vector<Candidate> kept;
  double total = 0.0, sum = 0.0;
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < logits.size()) {
    // top-p counts shares of what top-k keeps, so all of that is taken first.
    while (kept.size() < static_cast<size_t>(options.top_k)) {
      total += kept.emplace_back(take()).probability;
    }
    size_t num_kept = 0;
    while (num_kept < kept.size() && sum < options.top_p * total) {
      sum += kept[num_kept++].probability;
    }
    if (options.top_p < 1.0) kept.resize(num_kept);
    return kept;
  }
  for (const float logit : logits) total += weight_of(logit, max_logit, options.temperature);
  while (!ranked.empty() && sum < options.top_p * total) {
    sum += kept.emplace_back(take()).probability;
  }
  return kept;
}

/// What all filters keep, in any order; probabilities sum to 1.
std::vector<Candidate> keep_candidates(std::span<const float> logits,
                                       const SamplingOptions& options) {
  const int32_t best = most_probable(logits);
  if (options.temperature == 0.0) return {{best, 1.0}};
  const float max_logit = logits[static_cast<size_t>(best)];
  std::vector<Candidate> kept;
  if (options.top_k == 0 && options.top_p == 1.0) {
    kept.reserve(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      kept.push_back(
          {static_cast<int32_t>(i), weight_of(logits[i], max_logit, options.temperature)});
    }
  } else {
    kept = take_ranked(logits, max_logit, options);
  }
  std::erase_if(kept, [&](const Candidate& c) { return c.probability < options.min_p; });
  double total = 0.0;
  for (const Candidate& candidate : kept) total += candidate.probability;
  for (Candidate& candidate : kept) candidate.probability /= total;
  return kept;
}

}  // namespace

void SamplingOptions::validate() const {
  PLX_CHECK(std::isfinite(temperature) && temperature >= 0.0, "temperature is ", temperature,
            ", allowed: 0 (greedy) or more");
  PLX_CHECK(top_k >= 0, "top-k is ", top_k, ", allowed: 0 (all tokens) or more");
  PLX_CHECK(top_p > 0.0 && top_p <= 1.0, "top-p is ", top_p, ", allowed: above 0, at most 1");
  PLX_CHECK(min_p >= 0.0 && min_p <= 1.0, "min-p is ", min_p, ", allowed: 0 to 1");
}

int32_t most_probable(std::span<const float> logits) {
  PLX_CHECK(!logits.empty(), "no logits to choose a token from");
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    PLX_CHECK(std::isfinite(logits[i]), "the logit of token ", i, " is ", logits[i],
              "; the model's weights or activations are not finite");
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

double log_probability(std::span<const float> logits, int32_t token) {
  const float max_logit = logits[static_cast<size_t>(most_probable(logits))];
  double total = 0.0;
  for (const float logit : logits) total += weight_of(logit, max_logit, 1.0);
  return static_cast<double>(logits[static_cast<size_t>(token)]) - static_cast<double>(max_logit) -
         std::log(total);
}

std::vector<Candidate> filter_logits(std::span<const float> logits,
                                     const SamplingOptions& options) {
  options.validate();
  std::vector<Candidate> kept = keep_candidates(logits, options);
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
  });
  return kept;
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), state_(options.seed) {
  options_.validate();
}

double Sampler::next_uniform() {
  // SplitMix64 (Steele, Lea, Flood 2014): any 64-bit seed is a good one, close seeds included.
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int32_t Sampler::sample(std::span<const float> logits) {
  if (options_.temperature == 0.0) return most_probable(logits);
  const std::vector<Candidate> kept = keep_candidates(logits, options_);
  const double target = next_uniform();
  double sum = 0.0;
  int32_t last_possible = kept.front().token;
  for (const Candidate& candidate : kept) {
    if (candidate.probability > 0.0) last_possible = candidate.token;
    sum += candidate.probability;
    if (target < sum) return candidate.token;
  }
  return last_possible;  // the probabilities sum to a rounding error less than 1
}

}  // namespace parallax::generate
