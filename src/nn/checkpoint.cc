// Reading and writing Hugging Face checkpoint folders.
// SPDX-License-Identifier: Apache-2.0
#include "nn/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "io/json_error.h"
#include "io/safetensors.h"
#include "parallax/error.h"

namespace parallax::nn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kTokenizerKey = "tokenizer_fingerprint";  // in the metadata of each file

struct StoredType {
  const char* name;
  torch::ScalarType dtype;
};
constexpr std::array kStoredTypes = {
    StoredType{"F32", torch::kFloat32},
    StoredType{"BF16", torch::kBFloat16},
    StoredType{"F16", torch::kFloat16},
};

/// A copy of a stored tensor, in its own dtype. (A file's data need not be aligned for its dtype.)
Tensor to_tensor(const std::string& name, const io::StoredTensor& stored) {
  const auto* type = std::ranges::find(kStoredTypes, stored.dtype, &StoredType::name);
  PLX_CHECK(type != kStoredTypes.end(), name, " is stored as ", stored.dtype,
            "; weights must be F32, BF16 or F16");
  Tensor tensor = torch::empty(stored.shape, type->dtype);
  std::memcpy(tensor.data_ptr(), stored.data.data(), stored.data.size());
  return tensor;
}

/// Which file each tensor of the index is said to be in.
std::map<std::string, std::string> read_index(const fs::path& path) {
  std::map<std::string, std::string> weight_map;
  try {
    weight_map = json::parse(io::read_file(path)).at("weight_map").get<decltype(weight_map)>();
  } catch (const json::exception& error) {
    PLX_FAIL(path.string(), ": not a safetensors index: ", io::plain_what(error));
  }
  for (const auto& [name, file] : weight_map)
    PLX_CHECK(fs::path(file).filename() == file, path.string(), ": ", name, " is in \"", file,
              "\", which is not a file of this folder");
  return weight_map;
}

/// The safetensors files of a checkpoint folder, opened and checked against its index.
std::vector<io::SafetensorsFile> open_files(const fs::path& folder) {
  std::vector<io::SafetensorsFile> files;
  const fs::path index_path = folder / kIndexFile;
  if (fs::exists(folder / kSingleFile) || !fs::exists(index_path)) {
    files.emplace_back(folder / kSingleFile);
    return files;
  }
  std::map<std::string, std::set<std::string>> names_of_file;
  for (const auto& [name, file] : read_index(index_path)) names_of_file[file].insert(name);
  for (const auto& [file, names] : names_of_file) {
    const auto& stored = files.emplace_back(folder / file).tensors();
    for (const std::string& name : names)
      PLX_CHECK(stored.contains(name), index_path.string(), " says that ", name, " is in ", file,
                ", but it is not");
    for (const auto& [name, tensor] : stored)
      PLX_CHECK(names.contains(name), file, " holds ", name, ", which ", index_path.string(),
                " does not say");
  }
  return files;
}

