// See loader.h.
// SPDX-License-Identifier: Apache-2.0
#include "train/loader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "io/hash.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

using Order = LoaderOptions::Order;

const char* order_name(Order order) {
  return order == Order::kShuffled ? "shuffled" : "sequential";
}

// The fields of a state that must be those of the loader that takes it.
nlohmann::json identity(const io::TokenDataset& dataset, const LoaderOptions& options) {
  return {{"order", order_name(options.order)},
          {"data", dataset.fingerprint()},
          {"seed", options.seed},
          {"context_length", options.context_length}};
}

}  // namespace

TokenLoader::TokenLoader(std::shared_ptr<const io::TokenDataset> dataset, LoaderOptions options)
    : dataset_(std::move(dataset)), options_(options) {
  PLX_CHECK(options_.context_length >= 1, "context_length must be at least 1, given ",
            options_.context_length);
  const int64_t needed = is_shuffled() ? options_.context_length + 1 : 2;
  PLX_CHECK(dataset_->num_tokens() >= needed, dataset_->folder().string(), ": split ",
            split_name(dataset_->split()), " has ", dataset_->num_tokens(),
            " tokens, one window takes ", needed,
            is_shuffled() ? " (context_length + 1); prepare more text or shorten the context" : "");
  start_epoch(0);
}

void TokenLoader::start_epoch(int64_t epoch) {
  epoch_ = epoch;
  position_ = 0;
  const int64_t length = options_.context_length;
  const int64_t num_targets = dataset_->num_tokens() - 1;
  if (!is_shuffled()) {
    num_windows_ = (num_targets + length - 1) / length;
    return;
  }
  // At least one window remains behind the largest offset.
  const int64_t num_offsets = std::min(length, num_targets - length + 1);
  const uint64_t key = io::mix64(options_.seed) + static_cast<uint64_t>(epoch);
  offset_ = static_cast<int64_t>(io::mix64(key ^ 0x0FF5E7) % static_cast<uint64_t>(num_offsets));
  num_windows_ = (num_targets - offset_) / length;
  permutation_ = Permutation(num_windows_, key);
}

Batch TokenLoader::next(int64_t batch_size) {
  PLX_CHECK(batch_size >= 1, "batch_size must be at least 1, given ", batch_size);
  int64_t num_rows = batch_size;
  if (!is_shuffled()) {
    num_rows = std::min(batch_size, num_windows_ - position_);
    PLX_CHECK(num_rows > 0, dataset_->folder().string(), ": the one pass over split ",
              split_name(dataset_->split()), " is over after ", num_windows_,
              " windows; reset() starts another");
  }
  const int64_t length = options_.context_length;
  Batch batch{.tokens_BT = torch::empty({num_rows, length}, torch::kInt64),
              .targets_BT = torch::empty({num_rows, length}, torch::kInt64)};
  const auto row_of = [length](torch::Tensor& tensor, int64_t row) {
    return std::span(tensor.mutable_data_ptr<int64_t>() + row * length,
                     static_cast<size_t>(length));
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    if (is_shuffled() && position_ == num_windows_) start_epoch(epoch_ + 1);
    const int64_t window = is_shuffled() ? permutation_(position_) : position_;
    read_window(offset_ + window * length, row_of(batch.tokens_BT, row),
                row_of(batch.targets_BT, row));
    ++position_;
  }
  return batch;
}

void TokenLoader::read_window(int64_t start, std::span<int64_t> tokens,
                              std::span<int64_t> targets) const {
  const int64_t left = dataset_->num_tokens() - 1 - start;
  const auto here = std::min(tokens.size(), static_cast<size_t>(left));
  dataset_->read(start, tokens.first(here));
  std::copy(tokens.begin() + 1, tokens.begin() + static_cast<std::ptrdiff_t>(here),
            targets.begin());
  dataset_->read(start + static_cast<int64_t>(here), targets.subspan(here - 1, 1));
  std::fill(tokens.begin() + static_cast<std::ptrdiff_t>(here), tokens.end(),
            dataset_->manifest().eos_id);
  std::fill(targets.begin() + static_cast<std::ptrdiff_t>(here), targets.end(), kIgnoreIndex);
}

nlohmann::json TokenLoader::state() const {
  nlohmann::json state = identity(*dataset_, options_);
  state["epoch"] = epoch_;
  state["position"] = position_;
  return state;
}

void TokenLoader::load_state(const nlohmann::json& state) {
  PLX_CHECK(state.is_object(), "data state: a JSON object is needed, it is ", state.dump());
  const nlohmann::json own = identity(*dataset_, options_);
  for (const auto& [key, value] : own.items()) {
    const auto found = state.find(key);
    PLX_CHECK(found != state.end() && *found == value, "cannot resume on other data: \"", key,
              "\" was ", found == state.end() ? "not stored" : found->dump(), ", now it is ",
              value.dump());
  }
  const int64_t epoch = count_in(state, "epoch"), position = count_in(state, "position");
  const int64_t old_epoch = epoch_, old_position = position_;
  start_epoch(epoch);
  if (position > num_windows_) {
    const int64_t num_windows = num_windows_;
    start_epoch(old_epoch);
    position_ = old_position;
    PLX_FAIL("data state: position ", position, " of an epoch of ", num_windows, " windows");
  }
  position_ = position;
}

}  // namespace parallax::train
