// Hugging Face checkpoint folders: config.json and model.safetensors (sharded when large).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "nn/decoder.h"

namespace parallax::nn {

/// Builds the model that folder/config.json describes and fills it from the safetensors files.
/// A missing, superfluous or misshapen tensor is an error that names it. A stored lm_head.weight of
/// a tied model is accepted if it equals the embedding.
Decoder load_pretrained(const std::filesystem::path& folder);

struct SaveOptions {
  torch::ScalarType dtype = torch::kFloat32;  ///< float32, bfloat16 or float16
  int64_t max_shard_bytes = int64_t{5} << 30;
  /// text::Tokenizer::fingerprint() of what the model was trained with; kept beside the weights.
  std::string tokenizer_fingerprint = {};
};

/// Writes config.json and the weights into an existing folder, in files of at most max_shard_bytes.
void save_pretrained(const Decoder& model, const std::filesystem::path& folder,
                     const SaveOptions& options = {});

/// The tokenizer_fingerprint that the weights in `folder` were saved with; empty if there is none,
/// as in checkpoints from elsewhere.
std::string load_tokenizer_fingerprint(const std::filesystem::path& folder);

}  // namespace parallax::nn
