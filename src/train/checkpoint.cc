// Saving, finding, pruning and reading checkpoints.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <ATen/Context.h>
#include <torch/cuda.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <vector>

#include "io/atomic_file.h"
#include "io/hash.h"
#include "io/json_error.h"
#include "io/mapped_file.h"
#include "nn/checkpoint.h"
#include "optim/state_file.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "step_";
constexpr const char* kRemovedPrefix = ".removed-";
constexpr int64_t kFormatVersion = 2;

std::string folder_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "%s%08lld", kPrefix, static_cast<long long>(step));
  return name;
}

/// The step of a folder's name, if it is one that folder_name() gives.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = -1;
  const char* const end = name.data() + name.size();
  std::from_chars(name.data() + std::strlen(kPrefix), end, step);
  return step >= 0 && folder_name(step) == name ? std::optional(step) : std::nullopt;
}

/// Torch's generator of a device: of the current one where CUDA has several.
at::Generator generator(torch::Device device) {
  return at::globalContext().defaultGenerator(device);
}

/// The states of the generators that a model on `device` could draw from.
std::map<std::string, torch::Tensor> random_states(torch::Device device) {
  std::map<std::string, torch::Tensor> states = {{"cpu", generator(torch::kCPU).get_state()}};
  if (device.is_cuda()) states["cuda"] = generator(device).get_state();
  return states;
}

void point_latest_at(const fs::path& checkpoint) {
  const fs::path link = checkpoint.parent_path() / "latest";
  const fs::path temporary = checkpoint.parent_path() / ".latest";
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

std::string checksum(const fs::path& file) {
  const io::MappedFile map(file);
  return io::to_hex(io::crc32(map.bytes().data(), map.bytes().size()), 8);
}

/// CRC-32 of every file in a checkpoint, by its path in there.
nlohmann::json checksums(const fs::path& checkpoint) {
  auto sums = nlohmann::json::object();
  for (const auto& entry : fs::recursive_directory_iterator(checkpoint))
    if (entry.is_regular_file())
      sums[entry.path().lexically_relative(checkpoint).string()] = checksum(entry.path());
  return sums;
}

void verify(const fs::path& checkpoint, const std::map<std::string, std::string>& files) {
  for (const auto& [file, expected] : files) {
    const std::string found = checksum(checkpoint / file);
    PLX_CHECK(found == expected, (checkpoint / file).string(),
              " has changed since the checkpoint was saved (CRC-32 ", found, ", then ", expected,
              "); model.init_from starts a new run from changed weights");
  }
}

TrainingState read_state(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "training" / "state.json";
  const nlohmann::json json = read_json(path);
  TrainingState state;
  try {
    PLX_CHECK(json.at("format_version") == kFormatVersion, "format_version is ",
              json.at("format_version").dump(), ", this program reads ", kFormatVersion);
    verify(checkpoint, json.at("files").get<std::map<std::string, std::string>>());
    state = {.step = json.at("step").get<int64_t>(),
             .num_tokens = json.at("num_tokens").get<int64_t>(),
             .seconds = json.at("seconds").get<double>(),
             .data = json.at("data"),
             .recipe = read_json(checkpoint / "training" / "recipe.json")};
    PLX_CHECK(state.step >= 0 && state.num_tokens >= 0 && state.seconds >= 0, "step ", state.step,
              ", num_tokens ", state.num_tokens, " and seconds ", state.seconds,
              " must not be negative");
  } catch (const std::exception& error) {
    PLX_FAIL(path.string(), ": ", io::plain_what(error));
  }
  return state;
}

}  // namespace

std::map<int64_t, fs::path> CheckpointStore::by_step() const {
  std::map<int64_t, fs::path> checkpoints;
  if (!fs::is_directory(folder_)) return checkpoints;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory()) checkpoints.emplace(*step, entry.path());
  }
  return checkpoints;
}

fs::path CheckpointStore::path_of(int64_t step) const { return folder_ / folder_name(step); }

std::optional<fs::path> CheckpointStore::latest() const {
  const auto checkpoints = by_step();
  if (checkpoints.empty()) return std::nullopt;
  return checkpoints.rbegin()->second;
}

