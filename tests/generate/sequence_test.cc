// One sequence: characters that may be shown, stop strings, and why it ended.
// SPDX-License-Identifier: Apache-2.0
#include "generate/sequence.h"

#include <gtest/gtest.h>

namespace parallax::generate {
namespace {

constexpr int32_t kEndToken = 256;
const std::vector<int32_t> kEosTokens = {kEndToken};

struct Shown {
  std::vector<std::string> pieces;
  Completion completion;
};

/// Logits that make `token` the most probable one.
std::vector<float> logits_of(int32_t token) {
  std::vector<float> logits(257, 0.f);
  logits[static_cast<size_t>(token)] = 5.f;
  return logits;
}

/// Feeds byte tokens.
Shown feed(Request request, const std::string& bytes, bool then_eos = false,
           int64_t max_tokens = 1000) {
  const auto tokenizer = text::make_byte_tokenizer();
  Sequence sequence(request, *tokenizer, {max_tokens, kEosTokens});
  Shown shown;
  std::vector<int32_t> tokens;
  for (const char byte : bytes) tokens.push_back(static_cast<unsigned char>(byte));
  if (then_eos) tokens.push_back(kEndToken);
  for (const int32_t token : tokens) {
    if (sequence.finished()) break;
    sequence.advance(logits_of(token),
                     [&](std::string_view piece) { shown.pieces.emplace_back(piece); });
  }
  EXPECT_TRUE(sequence.finished());
  shown.completion = sequence.take();
  std::string joined;
  for (const std::string& piece : shown.pieces) joined += piece;
  EXPECT_EQ(joined, shown.completion.text);
  return shown;
}

TEST(Sequence, ShowsEachCharacterWhenItsLastByteArrives) {
  const Shown shown = feed({}, "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80.", true);
  EXPECT_EQ(shown.pieces,
            (std::vector<std::string>{"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "."}));
  EXPECT_EQ(shown.completion.finish_reason, FinishReason::kEndOfText);
  EXPECT_EQ(shown.completion.tokens.size(), 12u);
}

TEST(Sequence, ACharacterCutByTheEndBecomesTheReplacementCharacter) {
  const Shown shown = feed({}, "a\xf0\x9f", false, 3);
  EXPECT_EQ(shown.completion.text, "a\xef\xbf\xbd");
  EXPECT_EQ(shown.completion.finish_reason, FinishReason::kMaxTokens);
}

TEST(Sequence, InvalidBytesBecomeReplacementCharacters) {
  EXPECT_EQ(feed({}, "a\xff\xc3z", true).completion.text, "a\xef\xbf\xbd\xef\xbf\xbdz");
}

TEST(Sequence, NothingOfAStopStringIsShown) {
  const Shown shown = feed({.stop = {"\n\n", "END"}}, "one\nEN\nEND two");
  EXPECT_EQ(shown.completion.text, "one\nEN\n");
  EXPECT_EQ(shown.completion.finish_reason, FinishReason::kStopString);
  EXPECT_EQ(shown.completion.tokens.size(), 10u);  // those of the stop string included
  EXPECT_EQ(shown.pieces, (std::vector<std::string>{"o", "n", "e", "\n", "EN", "\n"}));
}

TEST(Sequence, AStopStringMayBeginInsideACharacter) {
  // The stop string is the character's last byte and what follows: bytes are what is compared.
  EXPECT_EQ(feed({.stop = {"\xa9z"}}, "a\xc3\xa9z").completion.text, "a\xef\xbf\xbd");
}

TEST(Sequence, HeldBackTextIsShownAtTheEndOfText) {
  const Shown shown = feed({.stop = {"stop"}}, "non-sto", true);
  EXPECT_EQ(shown.completion.text, "non-sto");
  EXPECT_EQ(shown.completion.finish_reason, FinishReason::kEndOfText);
}

TEST(Sequence, EveryEndTokenEndsTheText) {
  const auto tokenizer = text::make_byte_tokenizer();
  const std::vector<int32_t> end_tokens = {'.', kEndToken, '!'};
  for (const int32_t end : end_tokens) {
    Sequence sequence({}, *tokenizer, {.max_tokens = 10, .eos_tokens = end_tokens});
    EXPECT_EQ(sequence.advance(logits_of(end), {}), end);
    EXPECT_TRUE(sequence.finished()) << end;
    const Completion completion = sequence.take();
    EXPECT_EQ(completion.finish_reason, FinishReason::kEndOfText) << end;
    EXPECT_EQ(completion.text, "") << end;
  }
}

TEST(Sequence, ASpecialTokenHasNoText) {
  const Shown shown = feed({.ignore_eos = true}, "a", true, 2);
  EXPECT_EQ(shown.completion.text, "a");
  EXPECT_EQ(shown.completion.finish_reason, FinishReason::kMaxTokens);
  EXPECT_EQ(shown.completion.tokens, (std::vector<int32_t>{'a', kEndToken}));
}

TEST(Sequence, LogProbabilitiesComeOnRequest) {
  EXPECT_TRUE(feed({}, "a", true).completion.log_probabilities.empty());
  const auto values = feed({.log_probabilities = true}, "a", true).completion.log_probabilities;
  const double expected = 5.0 - std::log(std::exp(5.0) + 256.0);
  ASSERT_EQ(values.size(), 2u);
  EXPECT_NEAR(values[0], expected, 1e-12);
}

}  // namespace
}  // namespace parallax::generate
