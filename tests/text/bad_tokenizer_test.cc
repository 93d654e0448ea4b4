// Files that are broken, or ask for what is not supported: each is an Error that names the fault.
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "text/test_json.h"

namespace parallax::text {
namespace {

using nlohmann::json;

void expect_refused(const std::string& pointer, const json& value, const std::string& message) {
  SCOPED_TRACE(pointer + " = " + value.dump());
  json description = small_tokenizer();
  description[json::json_pointer(pointer)] = value;
  expect_error([&] { load_json(description); }, message);
}

json split(const std::string& pattern, const std::string& behavior = "Isolated") {
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const json step = {{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", behavior},
                     {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", {step, byte_level}}};
}

TEST(BadTokenizer, FileThatIsNotATokenizer) {
  expect_error([] { load_contents("{\"model\": "); }, "is not JSON");
  expect_error([] { load_contents("\xFF\xFE"); }, "is not JSON");
  expect_error([] { load_contents("[1]"); }, "not an object");
  expect_error([] { load_contents("{}"); }, "is not a tokenizer.json");
  expect_error([] { load_tokenizer("/nonexistent/tokenizer.json"); }, "/nonexistent");
}

TEST(BadTokenizer, ModelsOfOtherTypes) {
  expect_refused("/model/type", "WordPiece", "model type 'WordPiece' is not supported");
  expect_refused("/model/type", "Unigram", "model type 'Unigram' is not supported");
}

TEST(BadTokenizer, ModelSettingsThatWouldChangeTheResult) {
  expect_refused("/model/dropout", 0.1, "dropout = 0.1");
  expect_refused("/model/continuing_subword_prefix", "##", "continuing_subword_prefix");
  expect_refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
}

TEST(BadTokenizer, UnknownTokenOnlyWhereAByteNeedsIt) {
  json description = small_tokenizer();
  description["model"]["unk_token"] = "<|endoftext|>";
  EXPECT_EQ(load_json(description)->encode("ab").size(), 1u);  // every byte has an entry
  description["model"]["vocab"].erase("!");
  expect_error([&] { load_json(description); }, "no entry for byte 33");
}

TEST(BadTokenizer, IdsThatAreNoIds) {
  expect_refused("/model/vocab/ab", -1, "'ab': id -1 is not in 0..");
  expect_refused("/model/vocab/ab", int64_t{1} << 40, "is not in 0..");
  expect_refused("/model/vocab/ab", std::numeric_limits<uint64_t>::max(), "is not in 0..");
  expect_refused("/model/vocab/ab", 1.5, "is not an integer");
  expect_refused("/model/vocab/ab", "7", "is not an integer");
  expect_refused("/model/vocab/ab", 257, "id 257 stands twice");
  expect_refused("/model/vocab", json::object(), "vocab");
  expect_refused("/model/vocab", json::array({1}), "vocab");
}

TEST(BadTokenizer, MergesThatDoNotFitTheVocab) {
  expect_refused("/model/merges/0", "a z", "no entry 'az'");
  expect_refused("/model/merges/0", json::array({"q", "nope"}), "no entry 'nope'");
  expect_refused("/model/merges/0", "ab", "is not two tokens");
  expect_refused("/model/merges/0", "a b c", "is not two tokens");
  expect_refused("/model/merges/0", 3, "merge 0 is neither");
  expect_refused("/model/merges", 3, "merges are not a list");
}

TEST(BadTokenizer, AddedTokensThatContradictTheVocab) {
  expect_refused("/added_tokens/0/id", 300, "has id 300 where 259 is next after the vocab");
  expect_refused("/added_tokens/0/id", -5, "has id -5");
  expect_refused("/added_tokens/0/content", "ab", "where 256 stands in the vocab");
  expect_refused("/added_tokens/0/content", "", "is empty");
  expect_refused("/added_tokens/0/single_word", true, "single_word is not supported");
  expect_refused("/added_tokens/-", added_token("<|endoftext|>", 260), "stands twice");
}

TEST(BadTokenizer, StagesOfOtherKinds) {
  expect_refused("/normalizer", {{"type", "NFKC"}}, "normalizer: type 'NFKC'");
  expect_refused("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
                 "'Lowercase'");
  expect_refused("/pre_tokenizer", nullptr, "no ByteLevel");
  expect_refused("/pre_tokenizer", {{"type", "Metaspace"}}, "'Metaspace'");
  expect_refused("/pre_tokenizer", split("a", "MergedWithNext"), "'MergedWithNext'");
  json after = split("a");
  std::swap(after["pretokenizers"][0], after["pretokenizers"][1]);
  expect_refused("/pre_tokenizer", after, "'Split' after ByteLevel");
}

TEST(BadTokenizer, PatternsThatEnginesReadDifferently) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\\h", "escape \\h"},
      {"\\w+", "escape \\w"},
      {"^a", "anchor"},
      {"a$", "anchor"},
      {"[[:alpha:]]", "'['"},
      {"[a&&b]", "'&&'"},
      {"a{2}+", "'+' after"},
      {"a{2}?", "'?' after"},
      {"a**", "quantifier"},
      {"(?i:ss)", "folds"},
      {"(?<name>a)", "group"},
      {"(?i)a", "group"},
      {"(a", "not closed"},
      {"a)", "unmatched"},
      {"[a", "not closed"},
      {"\\pL", "without braces"},
      {"\\p{Klingon}", "Klingon"},
      {"\\xE9", "\\x80"},
      {"(a)\\1", "escape \\1"},
      {"a*", "empty string"},
      {"*a", "quantifier"},
      {"a\\", "at the end"},
      {"(?i:\xC3\xA9)", "non-ASCII"},
      {"a{x}", "repeat count"},
  };
  for (const auto& [pattern, message] : cases) {
    expect_refused("/pre_tokenizer", split(pattern), message);
  }
}

}  // namespace
}  // namespace parallax::text
