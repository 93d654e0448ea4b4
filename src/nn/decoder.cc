// Decoder.
// SPDX-License-Identifier: Apache-2.0
#include "nn/decoder.h"

#include <algorithm>
#include <string>

#include "nn/init.h"
#include "nn/mixers/softmax.h"
#include "nn/rope.h"
#include "parallax/error.h"

namespace parallax::nn {

using torch::Tensor;

int64_t DecoderCache::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers) total += layer->bytes();
  return total;
}

namespace internal {

ModelImpl::ModelImpl(const ModelConfig& config, torch::Device device) {
  embed_tokens = register_module(
      "embed_tokens",
      Linear(LinearOptions{
          .in_features = config.hidden_size, .out_features = config.vocab_size, .device = device}));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    blocks.emplace_back(MixerOptions{.config = config, .layer_idx = layer_idx, .device = device});
    layers->push_back(blocks.back());
  }
  norm = register_module("norm", RmsNorm(config.hidden_size, config.rms_norm_eps, device));
}

}  // namespace internal

DecoderImpl::DecoderImpl(const ModelConfig& config, DecoderOptions options) : config_(config) {
  config_.validate();
  model_ = register_module("model", internal::Model(config_, options.device));
  if (!config_.tie_word_embeddings)
    lm_head_ = register_module("lm_head", Linear(LinearOptions{.in_features = config_.hidden_size,
                                                               .out_features = config_.vocab_size,
                                                               .device = options.device}));
  if (options.initialize) initialize(*this, config_);
}

Tensor DecoderImpl::head_weight() const {
  return lm_head_ ? lm_head_->weight : model_->embed_tokens->weight;
}

Tensor DecoderImpl::logits(const Tensor& hidden) { return torch::linear(hidden, head_weight()); }

Tensor DecoderImpl::embed(const Tensor& tokens) const {
  PLX_CHECK(tokens.scalar_type() == torch::kInt64, "tokens must be int64, got ",
            tokens.scalar_type());
  // Reading ids back from another device would wait for all of its work; Torch's kernels assert
  // there.
  if (tokens.device().is_cpu() && tokens.numel() > 0) {
    const auto low = tokens.min().item<int64_t>(), high = tokens.max().item<int64_t>();
    PLX_CHECK(low >= 0 && high < config_.vocab_size, "token id ", low < 0 ? low : high,
              " is outside the model's vocabulary, 0 to ", config_.vocab_size - 1);
  }
  return torch::embedding(model_->embed_tokens->weight, tokens);
}

Tensor DecoderImpl::hidden(const Tensor& tokens_BT) {
  PLX_CHECK(tokens_BT.dim() == 2, "tokens must be [batch, time], got shape ", tokens_BT.sizes());
  return run_layers(tokens_BT, torch::arange(tokens_BT.size(1), tokens_BT.options()), std::nullopt);
}

Tensor DecoderImpl::hidden(const Tensor& tokens_N, const Tensor& cu_seqlens) {
  PLX_CHECK(tokens_N.dim() == 1, "packed tokens must be [total], got shape ", tokens_N.sizes());
  const int64_t total = tokens_N.size(0);
  PLX_CHECK(
      cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == torch::kInt32 && cu_seqlens.numel() > 0,
      "cu_seqlens must be int32 [B + 1], got ", cu_seqlens.scalar_type(), " ", cu_seqlens.sizes());
  const Tensor lengths = cu_seqlens.diff().to(torch::kInt64);
  PLX_CHECK(cu_seqlens[0].item<int32_t>() == 0 && cu_seqlens[-1].item<int32_t>() == total &&
                lengths.ge(0).all().item<bool>(),
            "cu_seqlens must rise from 0 to ", total, ", the number of tokens, got ", cu_seqlens);
  const Tensor starts = cu_seqlens.slice(0, 0, -1).to(torch::kInt64).repeat_interleave(lengths);
  return run_layers(tokens_N, torch::arange(total, tokens_N.options()) - starts, cu_seqlens);
}

Tensor DecoderImpl::run_layers(const Tensor& tokens, const Tensor& positions,
                               const std::optional<Tensor>& cu_seqlens) {
  const auto rope = rotary_tables(positions, config_.head_dim, config_.rope_theta);
  const bool recompute = activation_checkpointing_ && torch::GradMode::is_enabled();
  Tensor x = embed(tokens);
  for (Block& block : model_->blocks)
    x = recompute ? checkpointed(block, x, rope, cu_seqlens) : block(x, rope, cu_seqlens);
  return model_->norm(x, x.scalar_type());
}

