// See token_shards.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/token_shards.h"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "io/hash.h"
#include "parallax/error.h"

namespace parallax::io {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

struct ShardHeader {
  char magic[8] = {'P', 'L', 'X', 'T', 'O', 'K', 'E', 'N'};
  uint32_t version = 1;
  uint32_t token_bytes = 0;
  uint64_t num_tokens = 0;
};
static_assert(sizeof(ShardHeader) == 24);

constexpr size_t kBufferBytes = size_t{1} << 20;

std::string shard_file_name(Split split, size_t shard_idx) {
  char digits[24];
  std::snprintf(digits, sizeof digits, "-%05zu.bin", shard_idx);
  return std::string(split_name(split)) + digits;
}

void check_header(const ShardHeader& header, const ShardInfo& info, int token_bytes,
                  const std::string& file) {
  const ShardHeader expected;
  PLX_CHECK(std::memcmp(header.magic, expected.magic, sizeof expected.magic) == 0, file,
            ": not a token shard: it does not start with PLXTOKEN");
  PLX_CHECK(header.version == expected.version, file, ": token shard version ", header.version,
            ", this program reads version ", expected.version);
  PLX_CHECK(std::cmp_equal(header.token_bytes, token_bytes), file, ": ", header.token_bytes,
            " bytes per token, ", kManifestFile, " says ", token_bytes);
  PLX_CHECK(std::cmp_equal(header.num_tokens, info.num_tokens), file, ": the header counts ",
            header.num_tokens, " tokens, ", kManifestFile, " says ", info.num_tokens);
}

// Maps a shard after checking its size and header.
MappedFile open_shard_file(const std::filesystem::path& path, const ShardInfo& info,
                           int token_bytes) {
  MappedFile map(path);
  const size_t num_bytes = map.bytes().size();
  PLX_CHECK(num_bytes >= sizeof(ShardHeader), path.string(), ": not a token shard: it has ",
            num_bytes, " bytes, the header alone takes ", sizeof(ShardHeader));
  ShardHeader header;
  std::memcpy(&header, map.bytes().data(), sizeof header);
  check_header(header, info, token_bytes, path.string());
  const size_t data_bytes = num_bytes - sizeof(ShardHeader);
  const auto width = static_cast<size_t>(token_bytes);
  PLX_CHECK(data_bytes % width == 0 && std::cmp_equal(data_bytes / width, info.num_tokens),
            path.string(), ": ", num_bytes, " bytes do not hold the ", info.num_tokens,
            " tokens that ", kManifestFile, " counts (truncated?)");
  return map;
}

}  // namespace

ShardWriter::ShardWriter(Options options) : options_(std::move(options)) {
  PLX_CHECK(options_.shard_tokens > 0, "shard_tokens must be at least 1, given ",
            options_.shard_tokens);
  buffer_.reserve(kBufferBytes);
}

void ShardWriter::open_shard() {
  const std::string name = shard_file_name(options_.split, shards_.size());
  file_ = Descriptor(options_.folder / name, O_WRONLY | O_CREAT | O_EXCL);
  const ShardHeader unfinished{};  // counts 0 tokens until the shard is closed
  file_.write(&unfinished, sizeof unfinished);
  shards_.push_back({.file = name});
}

