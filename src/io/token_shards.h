// Token shards: the on-disk form of a tokenised corpus, written as a stream, read by memory map.
//
// A shard is a 24-byte header (the 8 characters "PLXTOKEN", u32 version, u32 bytes per token, u64
// number of tokens) and the tokens, u16 or u32, all little-endian. Documents follow each other,
// each ended by the end-of-document token; they may run across shards.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/token_manifest.h"

namespace parallax::io {

/// Streams the tokens of one split into shards of exactly `shard_tokens` tokens (the last may be
/// shorter) in constant memory.
class ShardWriter {
 public:
  struct Options {
    std::filesystem::path folder;
    Split split = Split::kTrain;
    int token_bytes = 2;
    int64_t shard_tokens = 0;
  };
  explicit ShardWriter(Options options);

  /// Ids must fit the token width; TokenDatasetWriter checks them.
  void append(std::span<const int32_t> tokens);
  /// Completes the last shard and returns all of them.
  std::vector<ShardInfo> finish();

 private:
  void open_shard();
  void close_shard();
  void flush();

  Options options_;
  Descriptor file_;
  std::vector<std::byte> buffer_;
  std::vector<ShardInfo> shards_;
};

/// Writes a whole folder of tokens. It appears under its name on commit() only, so an interrupted
/// run leaves nothing that looks complete; a folder that stood there is replaced then.
class TokenDatasetWriter {
 public:
  struct Options {
    int64_t vocab_size = 0;
    int32_t eos_id = 0;
    std::string tokenizer_json, tokenizer_fingerprint;
    int64_t shard_tokens = int64_t{1} << 27;
  };
  TokenDatasetWriter(std::filesystem::path folder, Options options);

  /// Appends one document and its end-of-document token. An id outside [0, vocab_size) is an Error.
  void append(Split split, std::span<const int32_t> tokens, int64_t num_text_bytes);
  /// append() of a document in parts: their tokens in order, then its end with its whole length.
  void append_part(Split split, std::span<const int32_t> tokens);
  void end_document(Split split, int64_t num_text_bytes);
  TokenManifest commit();

 private:
  ShardWriter& writer(Split split) { return split == Split::kTrain ? train_ : validation_; }

  Options options_;
  AtomicFolder folder_;
  TokenManifest manifest_;
  ShardWriter train_, validation_;
};

/// Memory-mapped access to the tokens of one split.
class TokenDataset {
 public:
  /// Checks the manifest and each shard's size and header against it. `vocab_size` is what the
  /// reader can take (a model's vocabulary); the tokenizer's own if not given.
  TokenDataset(std::filesystem::path folder, Split split, std::optional<int64_t> vocab_size = {});

  /// tokens[start, start + out.size()) of the split's documents end to end. An Error if the range
  /// leaves the split, or if an id is not below the vocabulary size (names shard and position).
  void read(int64_t start, std::span<int64_t> out) const;

  int64_t num_tokens() const { return info().num_tokens; }
  const SplitInfo& info() const { return manifest_.split(split_); }
  const TokenManifest& manifest() const { return manifest_; }
  const std::filesystem::path& folder() const { return folder_; }
  Split split() const { return split_; }
  /// Identifies the contents of this split: tokens, their order, shard lengths and the tokenizer;
  /// not where the folder lies.
  std::string fingerprint() const;
  /// Reads everything; an Error names the first shard whose bytes have changed since it was made.
  void verify_checksums() const;

 private:
  struct Shard {
    std::filesystem::path path;
    int64_t start;  // position of its first token in the split
    int64_t num_tokens;
    MappedFile map;
  };
  void read_from(const Shard& shard, int64_t offset, std::span<int64_t> out) const;

  std::filesystem::path folder_;
  Split split_;
  TokenManifest manifest_;
  int64_t vocab_size_;
  std::vector<Shard> shards_;
};

}  // namespace parallax::io
