// Token folders: the bytes on disk, random access, and every way in which a folder can be wrong.
// SPDX-License-Identifier: Apache-2.0
#include "io/token_shards.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <numeric>

#include "io/hash.h"
#include "support/temp_folder.h"

namespace parallax::io {
namespace {

using test::expect_error;
using test::FileSizeLimit;
using test::TempFolder;
using Ids = std::vector<int32_t>;

TokenDatasetWriter::Options options(int64_t vocab_size, int64_t shard_tokens) {
  return {.vocab_size = vocab_size,
          .eos_id = static_cast<int32_t>(vocab_size - 1),
          .tokenizer_json = "{\"kind\": \"test\"}",
          .tokenizer_fingerprint = "f00d",
          .shard_tokens = shard_tokens};
}

// Three documents in train (5 + 3 + 0 tokens, 11 with their ends), one in validation (2).
TokenManifest write_sample(const std::filesystem::path& path, int64_t vocab_size = 100,
                           int64_t shard_tokens = 4) {
  TokenDatasetWriter writer(path, options(vocab_size, shard_tokens));
  writer.append(Split::kTrain, Ids{1, 2, 3, 4, 5}, 10);
  writer.append(Split::kValidation, Ids{9}, 3);
  writer.append(Split::kTrain, Ids{6, 7, 8}, 6);
  writer.append(Split::kTrain, Ids{}, 1);
  return writer.commit();
}

void replace_in(const std::filesystem::path& file, const std::string& from, const std::string& to) {
  std::string text = read_file(file);
  const size_t position = text.find(from);
  ASSERT_NE(position, std::string::npos) << from << " is not in " << file;
  write_file(file, text.replace(position, from.size(), to));
}

TEST(TokenShards, ReadsAnyRangeAcrossShardsAsWritten) {
  for (const int64_t vocab_size : {100, 65536, 65537, 150'000}) {
    for (const int64_t shard_tokens : {1, 3, 4, 11, 1000}) {
      const TempFolder folder;
      const TokenManifest written = write_sample(folder / "tokens", vocab_size, shard_tokens);
      EXPECT_EQ(written.train.shards.size(),
                static_cast<size_t>((10 + shard_tokens) / shard_tokens));
      const TokenDataset dataset(folder / "tokens", Split::kTrain);
      const int64_t eos = vocab_size - 1;
      const std::vector<int64_t> expected = {1, 2, 3, 4, 5, eos, 6, 7, 8, eos, eos};
      ASSERT_EQ(dataset.num_tokens(), 11);
      for (int64_t start = 0; start <= 11; ++start) {
        for (int64_t end = start; end <= 11; ++end) {
          std::vector<int64_t> out(static_cast<size_t>(end - start), -1);
          dataset.read(start, out);
          EXPECT_EQ(out, std::vector<int64_t>(expected.begin() + start, expected.begin() + end));
        }
      }
      EXPECT_NO_THROW(dataset.verify_checksums());
    }
  }
}

TEST(TokenShards, ManifestCountsDocumentsTokensAndTextBytes) {
  const TempFolder folder;
  write_sample(folder / "tokens");
  const TokenManifest manifest = read_manifest(folder / "tokens");
  EXPECT_EQ(manifest.tokenizer_fingerprint, "f00d");
  EXPECT_EQ(manifest.vocab_size, 100);
  EXPECT_EQ(manifest.eos_id, 99);
  EXPECT_EQ(manifest.train.num_documents, 3);
  EXPECT_EQ(manifest.train.num_tokens, 11);
  EXPECT_EQ(manifest.train.num_text_bytes, 17);
  EXPECT_EQ(manifest.validation.num_documents, 1);
  EXPECT_EQ(manifest.validation.num_tokens, 2);
  EXPECT_EQ(manifest.validation.num_text_bytes, 3);
  EXPECT_EQ(read_file(folder / "tokens/tokenizer.json"), "{\"kind\": \"test\"}");
}

TEST(TokenShards, FileLayoutIsHeaderThenLittleEndianTokens) {
  const TempFolder folder;
  write_sample(folder / "tokens", 100'000, 4);
  const std::string shard = read_file(folder / "tokens/train-00002.bin");
  const std::string expected(
      "PLXTOKEN\x01\0\0\0\x04\0\0\0\x03\0\0\0\0\0\0\0"
      "\x08\0\0\0\x9f\x86\x01\0\x9f\x86\x01\0",
      36);
  EXPECT_EQ(shard, expected);
  EXPECT_EQ(crc32("123456789", 9), 0xCBF43926u);  // the standard check value
}

TEST(TokenShards, TheChecksumIsTheSameInAnyPieces) {
  std::string bytes;
  for (int idx = 0; idx < 100; ++idx) bytes += static_cast<char>(idx * idx * 7);
  uint32_t one_by_one = 0;
  for (size_t size = 0; size < bytes.size(); ++size) {
    for (size_t cut : {size_t{0}, size / 3, size})  // pieces of any size and alignment
      EXPECT_EQ(crc32(bytes.data() + cut, size - cut, crc32(bytes.data(), cut)), one_by_one);
    one_by_one = crc32(&bytes[size], 1, one_by_one);
  }
}

TEST(TokenShards, LargeShardsStreamThroughTheBuffer) {
  const TempFolder folder;
  Ids document(700'000);
  for (size_t idx = 0; idx < document.size(); ++idx) document[idx] = static_cast<int32_t>(idx % 98);
  TokenDatasetWriter writer(folder / "tokens", options(100, 1'000'000));
  for (int repeat = 0; repeat < 3; ++repeat) writer.append(Split::kTrain, document, 1);
  writer.commit();
  const TokenDataset dataset(folder / "tokens", Split::kTrain);
  ASSERT_EQ(dataset.num_tokens(), 2'100'003);
  std::vector<int64_t> out(700'000);
  dataset.read(700'001, out);
  EXPECT_TRUE(std::equal(out.begin(), out.end(), document.begin()));
  EXPECT_NO_THROW(dataset.verify_checksums());
}

TEST(TokenShards, FingerprintFollowsTheContents) {
  const TempFolder folder;
  write_sample(folder / "a");
  write_sample(folder / "b");
  TokenDatasetWriter writer(folder / "c", options(100, 4));
  writer.append(Split::kTrain, Ids{1, 2, 3, 4, 5, 99, 6, 7, 8, 98}, 17);  // one token differs
  writer.commit();
  const auto fingerprint = [&](const char* name) {
    return TokenDataset(folder / name, Split::kTrain).fingerprint();
  };
  EXPECT_EQ(fingerprint("a"), fingerprint("b"));
  EXPECT_NE(fingerprint("a"), fingerprint("c"));
  EXPECT_NE(fingerprint("a"), TokenDataset(folder / "a", Split::kValidation).fingerprint());
}

TEST(TokenShardsWriter, InterruptedRunLeavesNoFolderUnderTheName) {
  const TempFolder folder;
  const pid_t child = fork();
  if (child == 0) {
    TokenDatasetWriter writer(folder / "tokens", options(100, 4));
    writer.append(Split::kTrain, Ids{1, 2, 3, 4, 5}, 5);
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(std::filesystem::exists(folder / "tokens"));
  write_sample(folder / "tokens");  // and the next run cleans up
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"tokens"});
}

TEST(TokenShardsWriter, FullDiskIsAnErrorAndTheOldFolderStays) {
  const TempFolder folder;
  write_sample(folder / "tokens");
  {
    const FileSizeLimit limit(10'000);
    expect_error(
        [&] {
          TokenDatasetWriter writer(folder / "tokens", options(100, 1'000'000));
          writer.append(Split::kTrain, Ids(50'000, 1), 1);
          writer.commit();
        },
        {"train-00000.bin", "File too large"});
  }
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"tokens"});
  EXPECT_EQ(TokenDataset(folder / "tokens", Split::kTrain).num_tokens(), 11);
}

TEST(TokenShardsWriter, RefusesIdsOutsideTheVocabulary) {
  const TempFolder folder;
  TokenDatasetWriter writer(folder / "tokens", options(100, 4));
  expect_error([&] { writer.append(Split::kTrain, Ids{1, 100}, 1); },
               {"token id 100 at position 1", "vocabulary of 100"});
  expect_error([&] { writer.append(Split::kTrain, Ids{-1}, 1); }, {"token id -1"});
}

TEST(TokenDatasetRefuses, FoldersWithoutTokens) {
  const TempFolder folder;
  expect_error([&] { TokenDataset(folder / "none", Split::kTrain); },
               {(folder / "none").string(), "plx prepare"});
}

TEST(TokenDatasetRefuses, RangesOutsideTheSplit) {
  const TempFolder folder;
  write_sample(folder / "tokens");
  const TokenDataset dataset(folder / "tokens", Split::kTrain);
  std::vector<int64_t> out(3);
  expect_error([&] { dataset.read(9, out); }, {"tokens 9 to 12", "11 tokens", "train"});
  expect_error([&] { dataset.read(-1, out); }, {"tokens -1 to 2"});
}

TEST(TokenDatasetRefuses, ShardsThatDisagreeWithTheManifest) {
  const TempFolder folder;
  const auto shard = folder / "tokens/train-00001.bin";
  const auto expect_refused = [&](std::initializer_list<std::string_view> parts) {
    expect_error([&] { TokenDataset(folder / "tokens", Split::kTrain); }, parts);
    write_sample(folder / "tokens");
  };
  write_sample(folder / "tokens");
  const std::string whole = read_file(shard);
  write_file(shard, whole.substr(0, whole.size() - 1));
  expect_refused({"train-00001.bin", "31 bytes", "truncated?"});
  write_file(shard, whole + "xx");
  expect_refused({"train-00001.bin", "34 bytes"});
  write_file(shard, whole.substr(0, 10));
  expect_refused({"train-00001.bin", "10 bytes"});
  write_file(shard, "X" + whole.substr(1));
  expect_refused({"train-00001.bin", "PLXTOKEN"});
  write_file(shard, whole.substr(0, 8) + "\x02" + whole.substr(9));
  expect_refused({"train-00001.bin", "version 2"});
  write_file(shard, whole.substr(0, 12) + "\x04" + whole.substr(13));
  expect_refused({"train-00001.bin", "4 bytes per token"});
  write_file(shard, whole.substr(0, 16) + "\x05" + whole.substr(17));
  expect_refused({"train-00001.bin", "counts 5 tokens"});
  std::filesystem::remove(shard);
  expect_refused({"train-00001.bin", "No such file"});
}

TEST(TokenDatasetRefuses, ManifestsWithFaults) {
  const TempFolder folder;
  const auto manifest = folder / "tokens/manifest.json";
  const auto expect_refused = [&](const std::string& from, const std::string& to,
                                  std::initializer_list<std::string_view> parts) {
    write_sample(folder / "tokens");
    replace_in(manifest, from, to);
    expect_error([&] { read_manifest(folder / "tokens"); }, parts);
    expect_error([&] { read_manifest(folder / "tokens"); }, {manifest.string()});
  };
  expect_refused("{", "", {"not JSON"});
  expect_refused("parallax-tokens", "other", {"\"format\" is \"other\""});
  expect_refused("\"version\": 1", "\"version\": 2", {"version 2"});
  expect_refused("\"vocab_size\": 100", "\"vocab_size\": \"x\"", {"vocab_size", "\"x\""});
  expect_refused("\"vocab_size\": 100", "\"vocab_size\": -5", {"vocab_size", "-5"});
  expect_refused("\"eos_id\": 99", "\"eos_id\": 100", {"eos_id", "100"});
  expect_refused("\"token_bytes\": 2", "\"token_bytes\": 4", {"token_bytes"});
  expect_refused("\"documents\": 3", "\"papers\": 3", {"train", "no field \"documents\""});
  expect_refused("\"tokens\": 11", "\"tokens\": 12", {"train", "11 tokens", "12"});
  expect_refused("train-00001.bin", "../secret.bin", {"shard 1", "plain file name"});
  expect_refused("\"crc32\": \"", "\"crc32\": \"z", {"shard 0", "crc32"});
}

TEST(TokenDatasetRefuses, IdsOutsideTheModelsVocabularyByShardAndPosition) {
  const TempFolder folder;
  write_sample(folder / "tokens");
  const TokenDataset dataset(folder / "tokens", Split::kTrain, 50);
  std::vector<int64_t> out(5);
  EXPECT_NO_THROW(dataset.read(0, out));
  expect_error([&] { dataset.read(3, out); },
               {"train-00001.bin", "token id 99 at position 1", "vocabulary of 50"});
}

TEST(TokenDatasetRefuses, ChangedTokensWhenChecksumsAreVerified) {
  const TempFolder folder;
  write_sample(folder / "tokens");
  const auto shard = folder / "tokens/train-00001.bin";
  std::string bytes = read_file(shard);
  bytes.back() ^= 1;
  write_file(shard, bytes);
  expect_error([&] { TokenDataset(folder / "tokens", Split::kTrain).verify_checksums(); },
               {"train-00001.bin", "have changed"});
}

}  // namespace
}  // namespace parallax::io