void ShardWriter::flush() {
  shards_.back().crc32 = crc32(buffer_.data(), buffer_.size(), shards_.back().crc32);
  file_.write(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void ShardWriter::close_shard() {
  flush();
  const ShardHeader header{.token_bytes = static_cast<uint32_t>(options_.token_bytes),
                           .num_tokens = static_cast<uint64_t>(shards_.back().num_tokens)};
  file_.write_at(&header, sizeof header, 0);
  file_.close();
}

void ShardWriter::append(std::span<const int32_t> tokens) {
  const auto width = static_cast<size_t>(options_.token_bytes);
  for (const int32_t token : tokens) {
    if (!file_.is_open()) open_shard();
    const auto* bytes = reinterpret_cast<const std::byte*>(&token);  // low bytes first
    buffer_.insert(buffer_.end(), bytes, bytes + width);
    if (++shards_.back().num_tokens == options_.shard_tokens) {
      close_shard();
    } else if (buffer_.size() >= kBufferBytes) {
      flush();
    }
  }
}

std::vector<ShardInfo> ShardWriter::finish() {
  if (file_.is_open()) close_shard();
  return std::move(shards_);
}

TokenDatasetWriter::TokenDatasetWriter(std::filesystem::path folder, Options options)
    : options_(std::move(options)),
      folder_(std::move(folder)),
      manifest_{.tokenizer_fingerprint = options_.tokenizer_fingerprint,
                .vocab_size = options_.vocab_size,
                .eos_id = options_.eos_id,
                .token_bytes = token_bytes_for(options_.vocab_size)},
      train_({folder_.staging(), Split::kTrain, manifest_.token_bytes, options_.shard_tokens}),
      validation_(
          {folder_.staging(), Split::kValidation, manifest_.token_bytes, options_.shard_tokens}) {
  PLX_CHECK(options_.vocab_size > 0 && options_.vocab_size <= std::numeric_limits<int32_t>::max(),
            "vocab_size must lie in [1, 2^31), given ", options_.vocab_size);
  PLX_CHECK(options_.eos_id >= 0 && options_.eos_id < options_.vocab_size,
            "eos_id must lie in [0, vocab_size), given ", options_.eos_id, " of ",
            options_.vocab_size);
}

void TokenDatasetWriter::append(Split split, std::span<const int32_t> tokens,
                                int64_t num_text_bytes) {
  append_part(split, tokens);
  end_document(split, num_text_bytes);
}

void TokenDatasetWriter::append_part(Split split, std::span<const int32_t> tokens) {
  SplitInfo& info = manifest_.split(split);
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [&](int32_t token) {
    return token < 0 || token >= options_.vocab_size;
  });
  PLX_CHECK(bad == tokens.end(), "token id ", *bad, " at position ", bad - tokens.begin(),
            " of document ", info.num_documents, " (", split_name(split),
            ") is outside the vocabulary of ", options_.vocab_size);
  writer(split).append(tokens);
  info.num_tokens += std::ssize(tokens);
}

void TokenDatasetWriter::end_document(Split split, int64_t num_text_bytes) {
  SplitInfo& info = manifest_.split(split);
  writer(split).append({&options_.eos_id, 1});
  ++info.num_documents;
  info.num_tokens += 1;
  info.num_text_bytes += num_text_bytes;
}

TokenManifest TokenDatasetWriter::commit() {
  manifest_.train.shards = train_.finish();
  manifest_.validation.shards = validation_.finish();
  write_file(folder_.staging() / kTokenizerFile, options_.tokenizer_json);
  write_manifest(folder_.staging(), manifest_);
  folder_.commit();
  return manifest_;
}

TokenDataset::TokenDataset(std::filesystem::path folder, Split split,
                           std::optional<int64_t> vocab_size)
    : folder_(std::move(folder)),
      split_(split),
      manifest_(read_manifest(folder_)),
      vocab_size_(vocab_size.value_or(manifest_.vocab_size)) {
  int64_t start = 0;
  for (const ShardInfo& shard : info().shards) {
    const std::filesystem::path path = folder_ / shard.file;
    shards_.push_back(
        {path, start, shard.num_tokens, open_shard_file(path, shard, manifest_.token_bytes)});
    start += shard.num_tokens;
  }
}

void TokenDataset::read(int64_t start, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  PLX_CHECK(start >= 0 && count <= num_tokens() && start <= num_tokens() - count, folder_.string(),
            ": tokens ", start, " to ", start + count, " do not lie in the ", num_tokens(),
            " tokens of split ", split_name(split_));
  auto shard = std::upper_bound(
      shards_.begin(), shards_.end(), start,
      [](int64_t position, const Shard& candidate) { return position < candidate.start; });
  if (shard != shards_.begin()) --shard;
  while (!out.empty()) {
    const int64_t offset = start - shard->start;
    const auto here =
        static_cast<size_t>(std::min(shard->num_tokens - offset, static_cast<int64_t>(out.size())));
    read_from(*shard, offset, out.first(here));
    out = out.subspan(here);
    start += static_cast<int64_t>(here);
    ++shard;
  }
}

void TokenDataset::read_from(const Shard& shard, int64_t offset, std::span<int64_t> out) const {
  const std::byte* tokens = shard.map.bytes().data() + sizeof(ShardHeader);
  const auto copy = [&]<typename Token>(Token) {
    const Token* from = reinterpret_cast<const Token*>(tokens) + offset;
    std::copy(from, from + out.size(), out.begin());
  };
  manifest_.token_bytes == 2 ? copy(uint16_t{}) : copy(uint32_t{});
  const auto bad =
      std::find_if(out.begin(), out.end(), [&](int64_t token) { return token >= vocab_size_; });
  PLX_CHECK(bad == out.end(), shard.path.string(), ": token id ", *bad, " at position ",
            offset + (bad - out.begin()), " is outside the vocabulary of ", vocab_size_);
}

std::string TokenDataset::fingerprint() const {
  std::string facts = std::string(split_name(split_)) + manifest_.tokenizer_fingerprint;
  for (const ShardInfo& shard : info().shards) {
    facts.append(" ").append(std::to_string(shard.num_tokens));
    facts.append(":").append(to_hex(shard.crc32, 8));
  }
  return to_hex(hash64(facts));
}

void TokenDataset::verify_checksums() const {
  for (size_t idx = 0; idx < shards_.size(); ++idx) {
    const auto data = shards_[idx].map.bytes().subspan(sizeof(ShardHeader));
    const uint32_t found = crc32(data.data(), data.size());
    PLX_CHECK(found == info().shards[idx].crc32, shards_[idx].path.string(),
              ": the tokens have changed since they were written (CRC-32 ", to_hex(found, 8), ", ",
              kManifestFile, " says ", to_hex(info().shards[idx].crc32, 8), ")");
  }
}

}  // namespace parallax::io
