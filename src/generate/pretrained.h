// A checkpoint folder ready for use: the model, its tokenizer, and where texts begin and end.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "nn/decoder.h"
#include "text/tokenizer.h"

namespace parallax::generate {

struct Pretrained {
  nn::Decoder model{nullptr};
  std::shared_ptr<const text::Tokenizer> tokenizer;
  /// There is no tokenizer.json: `tokenizer` is the byte tokenizer because vocab_size fits it.
  bool has_assumed_tokenizer = false;
  /// What stands before the first token of a text: bos_token_id, else the first eos_token_id, of
  /// config.json; else the tokenizer's end-of-text token (training joins documents by it).
  int32_t start_token = 0;
  /// eos_token_id of generation_config.json and config.json (one or a list), and the tokenizer's.
  std::vector<int32_t> eos_tokens;
};

/// Loads a Hugging Face folder. Without a tokenizer.json the byte tokenizer is used if the model's
/// vocab_size is exactly its 257, and only then. The parameters get `dtype`. Throws parallax::Error
/// if something is missing or broken, if the tokenizer has more ids than the model or is not the
/// one that the weights name (ours do, others do not), or if no start token is known.
Pretrained load_pretrained(const std::filesystem::path& folder,
                           torch::ScalarType dtype = torch::kFloat32);

}  // namespace parallax::generate
