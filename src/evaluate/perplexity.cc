// Perplexity of documents, window by window.
// SPDX-License-Identifier: Apache-2.0
#include "evaluate/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "nn/loss.h"
#include "parallax/error.h"

namespace parallax::evaluate {

double PerplexityResult::bits_per_byte() const {
  return num_bytes > 0 ? score.sum_nats / (static_cast<double>(num_bytes) * std::numbers::ln2)
                       : 0.0;
}

std::vector<Window> make_windows(int64_t num_tokens, int64_t context, int64_t stride) {
  std::vector<Window> windows;
  int64_t num_scored = 0;
  for (int64_t begin = 0; num_scored < num_tokens; begin += stride) {
    const int64_t end = std::min(begin + context, num_tokens);
    windows.push_back({begin, end - begin, end - num_scored});
    num_scored = end;
  }
  return windows;
}

PerplexityMeter::PerplexityMeter(nn::Decoder model, const PerplexityOptions& options)
    : model_(std::move(model)), options_(options) {
  const nn::ModelConfig& config = model_->config();
  PLX_CHECK(options_.context >= 1 && options_.context <= config.max_position_embeddings,
            "context is ", options_.context,
            ", allowed: 1 to the model's max_position_embeddings, ",
            config.max_position_embeddings);
  if (options_.stride == 0) options_.stride = options_.context;
  PLX_CHECK(options_.stride >= 1 && options_.stride <= options_.context, "stride is ",
            options_.stride, ", allowed: 1 to the context, ", options_.context);
  PLX_CHECK(options_.batch_size >= 1, "batch_size is ", options_.batch_size,
            ", allowed: at least 1");
  PLX_CHECK(options_.start_token >= 0 && options_.start_token < config.vocab_size, "start token ",
            options_.start_token, " is out of range: the model's vocab_size is ",
            config.vocab_size);
}

void PerplexityMeter::add_document(std::span<const int32_t> tokens, int64_t num_bytes) {
  ++result_.num_documents;
  result_.num_bytes += num_bytes;
  const auto id_before = [&](int64_t position) {
    return position == 0 ? options_.start_token : tokens[static_cast<size_t>(position - 1)];
  };
  for (const Window& window :
       make_windows(static_cast<int64_t>(tokens.size()), options_.context, options_.stride)) {
    WaitingWindow waiting;
    for (int64_t i = 0; i < window.size; ++i) {
      const bool scored = i >= window.size - window.num_scored;
      const int32_t target = tokens[static_cast<size_t>(window.begin + i)];
      waiting.tokens.push_back(id_before(window.begin + i));
      waiting.targets.push_back(scored ? target : nn::kIgnoreIndex);
    }
    waiting_.push_back(std::move(waiting));
    if (static_cast<int64_t>(waiting_.size()) == options_.batch_size) score_waiting();
  }
}

void PerplexityMeter::score_waiting() {
  if (waiting_.empty()) return;
  size_t width = 0;
  for (const WaitingWindow& window : waiting_) width = std::max(width, window.tokens.size());
  // Padding stands at the right, where a causal model cannot see it, and is not scored.
  std::vector<int64_t> tokens, targets;
  for (const WaitingWindow& window : waiting_) {
    tokens.insert(tokens.end(), window.tokens.begin(), window.tokens.end());
    targets.insert(targets.end(), window.targets.begin(), window.targets.end());
    tokens.insert(tokens.end(), width - window.tokens.size(), options_.start_token);
    targets.insert(targets.end(), width - window.targets.size(), nn::kIgnoreIndex);
  }
  const auto shape = {static_cast<int64_t>(waiting_.size()), static_cast<int64_t>(width)};
  result_.score += score_batch(
      model_, {torch::tensor(tokens).reshape(shape), torch::tensor(targets).reshape(shape)});
  waiting_.clear();
}

PerplexityResult PerplexityMeter::finish() {
  score_waiting();
  return result_;
}

}  // namespace parallax::evaluate
