// One text being generated: from logits to tokens to bytes to characters that may be shown.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "generate/engine.h"
#include "generate/stop_filter.h"
#include "text/utf8_stream.h"

namespace parallax::generate {

/// The bytes of a token pass the stop filter first and are put together to characters after it, so
/// a stop string is found wherever token borders fall.
class Sequence {
 public:
  struct Limits {
    int64_t max_tokens = 0;
    std::span<const int32_t> eos_tokens;
  };
  using OnText = std::function<void(std::string_view)>;

  /// `tokenizer` and what `limits` points to must outlive the sequence.
  Sequence(const Request& request, const text::Tokenizer& tokenizer, Limits limits);

  /// Draws the next token; what it makes certain goes to on_text. Returns the token.
  int32_t advance(std::span<const float> logits, const OnText& on_text);
  bool finished() const { return finished_; }
  Completion take() { return std::move(completion_); }

 private:
  void emit(std::string_view text, const OnText& on_text);
  void finish(FinishReason reason, const OnText& on_text);

  const text::Tokenizer* tokenizer_;
  Limits limits_;
  Sampler sampler_;
  StopFilter stop_filter_;
  text::Utf8Stream utf8_;
  Completion completion_;
  bool ignore_eos_ = false, log_probabilities_ = false, finished_ = false;
};

}  // namespace parallax::generate
