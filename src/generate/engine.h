// Text generation: prefill of the prompts, then one token per sequence and step against the cache.
//
// Prompts of unequal length share a batch without padding: the decoder takes packed tokens, so a
// prefill call holds the next tokens of as many prompts as fit, and a finished sequence simply
// brings no token to a step.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "generate/sampler.h"
#include "nn/decoder.h"
#include "text/tokenizer.h"

namespace parallax::generate {

/// What to continue, and how.
struct Request {
  std::string prompt{};
  SamplingOptions sampling{};
  /// At least 1; prompt and new tokens together must fit max_position_embeddings. When absent,
  /// kDefaultMaxTokens or what the prompt leaves room for, whichever is less.
  std::optional<int64_t> max_tokens{};
  /// Generation ends before the first of these in the text.
  std::vector<std::string> stop{};
  /// Go on after an end-of-text token.
  bool ignore_eos = false;
  /// Put the start token before the prompt. An empty prompt gets it anyway.
  bool add_start_token = false;
  bool log_probabilities = false;
};
inline constexpr int64_t kDefaultMaxTokens = 256;

enum class FinishReason : uint8_t { kEndOfText, kStopString, kMaxTokens };
std::string_view name(FinishReason reason);

struct Completion {
  /// Valid UTF-8, without the prompt, special tokens and the stop string.
  std::string text;
  /// Every token that was drawn: the end-of-text token and those of the stop string included.
  std::vector<int32_t> tokens;
  /// Of each token, in nats, under the model's own softmax; only if asked for.
  std::vector<double> log_probabilities;
  FinishReason finish_reason = FinishReason::kMaxTokens;
  int64_t num_prompt_tokens = 0;
};

/// Wall time of one generate() call. The first token of each sequence comes out of the prefill.
struct Timing {
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double prefill_seconds = 0.0, decode_seconds = 0.0;
  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;
};

struct GenerationResult {
  std::vector<Completion> completions;  ///< in the order of the requests
  Timing timing;
};

/// Called with each piece of text that is final: whole UTF-8 characters, never part of a stop
/// string. The pieces of a sequence joined are its Completion::text.
using StreamCallback = std::function<void(size_t request_idx, std::string_view piece)>;

struct EngineOptions {
  /// What an empty prompt starts from; see start_token().
  int32_t start_token = 0;
  /// Tokens that end a text.
  std::vector<int32_t> eos_tokens{};
  /// Prompt tokens per decoder call: bounds the memory of the prefill.
  int64_t prefill_chunk_tokens = 512;
};

class Engine {
 public:
  /// Throws parallax::Error if the tokenizer has more ids than the model, or if an id in the
  /// options is out of range.
  Engine(nn::Decoder model, std::shared_ptr<const text::Tokenizer> tokenizer,
         EngineOptions options);

  /// Continues every request. Sequences do not see each other: a sequence's tokens are those it
  /// would get alone, up to the rounding of matrix products whose blocking depends on their size.
  /// All requests are checked before anything is computed. Throws parallax::Error for options out
  /// of range, prompts that do not fit, and logits that are not finite.
  GenerationResult generate(const std::vector<Request>& requests,
                            const StreamCallback& on_text = {});

 private:
  std::vector<int32_t> prompt_tokens(const Request& request) const;

  nn::Decoder model_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  EngineOptions options_;
};

}  // namespace parallax::generate
