// The data of a recipe: what to train on, what to validate on, and what its tokens are.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "text/tokenizer.h"
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
  /// Of text; null otherwise.
  std::shared_ptr<const text::Tokenizer> tokenizer;
  /// int64 [vocab_size of the model], bytes of each token of text; undefined otherwise.
  torch::Tensor bytes_of_token;
  /// One line for people.
  std::string description;
};

/// Opens what [data] names. Where the recipe leaves model.eos_token_id open, text sets it to the
/// tokenizer's. Throws if the tokens do not fit the model's vocabulary, or
/// have changed since they were made (all are read: 1 s per GB in the page cache).
TaskData open_task_data(Recipe& recipe);

}  // namespace parallax::train
