// The decoder: embedding, layers of token mixer and SwiGLU, final norm, head. Qwen3 exactly, with
// the token mixer chosen per layer.
//
// Legend: B sequences, T tokens each, N packed tokens, C hidden size, V vocabulary.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/block.h"
#include "nn/config.h"
#include "nn/linear.h"
#include "nn/mixer.h"

namespace parallax::nn {

/// The caches of all layers, and how many tokens of each sequence they hold.
struct DecoderCache {
  std::vector<std::unique_ptr<MixerCache>> layers;
  int64_t capacity = 0;
  std::vector<int64_t> num_tokens;  ///< per sequence
  int64_t bytes() const;
};

struct DecoderOptions {
  /// torch::kMeta gives shapes without memory.
  torch::Device device = torch::kCPU;
  /// Fill the parameters (init.h); without, they hold whatever the memory held.
  bool initialize = true;
};

namespace internal {

/// Everything below the head, under the prefix "model." that parameter names carry.
struct ModelImpl : torch::nn::Module {
  ModelImpl(const ModelConfig& config, torch::Device device);
  Linear embed_tokens{nullptr};  ///< [V, C]; a table, not applied as a map
  torch::nn::ModuleList layers{nullptr};
  std::vector<Block> blocks;  ///< the same modules as `layers`, by their type
  RmsNorm norm{nullptr};
};
TORCH_MODULE(Model);

}  // namespace internal

/// Parameter names are Hugging Face's: model.embed_tokens.weight,
/// model.layers.0.self_attn.q_proj.weight, ...
class DecoderImpl : public torch::nn::Module {
 public:
  /// Parameters are float32, initialised as init.h says. Throws parallax::Error if the config is
  /// not valid.
  explicit DecoderImpl(const ModelConfig& config, DecoderOptions options = {});

  /// Final-norm hidden states [B, T, C] of tokens int64 [B, T]; every sequence starts at position
  /// 0. Ids out of range throw parallax::Error where the tokens are on a CPU; on a CUDA device they
  /// are the caller's to check, as nothing here waits for the device.
  torch::Tensor hidden(const torch::Tensor& tokens_BT);
  /// The same for sequences of any lengths packed one after another: tokens int64 [N] and their
  /// boundaries cu_seqlens (int32 [B + 1], from 0 to N, not decreasing) -> [N, C]. No sequence sees
  /// another.
  torch::Tensor hidden(const torch::Tensor& tokens_N, const torch::Tensor& cu_seqlens);
  /// Logits [.., V] of hidden states [.., C].
  torch::Tensor logits(const torch::Tensor& hidden);
  torch::Tensor forward(const torch::Tensor& tokens_BT) { return logits(hidden(tokens_BT)); }

  /// In the parameters' dtype, or autocast's where it is on. Memory of all `capacity` tokens is
  /// taken at once.
  DecoderCache make_cache(int64_t batch_size, int64_t capacity) const;
  /// Hidden states [N, C] of new tokens: sequence b gets the next num_new_tokens[b] entries of
  /// tokens int64 [N]; counts may differ and be 0. The cache grows by them. Throws if one sequence
  /// would exceed the capacity; then the cache is as before. Inference only.
  torch::Tensor decode(const torch::Tensor& tokens_N, const std::vector<int64_t>& num_new_tokens,
                       DecoderCache& cache);

  /// The output matrix [V, C]: lm_head.weight, or the embedding when tied.
  torch::Tensor head_weight() const;
  const ModelConfig& config() const { return config_; }
  /// Recompute each layer in the backward pass instead of keeping its activations.
  void set_activation_checkpointing(bool enabled) { activation_checkpointing_ = enabled; }
  /// Forward FLOPs of one sequence of T tokens, head included.
  double flops(int64_t num_tokens) const;

 private:
  torch::Tensor embed(const torch::Tensor& tokens) const;
  torch::Tensor run_layers(const torch::Tensor& tokens, const torch::Tensor& positions,
                           const std::optional<torch::Tensor>& cu_seqlens);

  ModelConfig config_;
  internal::Model model_{nullptr};
  Linear lm_head_{nullptr};
  bool activation_checkpointing_ = false;
};
TORCH_MODULE(Decoder);

/// Elements of all parameters; those of a tied head count once.
int64_t num_parameters(const torch::nn::Module& module);

}  // namespace parallax::nn
