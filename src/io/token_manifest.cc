// See token_manifest.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/token_manifest.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/atomic_file.h"
#include "io/hash.h"
#include "io/json_error.h"
#include "parallax/error.h"

namespace parallax::io {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kFormat = "parallax-tokens";
constexpr int64_t kVersion = 1;

ordered_json to_json(const SplitInfo& split) {
  ordered_json shards = ordered_json::array();
  for (const ShardInfo& shard : split.shards) {
    shards.push_back(
        {{"file", shard.file}, {"tokens", shard.num_tokens}, {"crc32", to_hex(shard.crc32, 8)}});
  }
  return {{"documents", split.num_documents},
          {"tokens", split.num_tokens},
          {"text_bytes", split.num_text_bytes},
          {"shards", shards}};
}

// Typed access to one JSON object; every fault names the file and the field.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    PLX_CHECK(object.is_object(), where_, " must be an object, it is ", object.type_name());
  }

  const json& any(const char* key) const {
    const auto found = object_.find(key);
    PLX_CHECK(found != object_.end(), where_, " has no field \"", key, "\"");
    return *found;
  }
  std::string text(const char* key) const {
    const json& value = any(key);
    PLX_CHECK(value.is_string(), where_, ": \"", key, "\" must be a string, it is ", value.dump());
    return value.get<std::string>();
  }
  int64_t count(const char* key, int64_t largest = std::numeric_limits<int64_t>::max()) const {
    const json& value = any(key);
    PLX_CHECK(value.is_number_unsigned() && std::cmp_less_equal(value.get<uint64_t>(), largest),
              where_, ": \"", key, "\" must be an integer from 0 to ", largest, ", it is ",
              value.dump());
    return value.get<int64_t>();
  }
  Fields object(const char* key) const { return Fields(any(key), where_ + ": \"" + key + "\""); }
  const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
};

ShardInfo parse_shard(const Fields& fields) {
  ShardInfo shard{.file = fields.text("file"), .num_tokens = fields.count("tokens")};
  PLX_CHECK(std::filesystem::path(shard.file).filename() == shard.file && !shard.file.empty() &&
                shard.file[0] != '.',
            fields.where(), ": \"file\" must be a plain file name, it is \"", shard.file, "\"");
  const std::string crc = fields.text("crc32");
  PLX_CHECK(crc.size() == 8 && crc.find_first_not_of("0123456789abcdef") == std::string::npos,
            fields.where(), ": \"crc32\" must be 8 hexadecimal digits, it is \"", crc, "\"");
  shard.crc32 = static_cast<uint32_t>(std::stoul(crc, nullptr, 16));
  return shard;
}

SplitInfo parse_split(const Fields& fields) {
  SplitInfo split{.num_documents = fields.count("documents"),
                  .num_tokens = fields.count("tokens"),
                  .num_text_bytes = fields.count("text_bytes")};
  const json& shards = fields.any("shards");
  PLX_CHECK(shards.is_array(), fields.where(), ": \"shards\" must be an array");
  int64_t total = 0;
  for (const json& shard : shards) {
    const std::string where = fields.where() + ": shard " + std::to_string(split.shards.size());
    split.shards.push_back(parse_shard(Fields(shard, where)));
    PLX_CHECK(!__builtin_add_overflow(total, split.shards.back().num_tokens, &total), where,
              ": the token counts overflow 64 bits");
  }
  PLX_CHECK(total == split.num_tokens, fields.where(), ": the shards hold ", total,
            " tokens together, \"tokens\" says ", split.num_tokens);
  return split;
}

}  // namespace

const char* split_name(Split split) { return split == Split::kTrain ? "train" : "validation"; }

int token_bytes_for(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

void write_manifest(const std::filesystem::path& folder, const TokenManifest& manifest) {
  const ordered_json root = {
      {"format", kFormat},
      {"version", kVersion},
      {"tokenizer", {{"file", kTokenizerFile}, {"fingerprint", manifest.tokenizer_fingerprint}}},
      {"vocab_size", manifest.vocab_size},
      {"eos_id", manifest.eos_id},
      {"token_bytes", manifest.token_bytes},
      {"splits",
       {{split_name(Split::kTrain), to_json(manifest.train)},
        {split_name(Split::kValidation), to_json(manifest.validation)}}}};
  write_file(folder / kManifestFile, root.dump(2) + "\n");
}

TokenManifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestFile;
  std::error_code unknown;
  PLX_CHECK(std::filesystem::exists(path, unknown), folder.string(), ": no prepared tokens here (",
            kManifestFile, " is missing); plx prepare makes them");
  json parsed;
  try {
    parsed = json::parse(read_file(path));
  } catch (const json::exception& error) {
    PLX_FAIL(path.string(), ": not JSON: ", plain_what(error));
  }
  const Fields root(parsed, path.string());
  PLX_CHECK(root.text("format") == kFormat, path.string(), ": \"format\" is \"",
            root.text("format"), "\", \"", kFormat, "\" is needed");
  PLX_CHECK(root.count("version") == kVersion, path.string(), ": format version ",
            root.count("version"), ", this program reads version ", kVersion);
  constexpr int64_t kLargestVocab = std::numeric_limits<int32_t>::max();
  TokenManifest manifest;
  manifest.tokenizer_fingerprint = root.object("tokenizer").text("fingerprint");
  manifest.vocab_size = root.count("vocab_size", kLargestVocab);
  PLX_CHECK(manifest.vocab_size > 0, path.string(), ": \"vocab_size\" must be at least 1, it is 0");
  manifest.eos_id = static_cast<int32_t>(root.count("eos_id", manifest.vocab_size - 1));
  manifest.token_bytes = static_cast<int>(root.count("token_bytes", 4));
  PLX_CHECK(manifest.token_bytes == token_bytes_for(manifest.vocab_size), path.string(),
            ": \"token_bytes\" must be ", token_bytes_for(manifest.vocab_size),
            " for a vocabulary of ", manifest.vocab_size, ", it is ", manifest.token_bytes);
  const Fields splits = root.object("splits");
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    manifest.split(split) = parse_split(splits.object(split_name(split)));
  }
  return manifest;
}

}  // namespace parallax::io
