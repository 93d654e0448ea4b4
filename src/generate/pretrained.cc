// Loading a checkpoint folder with everything that generation and evaluation need.
// SPDX-License-Identifier: Apache-2.0
#include "generate/pretrained.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "io/atomic_file.h"
#include "io/json_error.h"
#include "nn/checkpoint.h"
#include "parallax/error.h"

namespace parallax::generate {
namespace {

namespace fs = std::filesystem;

bool has_tokenizer(const fs::path& folder) { return fs::exists(folder / "tokenizer.json"); }

std::shared_ptr<const text::Tokenizer> open_tokenizer(const fs::path& folder, int64_t vocab_size) {
  std::shared_ptr<const text::Tokenizer> tokenizer;
  if (has_tokenizer(folder)) {
    tokenizer = text::load_tokenizer(folder / "tokenizer.json");
  } else {
    tokenizer = text::make_byte_tokenizer();
    PLX_CHECK(tokenizer->vocab_size() == vocab_size, "no tokenizer.json in ", folder,
              ": without one the byte tokenizer is used, which needs vocab_size ",
              tokenizer->vocab_size(), ", but the model's is ", vocab_size);
  }
  PLX_CHECK(tokenizer->vocab_size() <= vocab_size, "the tokenizer in ", folder,
            " does not belong to the model there: it has ids up to ", tokenizer->vocab_size() - 1,
            ", the model's vocab_size is ", vocab_size);
  const std::string trained_with = nn::load_tokenizer_fingerprint(folder);
  PLX_CHECK(trained_with.empty() || trained_with == tokenizer->fingerprint(), "the tokenizer in ",
            folder, " is not the one that the model was trained with: fingerprints ",
            tokenizer->fingerprint(), " and ", trained_with);
  return tokenizer;
}

/// eos_token_id of generation_config.json: chat models list several there.
std::vector<int32_t> listed_eos_tokens(const fs::path& folder) {
  const fs::path path = folder / "generation_config.json";
  if (!fs::exists(path)) return {};
  try {
    const nlohmann::json config = nlohmann::json::parse(io::read_file(path));
    if (!config.contains("eos_token_id") || config["eos_token_id"].is_null()) return {};
    const nlohmann::json& ids = config["eos_token_id"];
    if (ids.is_array()) return ids.get<std::vector<int32_t>>();
    return {ids.get<int32_t>()};
  } catch (const nlohmann::json::exception& error) {
    PLX_FAIL(path, ": eos_token_id must be an id or a list of ids: ", io::plain_what(error));
  }
}

}  // namespace

Pretrained load_pretrained(const fs::path& folder, torch::ScalarType dtype) {
  PLX_CHECK(fs::is_directory(folder), "no checkpoint folder at ", folder);
  PLX_CHECK(fs::exists(folder / "config.json"), folder,
            " is not a checkpoint folder: it has no config.json");
  const nn::ModelConfig config = nn::load_config(folder);
  Pretrained loaded;
  // The tokenizer before the weights: a mismatch is then reported at once.
  loaded.tokenizer = open_tokenizer(folder, config.vocab_size);
  loaded.has_assumed_tokenizer = !has_tokenizer(folder);
  const std::optional<int32_t> tokenizer_eos = loaded.tokenizer->eos_id();

  loaded.eos_tokens = listed_eos_tokens(folder);
  for (const int64_t id : config.eos_token_ids)
    loaded.eos_tokens.push_back(static_cast<int32_t>(id));
  if (tokenizer_eos) loaded.eos_tokens.push_back(*tokenizer_eos);
  std::ranges::sort(loaded.eos_tokens);
  const auto repeated = std::ranges::unique(loaded.eos_tokens);
  loaded.eos_tokens.erase(repeated.begin(), repeated.end());
  for (const int32_t id : loaded.eos_tokens) {
    PLX_CHECK(id >= 0 && id < config.vocab_size, "eos_token_id ", id, " in ", folder,
              " is out of range: vocab_size is ", config.vocab_size);
  }

  std::optional<int64_t> start = config.bos_token_id;
  if (!start && !config.eos_token_ids.empty()) start = config.eos_token_ids.front();
  if (!start && tokenizer_eos) start = *tokenizer_eos;
  PLX_CHECK(start, folder,
            ": neither config.json nor the tokenizer names a token that texts begin or end with");
  PLX_CHECK(*start >= 0 && *start < config.vocab_size, "bos_token_id ", *start, " in ", folder,
            " is out of range: vocab_size is ", config.vocab_size);
  loaded.start_token = static_cast<int32_t>(*start);

  loaded.model = nn::load_pretrained(folder);
  loaded.model->to(dtype);
  loaded.model->eval();
  return loaded;
}

}  // namespace parallax::generate
