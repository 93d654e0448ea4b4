// Stop strings: nothing of them gets out, whatever the pieces are that the text comes in.
// SPDX-License-Identifier: Apache-2.0
#include "generate/stop_filter.h"

#include <gtest/gtest.h>

#include <random>

#include "parallax/error.h"

namespace parallax::generate {
namespace {

std::string run(const std::vector<std::string>& stops, std::string_view text, size_t piece_bytes) {
  StopFilter filter(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece_bytes) {
    out += filter.push(text.substr(at, piece_bytes));
  }
  return out + filter.finish();
}

TEST(StopFilter, NoStopStringsPassEverythingAtOnce) {
  StopFilter filter({});
  EXPECT_EQ(filter.push("abc"), "abc");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, HoldsBackOnlyWhatMayBeTheStart) {
  StopFilter filter({"\n\nQ:"});
  EXPECT_EQ(filter.push("one\n"), "one");
  EXPECT_EQ(filter.push("two\n\nQ"), "\ntwo");
  EXPECT_FALSE(filter.found());
  EXPECT_EQ(filter.push("x"), "\n\nQx");
  EXPECT_EQ(filter.push("\n\n"), "");
  EXPECT_EQ(filter.push("Q: no"), "");
  EXPECT_TRUE(filter.found());
  EXPECT_EQ(filter.push("more"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, GivesTheHeldBytesWhenTheTextEnds) {
  StopFilter filter({"stop"});
  EXPECT_EQ(filter.push("nonsto"), "non");
  EXPECT_EQ(filter.finish(), "sto");
}

TEST(StopFilter, TheStopStringThatIsCompleteFirstWins) {
  EXPECT_EQ(run({"abcd", "bc"}, "xabcd", 5), "xa");
  EXPECT_EQ(run({"bc", "abc"}, "xabcd", 5), "x");  // they end together: the longer one
}

TEST(StopFilter, OverlappingStartIsNotLost) {
  EXPECT_EQ(run({"aab"}, "aaab", 1), "a");
  EXPECT_EQ(run({"abab"}, "ababab", 2), "");
}

TEST(StopFilter, DoesNotDependOnThePieces) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 500; ++trial) {
    const auto text = [&](size_t length) {
      std::string result;
      while (result.size() < length) result += "ab"[random() % 2];
      return result;
    };
    const std::vector<std::string> stops = {text(1 + random() % 5) + "c", text(2 + random() % 4)};
    const std::string input = text(random() % 4) + "c" + text(random() % 20);
    const std::string whole = run(stops, input, input.size());
    for (const size_t piece_bytes : {1u, 2u, 3u, 7u}) {
      ASSERT_EQ(run(stops, input, piece_bytes), whole) << "trial " << trial << ' ' << input;
    }
    ASSERT_TRUE(input.starts_with(whole));
    for (const std::string& stop : stops) ASSERT_EQ(whole.find(stop), std::string::npos);
  }
}

TEST(StopFilter, RefusesAnEmptyStopString) { EXPECT_THROW(StopFilter({"a", ""}), Error); }

}  // namespace
}  // namespace parallax::generate
