// The model's configuration: Hugging Face's config.json of Qwen3, Qwen2 and Llama, plus our own
// fields.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace parallax::nn {

/// Field names and defaults are Qwen3's; visit_fields() below is the one list of them.
struct ModelConfig {
  std::string model_type = "parallax_qwen3";
  std::vector<std::string> architectures = {"ParallaxQwen3ForCausalLM"};
  int64_t vocab_size = 151936;
  int64_t hidden_size = 1024;
  int64_t intermediate_size = 3072;
  int64_t num_hidden_layers = 28;
  int64_t num_attention_heads = 16;
  int64_t num_key_value_heads = 8;
  int64_t head_dim = 128;
  int64_t max_position_embeddings = 40960;
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = true;
  std::optional<int64_t> bos_token_id;
  /// Every token that ends a text: one id or a list in the file.
  std::vector<int64_t> eos_token_ids;
  /// Keys visible to a query in every layer, itself included; all when absent.
  std::optional<int64_t> sliding_window;
  /// The token mixer of each layer, by name; one name stands for all layers.
  std::vector<std::string> mixers = {"parallax"};
  /// Per-head RMSNorm on q and k (Qwen3: true; Qwen2, Llama: false).
  bool qk_norm = true;
  /// Bias on the q, k, v projections (Qwen2: true).
  bool attention_bias = false;
  /// Parallax: bias on r_proj, RMSNorm on r, RoPE on r, what the r_norm gain starts at.
  bool r_proj_bias = false;
  bool r_norm = true;
  bool r_rope = true;
  double r_norm_init = 1.0;

  /// The mixer of one layer (0-based).
  const std::string& mixer_of(int64_t layer_idx) const;
  /// Throws parallax::Error unless every field is in range and they fit together.
  void validate() const;
  bool operator==(const ModelConfig&) const = default;
};

/// Calls visitor(name, field) for every field of config.json: reading, writing, comparing and
/// printing all go through this list.
template <typename Config, typename Visitor>
void visit_fields(Config& config, Visitor&& visitor) {
  visitor("model_type", config.model_type);
  visitor("architectures", config.architectures);
  visitor("vocab_size", config.vocab_size);
  visitor("hidden_size", config.hidden_size);
  visitor("intermediate_size", config.intermediate_size);
  visitor("num_hidden_layers", config.num_hidden_layers);
  visitor("num_attention_heads", config.num_attention_heads);
  visitor("num_key_value_heads", config.num_key_value_heads);
  visitor("head_dim", config.head_dim);
  visitor("max_position_embeddings", config.max_position_embeddings);
  visitor("rms_norm_eps", config.rms_norm_eps);
  visitor("rope_theta", config.rope_theta);
  visitor("initializer_range", config.initializer_range);
  visitor("tie_word_embeddings", config.tie_word_embeddings);
  visitor("bos_token_id", config.bos_token_id);
  visitor("eos_token_id", config.eos_token_ids);
  visitor("sliding_window", config.sliding_window);
  visitor("mixers", config.mixers);
  visitor("qk_norm", config.qk_norm);
  visitor("attention_bias", config.attention_bias);
  visitor("r_proj_bias", config.r_proj_bias);
  visitor("r_norm", config.r_norm);
  visitor("r_rope", config.r_rope);
  visitor("r_norm_init", config.r_norm_init);
}

/// Reads a config.json. Qwen3, Qwen2 and Llama files become softmax models of that model_type, with
/// transformers' meaning of absent fields. Unknown fields of those are ignored; unknown fields of
/// our own model_type are errors that name the nearest known one. What would change the model's
/// function and is not built (RoPE scaling, other activations, windows on some layers only, ...) is
/// refused by name.
ModelConfig load_config_file(const std::filesystem::path& path);
/// load_config_file(folder/config.json).
ModelConfig load_config(const std::filesystem::path& folder);
/// Ids as config.json has them: null for none, a number for one, else a list.
nlohmann::ordered_json one_or_list(const std::vector<int64_t>& ids);
/// The text of config.json, which load_config_file() reads back to an equal config.
std::string to_json(const ModelConfig& config);
/// Writes folder/config.json atomically.
void save_config(const ModelConfig& config, const std::filesystem::path& folder);

}  // namespace parallax::nn
