// Loss and accuracy of given targets.
// SPDX-License-Identifier: Apache-2.0
#include "evaluate/score.h"

#include <torch/nn/functional/loss.h>

#include <algorithm>
#include <cmath>

#include "nn/loss.h"
#include "parallax/error.h"

namespace parallax::evaluate {
namespace {

/// Eval mode for a scope.
class EvalMode {
 public:
  explicit EvalMode(nn::Decoder& model) : model_(model), was_training_(model->is_training()) {
    model_->eval();
  }
  ~EvalMode() { model_->train(was_training_); }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  nn::Decoder& model_;
  bool was_training_;
};

void check_ids(const char* what, const torch::Tensor& ids, int64_t vocab_size) {
  if (ids.numel() == 0) return;
  const auto smallest = ids.min().item<int64_t>(), largest = ids.max().item<int64_t>();
  PLX_CHECK(smallest >= 0 && largest < vocab_size, what, " id ", smallest < 0 ? smallest : largest,
            " is outside the model's vocabulary, 0 to ", vocab_size - 1);
}

}  // namespace

double Score::loss() const {
  return num_targets > 0 ? sum_nats / static_cast<double>(num_targets) : 0.0;
}

double Score::perplexity() const { return std::exp(loss()); }

double Score::accuracy() const {
  return num_targets > 0 ? static_cast<double>(num_correct) / static_cast<double>(num_targets)
                         : 0.0;
}

Score& Score::operator+=(const Score& other) {
  sum_nats += other.sum_nats;
  num_targets += other.num_targets;
  num_correct += other.num_correct;
  return *this;
}

Score score_batch(nn::Decoder& model, const ScoredBatch& batch, int64_t chunk_targets) {
  const auto& [tokens_BT, targets_BT] = batch;
  PLX_CHECK(tokens_BT.dim() == 2 && tokens_BT.sizes() == targets_BT.sizes(),
            "tokens and targets must both be [B, T], got ", tokens_BT.sizes(), " and ",
            targets_BT.sizes());
  PLX_CHECK(chunk_targets >= 1, "chunk_targets is ", chunk_targets, ", allowed: at least 1");
  const torch::NoGradGuard no_grad;
  const EvalMode eval_mode(model);
  // Which targets count is found out where the batch is; the model's device is waited for once.
  const torch::Device device = model->head_weight().device();
  const torch::Tensor flat_targets = targets_BT.reshape({-1});
  const torch::Tensor counted_here = (flat_targets != nn::kIgnoreIndex).nonzero().squeeze(-1);
  const torch::Tensor targets_here = flat_targets.index_select(0, counted_here);
  check_ids("target", targets_here, model->config().vocab_size);
  check_ids("token", tokens_BT, model->config().vocab_size);
  const torch::Tensor counted = counted_here.to(device), targets = targets_here.to(device);

  Score score;
  score.num_targets = targets.size(0);
  if (score.num_targets == 0) return score;
  const torch::Tensor hidden = model->hidden(tokens_BT.to(device)).flatten(0, 1);
  torch::Tensor sum_nats = torch::zeros({}, targets.options().dtype(torch::kFloat64));
  torch::Tensor num_correct = torch::zeros({}, targets.options());
  for (int64_t begin = 0; begin < score.num_targets; begin += chunk_targets) {
    const int64_t count = std::min(chunk_targets, score.num_targets - begin);
    const torch::Tensor chunk = hidden.index_select(0, counted.narrow(0, begin, count));
    const torch::Tensor logits_NV = model->logits(chunk).to(torch::kFloat32);
    const torch::Tensor target_N = targets.narrow(0, begin, count);
    const torch::Tensor nats_N = torch::nn::functional::cross_entropy(
        logits_NV, target_N,
        torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
    sum_nats += nats_N.to(torch::kFloat64).sum();
    num_correct += (logits_NV.argmax(-1) == target_N).sum();
  }
  score.sum_nats = sum_nats.item<double>();
  score.num_correct = num_correct.item<int64_t>();
  PLX_CHECK(std::isfinite(score.sum_nats), "the loss is ", score.sum_nats,
            ": the model's weights or activations are not finite");
  return score;
}

Score evaluate(nn::Decoder& model, const std::function<std::optional<ScoredBatch>()>& next_batch) {
  Score total;
  while (const std::optional<ScoredBatch> batch = next_batch()) total += score_batch(model, *batch);
  return total;
}

}  // namespace parallax::evaluate