fs::path CheckpointStore::save(const nn::Decoder& model, const optim::Optimizer& optimizer,
                               const TrainingState& state, const text::Tokenizer* tokenizer) const {
  const auto optimizer_state = optimizer.state();
  for (const auto& entry : model->named_parameters()) check_finite(entry.key(), entry.value());
  for (const auto& [name, tensor] : optimizer_state) check_finite(name, tensor);
  const fs::path checkpoint = path_of(state.step);
  io::AtomicFolder folder(checkpoint);
  nn::SaveOptions options;
  if (tokenizer != nullptr) {
    options.tokenizer_fingerprint = tokenizer->fingerprint();
    io::write_file(folder.staging() / "tokenizer.json", tokenizer->serialized());
  }
  nn::save_pretrained(model, folder.staging(), options);
  const fs::path training = folder.staging() / "training";
  fs::create_directory(training);
  optim::save_tensors(training / "optimizer.safetensors", optimizer_state);
  optim::save_tensors(training / "random.safetensors",
                      random_states(model->head_weight().device()));
  io::write_file(training / "recipe.json", state.recipe.dump(1) + "\n");
  const nlohmann::json json = {{"format_version", kFormatVersion},
                               {"step", state.step},
                               {"num_tokens", state.num_tokens},
                               {"seconds", state.seconds},
                               {"data", state.data},
                               {"files", checksums(folder.staging())}};
  io::write_file(training / "state.json", json.dump(1) + "\n");
  folder.commit();
  point_latest_at(checkpoint);
  return checkpoint;
}

bool CheckpointStore::holds(const fs::path& path) const {
  std::error_code unknown;
  const fs::path real = fs::weakly_canonical(path, unknown);
  for (const auto& [step, checkpoint] : by_step()) {
    const fs::path inside = real.lexically_relative(fs::weakly_canonical(checkpoint, unknown));
    if (!inside.empty() && *inside.begin() != "..") return true;
  }
  return false;
}

uint64_t CheckpointStore::num_bytes() const {
  uint64_t sum = 0;
  for (const auto& [step, checkpoint] : by_step())
    for (const auto& entry : fs::recursive_directory_iterator(checkpoint))
      if (entry.is_regular_file()) sum += entry.file_size();
  return sum;
}

void CheckpointStore::check_space(const nn::Decoder& model, const optim::Optimizer& optimizer,
                                  uint64_t freed_bytes) const {
  uint64_t needed = 0;
  for (const auto& weight : model->parameters()) needed += weight.nbytes();
  for (const auto& [name, tensor] : optimizer.state()) needed += tensor.nbytes();
  std::error_code unknown;
  const fs::space_info space = fs::space(folder_, unknown);
  PLX_CHECK(unknown || space.available + freed_bytes >= needed, "a checkpoint takes ",
            (needed >> 20) + 1, " MiB, and the disk of ", folder_.string(), " has ",
            (space.available + freed_bytes) >> 20, " MiB left",
            freed_bytes > 0 ? " without the older run" : "");
}

void CheckpointStore::prune(int64_t step, int64_t keep_last) const {
  auto checkpoints = by_step();
  checkpoints.erase(checkpoints.lower_bound(step), checkpoints.end());
  while (static_cast<int64_t>(checkpoints.size()) >= keep_last) {
    remove(checkpoints.begin()->second);
    checkpoints.erase(checkpoints.begin());
  }
}

void CheckpointStore::remove(const fs::path& checkpoint) const {
  // Renamed first: a kill in the middle of the deletion must not leave half a checkpoint.
  const fs::path removed = folder_ / (kRemovedPrefix + checkpoint.filename().string());
  fs::remove_all(removed);
  fs::rename(checkpoint, removed);
  fs::remove_all(removed);
}

void CheckpointStore::clear() const {
  for (const auto& [step, checkpoint] : by_step()) remove(checkpoint);
  fs::remove(folder_ / "latest");
}

void CheckpointStore::remove_leftovers() const {
  io::remove_leftovers(folder_, kPrefix);
  std::vector<fs::path> removed;
  for (const auto& entry : fs::directory_iterator(folder_))
    if (entry.path().filename().string().starts_with(std::string(kRemovedPrefix) + kPrefix))
      removed.push_back(entry.path());
  for (const auto& path : removed) fs::remove_all(path);
}

CheckpointContents load_checkpoint(const fs::path& checkpoint) {
  CheckpointContents contents;
  contents.state = read_state(checkpoint);
  const fs::path training = checkpoint / "training";
  contents.optimizer = optim::load_tensors(training / "optimizer.safetensors");
  const auto random = optim::load_tensors(training / "random.safetensors");
  const auto restore = [&](const char* name, torch::Device device) {
    const torch::Tensor now = generator(device).get_state();
    const auto saved = random.find(name);
    PLX_CHECK(saved != random.end() && saved->second.scalar_type() == now.scalar_type() &&
                  saved->second.sizes() == now.sizes(),
              training.string(), "/random.safetensors must hold the state of Torch's generator, '",
              name, "': ", now.numel(), " bytes");
    generator(device).set_state(saved->second);
  };
  restore("cpu", torch::kCPU);
  // A run may go on where there is another device than before.
  if (random.contains("cuda") && torch::cuda::is_available()) restore("cuda", torch::kCUDA);
  return contents;
}

}  // namespace parallax::train
