// Checkpoint folders: precision, shards, and files that do not fit.
// SPDX-License-Identifier: Apache-2.0
#include "nn/checkpoint.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "nn/model_testing.h"
#include "support/temp_folder.h"

namespace parallax::nn {
namespace {

using namespace testing;
using test::expect_error;
using test::TempFolder;
using torch::Tensor;

const std::string kQProj = "model.layers.1.self_attn.q_proj.weight";

Decoder small_model() { return make_model(small_config("parallax"), torch::kFloat32); }

void expect_equal_weights(const Decoder& a, const Decoder& b) {
  const auto b_parameters = b->named_parameters();
  for (const auto& item : a->named_parameters())
    EXPECT_TRUE(item.value().equal(b_parameters[item.key()])) << item.key();
}

/// Rewrites the one weight file of the folder after `edit` has changed the map of its tensors.
void edit_weights(const TempFolder& folder,
                  const std::function<void(std::map<std::string, io::StoredTensor>&)>& edit) {
  const io::SafetensorsFile file(folder / "model.safetensors");
  auto tensors = file.tensors();
  edit(tensors);
  io::write_safetensors(folder / "model.safetensors", tensors);
}

TEST(Checkpoint, HalfPrecisionRoundsOnceAndLoadsWide) {
  const Decoder model = small_model();
  for (const auto dtype : {torch::kBFloat16, torch::kFloat16}) {
    const TempFolder folder;
    save_pretrained(model, folder.path(), {.dtype = dtype});
    const Decoder loaded = load_pretrained(folder.path());
    const auto original = model->named_parameters();
    for (const auto& item : loaded->named_parameters()) {
      EXPECT_EQ(item.value().scalar_type(), torch::kFloat32);
      EXPECT_TRUE(item.value().equal(original[item.key()].to(dtype).to(torch::kFloat32)));
    }
  }
}

TEST(Checkpoint, ShardsAndTheirIndexRoundTrip) {
  const Decoder model = small_model();
  const TempFolder folder;
  save_pretrained(model, folder.path());
  save_pretrained(model, folder.path(), {.max_shard_bytes = 9000});
  EXPECT_FALSE(std::filesystem::exists(folder / "model.safetensors"));  // would be found first
  EXPECT_TRUE(std::filesystem::exists(folder / "model.safetensors.index.json"));
  EXPECT_GT(folder.entries().size(), 5u);
  expect_equal_weights(model, load_pretrained(folder.path()));
  save_pretrained(model, folder.path());
  expect_equal_weights(model, load_pretrained(folder.path()));
}

TEST(Checkpoint, NamesTheTokenizerThatItWasSavedWith) {
  const TempFolder folder;
  save_pretrained(small_model(), folder.path(), {.tokenizer_fingerprint = "abc"});
  EXPECT_EQ(load_tokenizer_fingerprint(folder.path()), "abc");
  save_pretrained(small_model(), folder.path(),
                  {.max_shard_bytes = 9000, .tokenizer_fingerprint = "sharded"});
  EXPECT_EQ(load_tokenizer_fingerprint(folder.path()), "sharded");
  save_pretrained(small_model(), folder.path());
  EXPECT_EQ(load_tokenizer_fingerprint(folder.path()), "");
}

TEST(Checkpoint, ATiedHeadMayBeStoredTwiceIfEqual) {
  const TempFolder folder;
  save_pretrained(small_model(), folder.path());
  edit_weights(folder, [](auto& tensors) {
    EXPECT_FALSE(tensors.contains("lm_head.weight"));
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  });
  EXPECT_NO_THROW(load_pretrained(folder.path()));
  std::string other;
  edit_weights(folder, [&](auto& tensors) {
    auto& head = tensors["lm_head.weight"];
    other.assign(reinterpret_cast<const char*>(head.data.data()), head.data.size());
    other[2] = static_cast<char>(other[2] ^ 1);
    head.data = std::as_bytes(std::span(other));
  });
  expect_error([&] { load_pretrained(folder.path()); }, {"lm_head.weight differs", "tie_word"});
}

TEST(Checkpoint, AnUntiedHeadIsItsOwnTensor) {
  ModelConfig config = small_config("softmax");
  config.tie_word_embeddings = false;
  const Decoder model = make_model(config, torch::kFloat32);
  EXPECT_FALSE(model->head_weight().equal(model->parameters()[0]));
  const TempFolder folder;
  save_pretrained(model, folder.path());
  expect_equal_weights(model, load_pretrained(folder.path()));
  edit_weights(folder, [](auto& tensors) { tensors.erase("lm_head.weight"); });
  expect_error([&] { load_pretrained(folder.path()); }, {"tensors missing: lm_head.weight"});
}

TEST(Checkpoint, MissingSuperfluousAndMisshapenTensorsAreNamed) {
  const TempFolder folder;
  save_pretrained(small_model(), folder.path());
  const std::string intact = io::read_file(folder / "model.safetensors");
  edit_weights(folder, [](auto& tensors) { tensors.erase(kQProj); });
  expect_error([&] { load_pretrained(folder.path()); }, {"missing", kQProj});

  folder.write("model.safetensors", intact);
  edit_weights(folder, [](auto& tensors) { tensors["model.extra"] = tensors[kQProj]; });
  expect_error([&] { load_pretrained(folder.path()); }, {"no place for", "model.extra"});

  folder.write("model.safetensors", intact);
  edit_weights(
      folder, [](auto& tensors) { std::swap(tensors[kQProj].shape[0], tensors[kQProj].shape[1]); });
  expect_error([&] { load_pretrained(folder.path()); }, {kQProj, "[24, 48]", "[48, 24]"});

  folder.write("model.safetensors", intact);
  edit_weights(folder, [](auto& tensors) { tensors[kQProj].dtype = "I32"; });
  expect_error([&] { load_pretrained(folder.path()); }, {kQProj, "I32", "F32, BF16 or F16"});

  folder.write("model.safetensors", intact.substr(0, intact.size() - 3));
  expect_error([&] { load_pretrained(folder.path()); }, {"model.safetensors"});
}

TEST(Checkpoint, AParallaxFolderIsNotASoftmaxModel) {
  const TempFolder folder;
  save_pretrained(small_model(), folder.path());
  save_config(small_config("softmax"), folder.path());
  expect_error([&] { load_pretrained(folder.path()); }, {"no place for", "r_proj.weight"});
}

TEST(Checkpoint, OldRotaryTablesAreIgnored) {
  const TempFolder folder;
  save_pretrained(small_model(), folder.path());
  edit_weights(folder, [](auto& tensors) {
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"];
  });
  EXPECT_NO_THROW(load_pretrained(folder.path()));
}

TEST(Checkpoint, AnIndexThatLiesIsRefused) {
  const Decoder model = small_model();
  const TempFolder folder;
  save_pretrained(model, folder.path(), {.max_shard_bytes = 9000});
  const auto index_path = folder / "model.safetensors.index.json";
  const auto intact = nlohmann::json::parse(io::read_file(index_path));
  const auto refuse = [&](const nlohmann::json& index, std::string_view part) {
    folder.write(index_path.filename().string(), index.dump());
    expect_error([&] { load_pretrained(folder.path()); }, {part});
  };
  auto index = intact;
  index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"];
  refuse(index, "model.norm.weight");
  index = intact;
  index["weight_map"].erase(kQProj);
  refuse(index, kQProj);
  index = intact;
  index["weight_map"][kQProj] = "../model.safetensors";
  refuse(index, "not a file of this folder");
  index["weight_map"][kQProj] = "absent.safetensors";
  refuse(index, "absent.safetensors");
  refuse({{"metadata", 1}}, "weight_map");
}

TEST(Checkpoint, AFullDiskLeavesTheOldWeights) {
  const Decoder model = small_model();
  const TempFolder folder;
  save_pretrained(model, folder.path());
  const Decoder other = small_model();
  {
    const torch::NoGradGuard no_grad;
    other->parameters()[0].zero_();
    const test::FileSizeLimit full_disk(4096);
    expect_error([&] { save_pretrained(other, folder.path()); }, {"model.safetensors"});
  }
  expect_equal_weights(model, load_pretrained(folder.path()));
}

TEST(Checkpoint, AFolderWithoutWeightsIsAnError) {
  const TempFolder folder;
  save_config(small_config("softmax"), folder.path());
  expect_error([&] { load_pretrained(folder.path()); }, {"model.safetensors"});
  expect_error([&] { save_pretrained(small_model(), folder / "absent"); }, {"absent"});
  expect_error([&] { save_pretrained(small_model(), folder.path(), {.dtype = torch::kFloat64}); },
               {"Double"});
}

}  // namespace
}  // namespace parallax::nn
