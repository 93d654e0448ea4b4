// Small models for tests.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nn/decoder.h"
#include "nn/kv_cache.h"

namespace parallax::nn::testing {

/// Two layers, grouped key heads, a head size that is no power of two, weights large enough that
/// attention is not uniform.
inline ModelConfig small_config(const std::string& mixer) {
  ModelConfig config;
  config.vocab_size = 61;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 12;
  config.initializer_range = 0.2;
  config.mixers = {mixer};
  return config;
}

inline Decoder make_model(const ModelConfig& config, torch::ScalarType dtype = torch::kFloat64) {
  torch::manual_seed(7);
  Decoder model(config);
  model->to(dtype);
  return model;
}

inline torch::Tensor random_tokens(const ModelConfig& config, torch::IntArrayRef shape) {
  return torch::randint(config.vocab_size, shape, torch::kInt64);
}

/// A cache whose memory starts as NaN: a read of an entry that was never written shows.
inline DecoderCache poisoned_cache(const Decoder& model, int64_t batch_size, int64_t capacity) {
  DecoderCache cache = model->make_cache(batch_size, capacity);
  for (auto& layer : cache.layers) {
    if (auto* kv = dynamic_cast<KvCache*>(layer.get())) {
      kv->k.fill_(NAN);
      kv->v.fill_(NAN);
    }
  }
  return cache;
}

/// Hidden states [B, T, C] of tokens [B, T] through the cache: `prefill[b]` tokens of each sequence
/// at once, the rest one by one.
inline torch::Tensor decode_all(Decoder& model, const torch::Tensor& tokens_BT,
                                const std::vector<int64_t>& prefill) {
  const int64_t num_sequences = tokens_BT.size(0), num_tokens = tokens_BT.size(1);
  DecoderCache cache = poisoned_cache(model, num_sequences, num_tokens + 3);
  std::vector<std::vector<torch::Tensor>> parts(static_cast<size_t>(num_sequences));
  for (bool first = true, more = true; more; first = false) {
    std::vector<torch::Tensor> new_tokens;
    std::vector<int64_t> counts;
    for (int64_t seq = 0; seq < num_sequences; ++seq) {
      const auto idx = static_cast<size_t>(seq);
      const int64_t begin = cache.num_tokens[idx];
      counts.push_back(first ? prefill[idx] : std::min<int64_t>(1, num_tokens - begin));
      new_tokens.push_back(tokens_BT[seq].slice(0, begin, begin + counts.back()));
    }
    const auto hidden = model->decode(torch::cat(new_tokens), counts, cache);
    const auto split = hidden.split_with_sizes(counts);
    more = false;
    for (size_t idx = 0; idx < parts.size(); ++idx) {
      parts[idx].push_back(split[idx]);
      more = more || cache.num_tokens[idx] < num_tokens;
    }
  }
  std::vector<torch::Tensor> sequences;
  for (const auto& part : parts) sequences.push_back(torch::cat(part));
  return torch::stack(sequences);
}

inline double max_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace parallax::nn::testing
