// Opening the data of a recipe.
// SPDX-License-Identifier: Apache-2.0
#include "train/task_data.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "core/grouped.h"
#include "io/token_shards.h"
#include "parallax/error.h"
#include "text/tokenizer.h"
#include "train/loader.h"
#include "train/recall_source.h"

namespace parallax::train {
namespace {

// Streams of one seed: the validation sequences must not occur in training.
constexpr uint64_t kValidationStream = uint64_t{1} << 63;

TaskData open_recall(const Recipe& recipe) {
  const mad::InContextRecallOptions options{.vocab_size = recipe.model.fields.vocab_size,
                                            .length = recipe.data.context_length,
                                            .seed = static_cast<uint64_t>(recipe.data.seed)};
  auto validation_options = options;
  validation_options.seed ^= kValidationStream;
  TaskData data;
  data.train = std::make_unique<RecallSource>(options, RecallTargets::kEveryToken);
  data.validation =
      std::make_unique<RecallSource>(validation_options, RecallTargets::kRecalledValues);
  data.num_validation_sequences = std::numeric_limits<int64_t>::max();
  data.with_accuracy = true;
  std::ostringstream text;
  text << "in-context recall, " << options.vocab_size / 2
       << " keys and as many values, sequences of " << options.length << " tokens, seed "
       << options.seed;
  data.description = text.str();
  return data;
}

/// int64 [vocab_size]: the bytes that each token stands for; special and unused ids stand for none.
torch::Tensor bytes_of_tokens(const text::Tokenizer& tokenizer, int64_t vocab_size) {
  torch::Tensor num_bytes = torch::zeros({vocab_size}, torch::kInt64);
  auto values = num_bytes.accessor<int64_t, 1>();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (!tokenizer.is_special(id))
      values[id] = static_cast<int64_t>(tokenizer.token_bytes(id).size());
  return num_bytes;
}

TaskData open_shards(Recipe& recipe) {
  const std::filesystem::path folder = recipe.data.path;
  PLX_CHECK(std::filesystem::is_directory(folder), "there is no token folder ", folder.string(),
            " (data.path); `plx prepare --output ", folder.string(),
            " TEXT...` makes one of text files, and --data names another");
  nn::ModelConfig& config = recipe.model.fields;
  const auto train_set =
      std::make_shared<io::TokenDataset>(folder, io::Split::kTrain, config.vocab_size);
  std::shared_ptr<const text::Tokenizer> tokenizer =
      text::load_tokenizer(folder / io::kTokenizerFile);
  PLX_CHECK(tokenizer->fingerprint() == train_set->manifest().tokenizer_fingerprint,
            folder.string(), ": tokenizer.json is not the one that made the tokens");
  PLX_CHECK(tokenizer->vocab_size() <= config.vocab_size, "the tokenizer of ", folder.string(),
            " has ", tokenizer->vocab_size(), " tokens, model.vocab_size is ", config.vocab_size);
  train_set->verify_checksums();
  if (config.eos_token_ids.empty()) config.eos_token_ids = {train_set->manifest().eos_id};

  const int64_t context_length = recipe.data.context_length;
  TaskData data;
  data.train = std::make_unique<TokenLoader>(
      train_set, LoaderOptions{.context_length = context_length,
                               .order = LoaderOptions::Order::kShuffled,
                               .seed = static_cast<uint64_t>(recipe.data.seed)});
  if (const int64_t num_tokens = train_set->manifest().validation.num_tokens; num_tokens >= 2) {
    // In a fixed pseudo-random order, so that a few windows are of many documents; in order where
    // there is hardly more than one window.
    const bool has_windows = num_tokens > 2 * context_length;
    const auto validation_set =
        std::make_shared<io::TokenDataset>(folder, io::Split::kValidation, config.vocab_size);
    validation_set->verify_checksums();
    auto validation = std::make_unique<TokenLoader>(
        validation_set, LoaderOptions{.context_length = context_length,
                                      .order = has_windows ? LoaderOptions::Order::kShuffled
                                                           : LoaderOptions::Order::kSequential});
    data.num_validation_sequences = validation->num_windows();
    data.validation = std::move(validation);
  }
  data.bytes_of_token = bytes_of_tokens(*tokenizer, config.vocab_size);
  data.tokenizer = std::move(tokenizer);
  std::ostringstream text;
  text << folder.string() << ": " << core::grouped(train_set->num_tokens())
       << " tokens to train on, " << core::grouped(train_set->manifest().validation.num_tokens)
       << " to validate on";
  data.description = text.str();
  return data;
}

}  // namespace

TaskData open_task_data(Recipe& recipe) {
  if (recipe.data.kind == "in_context_recall") return open_recall(recipe);
  return open_shards(recipe);
}

}  // namespace parallax::train
