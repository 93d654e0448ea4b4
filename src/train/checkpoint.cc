// Saving, finding, pruning and reading checkpoints.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "io/atomic_file.h"
#include "nn/checkpoint.h"
#include "optim/state_file.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "step_";
constexpr const char* kRemovedPrefix = ".removed-";
constexpr int64_t kFormatVersion = 1;

std::string folder_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "%s%08lld", kPrefix, static_cast<long long>(step));
  return name;
}

at::Generator cpu_generator() { return at::globalContext().defaultGenerator(torch::kCPU); }

void point_latest_at(const fs::path& checkpoint) {
  const fs::path link = checkpoint.parent_path() / "latest";
  const fs::path temporary = checkpoint.parent_path() / (".latest-" + std::to_string(::getpid()));
  fs::remove(temporary);
  fs::create_directory_symlink(checkpoint.filename(), temporary);
  fs::rename(temporary, link);
}

void check_finite(const std::string& name, const torch::Tensor& tensor) {
  PLX_CHECK(tensor.isfinite().all().item<bool>(), name,
            " is NaN or infinite; such a state is not saved");
}

nlohmann::json read_json(const fs::path& path) {
  const auto json = nlohmann::json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  PLX_CHECK(json.is_object(), path.string(), " is not a JSON object");
  return json;
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path folder, int64_t keep_last)
    : folder_(std::move(folder)), keep_last_(keep_last) {}

std::vector<fs::path> CheckpointStore::oldest_first() const {
  std::vector<fs::path> checkpoints;
  if (!fs::is_directory(folder_)) return checkpoints;
  for (const auto& entry : fs::directory_iterator(folder_))
    if (entry.path().filename().string().starts_with(kPrefix) && entry.is_directory())
      checkpoints.push_back(entry.path());
  std::sort(checkpoints.begin(), checkpoints.end());
  return checkpoints;
}

std::optional<fs::path> CheckpointStore::latest() const {
  const auto checkpoints = oldest_first();
  if (checkpoints.empty()) return std::nullopt;
  return checkpoints.back();
}

fs::path CheckpointStore::save(const nn::Decoder& model, const optim::Optimizer& optimizer,
                               const TrainingState& state, const std::string& tokenizer) const {
  const auto optimizer_state = optimizer.state();
  for (const auto& entry : model->named_parameters()) check_finite(entry.key(), entry.value());
  for (const auto& [name, tensor] : optimizer_state) check_finite(name, tensor);
  const fs::path checkpoint = folder_ / folder_name(state.step);
  io::AtomicFolder folder(checkpoint);
  nn::save_pretrained(model, folder.staging());
  if (!tokenizer.empty()) io::write_file(folder.staging() / "tokenizer.json", tokenizer);
  const fs::path training = folder.staging() / "training";
  fs::create_directory(training);
  optim::save_tensors(training / "optimizer.safetensors", optimizer_state);
  optim::save_tensors(training / "random.safetensors", {{"cpu", cpu_generator().get_state()}});
  io::write_file(training / "recipe.json", state.recipe.dump(1) + "\n");
  const nlohmann::json json = {{"format_version", kFormatVersion},
                               {"step", state.step},
                               {"num_tokens", state.num_tokens},
                               {"seconds", state.seconds},
                               {"data", state.data}};
  io::write_file(training / "state.json", json.dump(1) + "\n");
  folder.commit();

  point_latest_at(checkpoint);
  auto checkpoints = oldest_first();
  while (static_cast<int64_t>(checkpoints.size()) > keep_last_) {
    remove(checkpoints.front());
    checkpoints.erase(checkpoints.begin());
  }
  return checkpoint;
}

void CheckpointStore::remove(const fs::path& checkpoint) const {
  // Renamed first: a kill in the middle of the deletion must not leave half a checkpoint.
  const fs::path removed = folder_ / (kRemovedPrefix + checkpoint.filename().string());
  fs::remove_all(removed);
  fs::rename(checkpoint, removed);
  fs::remove_all(removed);
}

void CheckpointStore::clear() const {
  for (const auto& checkpoint : oldest_first()) remove(checkpoint);
  fs::remove(folder_ / "latest");
}

CheckpointContents load_checkpoint(const fs::path& checkpoint) {
  const fs::path training = checkpoint / "training";
  const nlohmann::json json = read_json(training / "state.json");
  CheckpointContents contents;
  try {
    PLX_CHECK(json.at("format_version") == kFormatVersion, "format_version is ",
              json.at("format_version").dump(), ", this program reads ", kFormatVersion);
    contents.state = {.step = json.at("step").get<int64_t>(),
                      .num_tokens = json.at("num_tokens").get<int64_t>(),
                      .seconds = json.at("seconds").get<double>(),
                      .data = json.at("data"),
                      .recipe = read_json(training / "recipe.json")};
  } catch (const std::exception& error) {
    PLX_FAIL((training / "state.json").string(), ": ", error.what());
  }
  contents.optimizer = optim::load_tensors(training / "optimizer.safetensors");
  const auto random = optim::load_tensors(training / "random.safetensors");
  PLX_CHECK(random.contains("cpu"), training.string(), "/random.safetensors has no 'cpu'");
  cpu_generator().set_state(random.at("cpu"));
  return contents;
}

}  // namespace parallax::train
