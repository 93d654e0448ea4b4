// Perplexity and bits per byte of documents longer than the context, window by window.
//
// A document t_1 .. t_n is scored as log p(t_1 .. t_n | start): the start token stands before it
// and is not scored itself. Windows of `context` tokens move over it by `stride`, and a token is
// scored in the first window that reaches it, so every token counts exactly once. With stride =
// context the windows are disjoint, the first token of a later window is conditioned on the one
// token before it, and the result depends on the context (the rolling likelihood of
// lm-evaluation-harness). A smaller stride leaves each token at least context - stride tokens
// before it, at context / stride times the cost.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "evaluate/score.h"

namespace parallax::evaluate {

struct PerplexityOptions {
  /// Tokens per window, at most the model's max_position_embeddings.
  int64_t context = 1024;
  /// Tokens a window moves on; 0 stands for context. At most context.
  int64_t stride = 0;
  /// Windows per forward pass.
  int64_t batch_size = 8;
  int32_t start_token = 0;
};

struct PerplexityResult {
  Score score;
  int64_t num_documents = 0, num_bytes = 0;
  /// Nats in all / (bytes in all * ln 2); 0 of no bytes.
  double bits_per_byte() const;
};

/// Inputs and how many of the last targets a window scores: the targets are tokens 1 .. size of
/// `start .. begin + size` of the document with its start token in front.
struct Window {
  int64_t begin = 0, size = 0, num_scored = 0;
};
/// The windows of a document of num_tokens tokens, start token not counted.
std::vector<Window> make_windows(int64_t num_tokens, int64_t context, int64_t stride);

/// Scores documents one after the other; keeps at most batch_size windows of tokens.
class PerplexityMeter {
 public:
  /// Throws parallax::Error for an option out of range.
  PerplexityMeter(nn::Decoder model, const PerplexityOptions& options);

  /// num_bytes: the length of the text that the tokens stand for. Throws for ids out of range.
  void add_document(std::span<const int32_t> tokens, int64_t num_bytes);
  /// Scores what is waiting and returns the result of all documents.
  PerplexityResult finish();
  /// Targets scored so far.
  int64_t num_scored() const { return result_.score.num_targets; }

 private:
  void score_waiting();

  nn::Decoder model_;
  PerplexityOptions options_;
  PerplexityResult result_;
  struct WaitingWindow {
    std::vector<int64_t> tokens, targets;
  };
  std::vector<WaitingWindow> waiting_;
};

}  // namespace parallax::evaluate