DecoderCache DecoderImpl::make_cache(int64_t batch_size, int64_t capacity) const {
  PLX_CHECK(batch_size >= 1 && capacity >= 1, "a cache needs at least one sequence and one token, ",
            "got batch size ", batch_size, " and capacity ", capacity);
  const Tensor& weight = model_->embed_tokens->weight;
  const auto options = weight.options().dtype(compute_dtype(weight));
  DecoderCache cache;
  cache.capacity = capacity;
  cache.num_tokens.assign(static_cast<size_t>(batch_size), 0);
  for (const Block& block : model_->blocks)
    cache.layers.push_back(
        block->mixer().make_cache(batch_size, capacity, options.requires_grad(false)));
  return cache;
}

namespace {

/// Where new tokens go: sequence b continues at cache.num_tokens[b].
DecodeStep make_step(const std::vector<int64_t>& num_new_tokens, const DecoderCache& cache,
                     torch::Device device) {
  PLX_CHECK(num_new_tokens.size() == cache.num_tokens.size(), "decode: token counts of ",
            num_new_tokens.size(), " sequences were given for a cache of ",
            cache.num_tokens.size());
  std::vector<int32_t> cu_seqlens = {0}, cache_seqlens;
  std::vector<int64_t> batch, position;
  for (size_t seq = 0; seq < num_new_tokens.size(); ++seq) {
    const int64_t start = cache.num_tokens[seq], count = num_new_tokens[seq];
    PLX_CHECK(count >= 0, "decode: sequence ", seq, " has ", count, " new tokens");
    PLX_CHECK(start + count <= cache.capacity, "decode: the cache is full: sequence ", seq,
              " holds ", start, " tokens and gets ", count, " more, but the capacity is ",
              cache.capacity);
    for (int64_t token = 0; token < count; ++token) {
      batch.push_back(static_cast<int64_t>(seq));
      position.push_back(start + token);
    }
    cu_seqlens.push_back(static_cast<int32_t>(batch.size()));
    cache_seqlens.push_back(static_cast<int32_t>(start + count));
  }
  return {.cu_seqlens = torch::tensor(cu_seqlens, torch::kInt32).to(device),
          .cache_seqlens = torch::tensor(cache_seqlens, torch::kInt32).to(device),
          .batch_N = torch::tensor(batch, torch::kInt64).to(device),
          .position_N = torch::tensor(position, torch::kInt64).to(device)};
}

}  // namespace

Tensor DecoderImpl::decode(const Tensor& tokens_N, const std::vector<int64_t>& num_new_tokens,
                           DecoderCache& cache) {
  const torch::NoGradGuard no_grad;
  const DecodeStep step = make_step(num_new_tokens, cache, tokens_N.device());
  PLX_CHECK(tokens_N.dim() == 1 && tokens_N.size(0) == step.batch_N.size(0),
            "decode: tokens must be [", step.batch_N.size(0),
            "], the sum of the token counts, got ", tokens_N.sizes());
  PLX_CHECK(cache.layers.size() == model_->blocks.size(), "decode: the cache has ",
            cache.layers.size(), " layers, the model ", model_->blocks.size());
  const auto rope = rotary_tables(step.position_N, config_.head_dim, config_.rope_theta);
  Tensor x = embed(tokens_N);
  for (size_t layer = 0; layer < cache.layers.size(); ++layer)
    x = model_->blocks[layer]->decode(x, rope, step, *cache.layers[layer]);
  for (size_t seq = 0; seq < num_new_tokens.size(); ++seq)
    cache.num_tokens[seq] += num_new_tokens[seq];
  return model_->norm(x, x.scalar_type());
}

double DecoderImpl::flops(int64_t num_tokens) const {
  const auto tokens = static_cast<double>(num_tokens);
  const auto hidden = static_cast<double>(config_.hidden_size);
  const double mlp = 6 * tokens * hidden * static_cast<double>(config_.intermediate_size);
  double total = 2 * tokens * hidden * static_cast<double>(config_.vocab_size);
  for (const Block& block : model_->blocks) total += mlp + block->mixer().flops(num_tokens);
  return total;
}

int64_t num_parameters(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace parallax::nn
