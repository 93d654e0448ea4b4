// What a tokenizer promises beside its ids, which tests/python compares with another reader.
// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "text/test_json.h"

namespace parallax::text {
namespace {

using Ids = std::vector<int32_t>;

TEST(ByteTokenizer, IdsAreBytesAndInvalidUtf8IsKept) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(tokenizer->encode("a\xFF\xC3"), (Ids{97, 255, 195}));
  EXPECT_EQ(tokenizer->decode(Ids{97, 255, 195}), "a\xFF\xC3");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
}

TEST(ByteTokenizer, EndOfTextIsOneTokenOnlyWhenSpecialTokensAreParsed) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(tokenizer->encode("a<|endoftext|>b"), (Ids{97, 256, 98}));
  EXPECT_EQ(tokenizer->encode("<|endoftext|>", false).size(), 13u);
  EXPECT_EQ(tokenizer->find_special("<|endoftext|>"), 256);
  EXPECT_EQ(tokenizer->find_special("<eos>"), std::nullopt);
}

TEST(ByteTokenizer, SurvivesSaveAndLoad) {
  const auto tokenizer = make_byte_tokenizer();
  const auto loaded = load_contents(tokenizer->serialized());
  EXPECT_EQ(loaded->encode("\xFF"), (Ids{255}));
  EXPECT_EQ(loaded->fingerprint(), tokenizer->fingerprint());
}

TEST(ByteTokenizer, RefusesIdsOutOfRange) {
  const auto tokenizer = make_byte_tokenizer();
  expect_error([&] { tokenizer->decode(Ids{257}); }, "token id 257 is not in 0..256");
  expect_error([&] { tokenizer->decode(Ids{-1}); }, "token id -1");
}

TEST(BpeTokenizer, MergesByRank) {
  const auto tokenizer = load_json(small_tokenizer());
  EXPECT_EQ(tokenizer->encode("abc"), (Ids{257}));
  EXPECT_EQ(tokenizer->encode("ab ab"), (Ids{256, ' ', 256}));  // "a b" ranks before " a"
  EXPECT_EQ(tokenizer->encode("aba ac"), (Ids{256, 'a', 258, 'c'}));
  EXPECT_EQ(tokenizer->encode(""), Ids{});
}

TEST(BpeTokenizer, IgnoreMergesTakesAWholeWordOfTheVocab) {
  nlohmann::json description = small_tokenizer();
  description["model"]["vocab"]["bca"] = 259;
  description["added_tokens"][0]["id"] = 260;
  EXPECT_EQ(load_json(description)->encode("bca"), (Ids{'b', 'c', 'a'}));
  description["model"]["ignore_merges"] = true;
  EXPECT_EQ(load_json(description)->encode("bca"), (Ids{259}));
}

TEST(BpeTokenizer, ReplacesInvalidUtf8BeforeMerging) {
  const auto tokenizer = load_json(small_tokenizer());
  EXPECT_EQ(tokenizer->encode("ab\xE2\x82"), (Ids{256, 0xEF, 0xBF, 0xBD}));
}

TEST(BpeTokenizer, LeavesSpecialTokensOutOfDecodedTextUnlessAsked) {
  const auto tokenizer = load_json(small_tokenizer());
  const Ids ids = tokenizer->encode("abc<|endoftext|>");
  EXPECT_EQ(ids, (Ids{257, 259}));
  EXPECT_EQ(tokenizer->decode(ids), "abc");
  EXPECT_EQ(tokenizer->decode(ids, true), "abc<|endoftext|>");
  EXPECT_TRUE(tokenizer->is_special(259));
  EXPECT_FALSE(tokenizer->is_special(257));
  EXPECT_EQ(tokenizer->eos_id(), 259);
  EXPECT_EQ(tokenizer->vocab_size(), 260);
}

TEST(BpeTokenizer, SpecialTokensAsPlainTextAreCutLikeText) {
  const auto tokenizer = load_json(small_tokenizer());
  const Ids ids = tokenizer->encode("<|endoftext|>", false);
  EXPECT_EQ(ids.size(), 13u);
  EXPECT_EQ(tokenizer->decode(ids), "<|endoftext|>");
}

TEST(BpeTokenizer, AnAddedTokenThatIsNotSpecialIsTextInDecode) {
  nlohmann::json description = small_tokenizer();
  description["added_tokens"].push_back(added_token("<think>", 260, false));
  const auto tokenizer = load_json(description);
  EXPECT_EQ(tokenizer->encode("<think>", false), (Ids{260}));
  EXPECT_EQ(tokenizer->decode(Ids{260}), "<think>");
  EXPECT_EQ(tokenizer->find_special("<think>"), std::nullopt);
}

TEST(BpeTokenizer, LoadsFromTheFolderAndKeepsTheFile) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("plx_text_test_folder_" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const std::string contents = small_tokenizer().dump(2);
  io::write_file(folder / "tokenizer.json", contents);
  const auto tokenizer = load_tokenizer(folder);
  std::filesystem::remove_all(folder);
  EXPECT_EQ(tokenizer->serialized(), contents);
}

TEST(BpeTokenizer, FingerprintTellsFilesApart) {
  nlohmann::json description = small_tokenizer();
  const std::string first = load_json(description)->fingerprint();
  EXPECT_EQ(first.size(), 16u);
  EXPECT_EQ(first, load_json(description)->fingerprint());
  description["added_tokens"][0]["content"] = "<eos>";
  EXPECT_NE(first, load_json(description)->fingerprint());
}

TEST(BpeTokenizer, ManyThreadsEncodeWithOneTokenizer) {
  const auto tokenizer = load_json(small_tokenizer());
  std::string text;
  for (int repeat = 0; repeat < 2000; ++repeat) text += "abc ab, a12 \xE4\xBD\xA0\n";
  const Ids expected = tokenizer->encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer->encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(BpeTokenizer, LongRunsTakeNoQuadraticTime) {
  // 2 MB in one piece: a quadratic step anywhere would need 10^12 operations and time out.
  nlohmann::json description = small_tokenizer();
  description["normalizer"] = {{"type", "NFC"}};
  const auto tokenizer = load_json(description);
  const size_t length = 1 << 21;
  EXPECT_EQ(tokenizer->encode(std::string(length, ' ')).size(), length);
  std::string letters, marks = "a";
  while (letters.size() < length) letters += "ab";
  while (marks.size() < length) marks += "\xCC\x81\xCC\xA3";  // classes 230 and 220
  EXPECT_EQ(tokenizer->encode(letters).size(), length / 2);
  EXPECT_GT(tokenizer->encode(marks).size(), length / 2);
}

}  // namespace
}  // namespace parallax::text
