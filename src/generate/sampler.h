// Choosing the next token from logits: greedy, or random after temperature, top-k, top-p and min-p.
//
// The filters apply in that order, each to what the one before has left, as Hugging Face's
// transformers applies them. Every sequence has a random generator of its own, so what is drawn for
// it does not depend on what else is in the batch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace parallax::generate {

struct SamplingOptions {
  /// Logits are divided by this; 0 takes the most probable token always (greedy). At least 0.
  double temperature = 0.0;
  /// Keep the k most probable tokens; 0 keeps all.
  int64_t top_k = 0;
  /// Keep the fewest most probable tokens whose probabilities sum to at least this. In (0, 1].
  double top_p = 1.0;
  /// Keep tokens at least this times as probable as the most probable one. In [0, 1].
  double min_p = 0.0;
  uint64_t seed = 0;

  /// Throws parallax::Error that names the option, its value and its range.
  void validate() const;
};

struct Candidate {
  int32_t token = 0;
  double probability = 0.0;
};

/// The tokens that the filters keep and their probabilities, which sum to 1: most probable first,
/// equal ones in the order of their ids. Greedy options keep one token. At least one token is
/// always kept. Throws if `logits` is empty or holds a NaN or an infinity.
std::vector<Candidate> filter_logits(std::span<const float> logits, const SamplingOptions& options);

/// The most probable token, the lowest id among equals. Throws as filter_logits() does.
int32_t most_probable(std::span<const float> logits);

/// log softmax(logits)[token], of the logits as the model gave them: before temperature and
/// filters.
double log_probability(std::span<const float> logits, int32_t token);

/// Draws the tokens of one sequence.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  /// The next token. The same seed and the same logits give the same tokens on every machine whose
  /// exp() agrees. Greedy sampling uses no random number.
  int32_t sample(std::span<const float> logits);

 private:
  double next_uniform();

  SamplingOptions options_;
  uint64_t state_;
};

}  // namespace parallax::generate
