// manifest.json: what a folder of token shards holds.
//
//   tokens/manifest.json              this
//          tokenizer.json             the tokenizer that made the tokens, whole
//          train-00000.bin ...        token shards, see token_shards.h
//          validation-00000.bin ...
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace parallax::io {

enum class Split { kTrain, kValidation };

/// "train" or "validation".
const char* split_name(Split split);

struct ShardInfo {
  std::string file;  // name inside the folder
  int64_t num_tokens = 0;
  uint32_t crc32 = 0;  // of the tokens' bytes, without the header
};

/// num_tokens counts one end-of-document token per document; num_text_bytes counts the documents'
/// own bytes (bits per byte divide by it).
struct SplitInfo {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t num_text_bytes = 0;
  std::vector<ShardInfo> shards = {};
};

struct TokenManifest {
  std::string tokenizer_fingerprint;
  int64_t vocab_size = 0;
  int32_t eos_id = 0;
  int token_bytes = 0;  // 2 (vocab_size <= 65536) or 4
  SplitInfo train = {}, validation = {};

  const SplitInfo& split(Split which) const { return which == Split::kTrain ? train : validation; }
  SplitInfo& split(Split which) { return which == Split::kTrain ? train : validation; }
};

inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr const char* kTokenizerFile = "tokenizer.json";

/// Bytes of one token in shards of this vocabulary.
int token_bytes_for(int64_t vocab_size);

void write_manifest(const std::filesystem::path& folder, const TokenManifest& manifest);
/// Reads and checks `folder`/manifest.json; faults are Errors that name the file and the field.
TokenManifest read_manifest(const std::filesystem::path& folder);

}  // namespace parallax::io
