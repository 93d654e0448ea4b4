// A small decoder with random weights, the same for the same seed.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nn/decoder.h"

namespace parallax::test {

/// Two layers of 32 channels over the byte tokenizer's vocabulary. Weights are drawn wide enough
/// that the most probable token depends on the prompt.
inline nn::ModelConfig tiny_config(const std::vector<std::string>& mixers = {"parallax"}) {
  nn::ModelConfig config;
  config.vocab_size = 257;
  config.hidden_size = 32;
  config.intermediate_size = 64;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 256;
  config.initializer_range = 0.2;
  config.eos_token_ids = {256};
  config.mixers = mixers;
  return config;
}

inline nn::Decoder tiny_model(const nn::ModelConfig& config, uint64_t seed = 1) {
  torch::manual_seed(seed);
  nn::Decoder model(config);
  model->eval();
  return model;
}

}  // namespace parallax::test