/// "a, b, c and 5 more"
std::string join(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

/// Fills the parameters and reports what does not match.
class Loader {
 public:
  explicit Loader(Decoder& model) : model_(model) {
    for (const auto& item : model->named_parameters()) missing_.emplace(item.key(), item.value());
  }

  void load(const io::SafetensorsFile& file) {
    for (const auto& [name, stored] : file.tensors()) {
      if (const auto found = missing_.find(name); found != missing_.end()) {
        fill(name, found->second, stored);
        missing_.erase(found);
      } else if (name == "lm_head.weight" && model_->config().tie_word_embeddings) {
        head_ = to_tensor(name, stored);
      } else if (!name.ends_with("rotary_emb.inv_freq")) {  // old Llama files carry this table
        superfluous_.push_back(name);
      }
    }
  }

  void finish() const {
    PLX_CHECK(superfluous_.empty(),
              "tensors that the config has no place for: ", join(superfluous_));
    std::vector<std::string> names;
    for (const auto& [name, parameter] : missing_) names.push_back(name);
    PLX_CHECK(names.empty(), "tensors missing: ", join(names));
    if (!head_) return;
    const Tensor embedding = model_->head_weight();
    PLX_CHECK(head_->sizes() == embedding.sizes() && head_->to(torch::kFloat32).equal(embedding),
              "lm_head.weight differs from model.embed_tokens.weight although tie_word_embeddings "
              "is true");
  }

 private:
  static void fill(const std::string& name, Tensor parameter, const io::StoredTensor& stored) {
    PLX_CHECK(parameter.sizes() == torch::IntArrayRef(stored.shape), name, " has shape ",
              torch::IntArrayRef(stored.shape), ", the config needs ", parameter.sizes());
    parameter.copy_(to_tensor(name, stored));
  }

  Decoder& model_;
  std::map<std::string, Tensor> missing_;
  std::vector<std::string> superfluous_;
  std::optional<Tensor> head_;
};

/// One file's worth of parameter names.
using Shard = std::vector<std::string>;

std::vector<Shard> make_shards(const std::map<std::string, Tensor>& parameters, int64_t item_bytes,
                               int64_t max_shard_bytes) {
  std::vector<Shard> shards(1);
  int64_t num_bytes = 0;
  for (const auto& [name, parameter] : parameters) {
    const int64_t size = parameter.numel() * item_bytes;
    if (num_bytes > 0 && num_bytes + size > max_shard_bytes) {
      shards.emplace_back();
      num_bytes = 0;
    }
    shards.back().push_back(name);
    num_bytes += size;
  }
  return shards;
}

std::string shard_name(size_t shard_idx, size_t num_shards) {
  if (num_shards == 1) return kSingleFile;
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", shard_idx + 1, num_shards);
  return name;
}

void write_shard(const fs::path& path, const Shard& shard,
                 const std::map<std::string, Tensor>& parameters, const StoredType& type,
                 const std::string& tokenizer_fingerprint) {
  std::vector<Tensor> converted;  // keeps the memory that the map points at
  std::map<std::string, io::StoredTensor> stored;
  for (const std::string& name : shard) {
    const Tensor& tensor = converted.emplace_back(
        parameters.at(name).detach().to(torch::kCPU, type.dtype).contiguous());
    stored[name] = {.dtype = type.name,
                    .shape = tensor.sizes().vec(),
                    .data = {static_cast<const std::byte*>(tensor.const_data_ptr()),
                             static_cast<size_t>(tensor.nbytes())}};
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!tokenizer_fingerprint.empty()) metadata[kTokenizerKey] = tokenizer_fingerprint;
  io::write_safetensors(path, stored, metadata);
}

}  // namespace

Decoder load_pretrained(const fs::path& folder) {
  Decoder model(load_config(folder), DecoderOptions{.initialize = false});
  try {
    const torch::NoGradGuard no_grad;
    Loader loader(model);
    for (const auto& file : open_files(folder)) loader.load(file);
    loader.finish();
  } catch (const Error& error) {
    PLX_FAIL("cannot load ", folder.string(), ": ", error.what());
  }
  return model;
}

void save_pretrained(const Decoder& model, const fs::path& folder, const SaveOptions& options) {
  const auto* type = std::ranges::find(kStoredTypes, options.dtype, &StoredType::dtype);
  PLX_CHECK(type != kStoredTypes.end(), "weights are saved as float32, bfloat16 or float16, not ",
            options.dtype);
  std::map<std::string, Tensor> parameters;
  for (const auto& item : model->named_parameters()) parameters.emplace(item.key(), item.value());

  const auto item_bytes = static_cast<int64_t>(c10::elementSize(options.dtype));
  const auto shards = make_shards(parameters, item_bytes, options.max_shard_bytes);
  nlohmann::ordered_json index = {
      {"metadata", {{"total_size", num_parameters(*model) * item_bytes}}},
      {"weight_map", nlohmann::ordered_json::object()}};
  for (size_t shard_idx = 0; shard_idx < shards.size(); ++shard_idx) {
    const std::string file = shard_name(shard_idx, shards.size());
    write_shard(folder / file, shards[shard_idx], parameters, *type, options.tokenizer_fingerprint);
    for (const std::string& name : shards[shard_idx]) index["weight_map"][name] = file;
  }
  // What an earlier save of another size left behind must not be found first.
  if (shards.size() == 1) {
    fs::remove(folder / kIndexFile);
  } else {
    io::write_file(folder / kIndexFile, index.dump(2) + "\n");
    fs::remove(folder / kSingleFile);
  }
  save_config(model->config(), folder);
}

std::string load_tokenizer_fingerprint(const fs::path& folder) {
  for (const auto& file : open_files(folder)) {
    const auto found = file.metadata().find(kTokenizerKey);
    if (found != file.metadata().end()) return found->second;
  }
  return {};
}

}  // namespace parallax::nn
