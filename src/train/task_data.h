// The data of a recipe: what to train on, what to validate on, and what its tokens are.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "train/data_source.h"
#include "train/recipe.h"

namespace parallax::train {

struct TaskData {
  std::unique_ptr<DataSource> train;
  /// Null when there is nothing to validate on.
  std::unique_ptr<DataSource> validation;
  /// Sequences that the validation source has.
  int64_t num_validation_sequences = 0;
  bool with_accuracy = false;
  /// tokenizer.json of text, empty otherwise.
  std::string tokenizer;
  /// int64 [vocab_size of the model], bytes of each token of text; undefined otherwise.
  torch::Tensor bytes_of_token;
  /// One line for people.
  std::string description;
};

/// Opens what [data] names. Where the recipe leaves model.eos_token_id open, text sets it to the
/// tokenizer's. Throws if the tokens do not fit the model's vocabulary.
TaskData open_task_data(Recipe& recipe);

}  // namespace parallax::train
