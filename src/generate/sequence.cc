// One text being generated.
// SPDX-License-Identifier: Apache-2.0
#include "generate/sequence.h"

#include <algorithm>

namespace parallax::generate {

Sequence::Sequence(const Request& request, const text::Tokenizer& tokenizer, Limits limits)
    : tokenizer_(&tokenizer),
      limits_(limits),
      sampler_(request.sampling),
      stop_filter_(request.stop),
      ignore_eos_(request.ignore_eos),
      log_probabilities_(request.log_probabilities) {}

void Sequence::emit(std::string_view text, const OnText& on_text) {
  if (text.empty()) return;
  completion_.text += text;
  if (on_text) on_text(text);
}

void Sequence::finish(FinishReason reason, const OnText& on_text) {
  finished_ = true;
  completion_.finish_reason = reason;
  emit(utf8_.push(stop_filter_.finish()), on_text);
  emit(utf8_.finish(), on_text);
}

int32_t Sequence::advance(std::span<const float> logits, const OnText& on_text) {
  const int32_t token = sampler_.sample(logits);
  completion_.tokens.push_back(token);
  if (log_probabilities_) {
    completion_.log_probabilities.push_back(log_probability(logits, token));
  }
  const bool is_eos = std::ranges::find(limits_.eos_tokens, token) != limits_.eos_tokens.end();
  if (is_eos && !ignore_eos_) {
    finish(FinishReason::kEndOfText, on_text);
    return token;
  }
  if (!tokenizer_->is_special(token)) {
    emit(utf8_.push(stop_filter_.push(tokenizer_->token_bytes(token))), on_text);
  }
  if (stop_filter_.found()) {
    finish(FinishReason::kStopString, on_text);
  } else if (static_cast<int64_t>(completion_.tokens.size()) >= limits_.max_tokens) {
    finish(FinishReason::kMaxTokens, on_text);
  }
  return token;
}

}  // namespace parallax::generate
