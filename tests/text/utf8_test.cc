// UTF-8 repair and the stream over it. The equality with Python for all short byte strings is
// tested in tests/python.
// SPDX-License-Identifier: Apache-2.0
#include "text/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "text/nfc.h"
#include "text/utf8_stream.h"

namespace parallax::text {
namespace {

const std::string kBad(kReplacementCharacter);

TEST(Utf8, ReplacesEachMaximalSubpartOnce) {
  EXPECT_EQ(replace_invalid_utf8("a\xF0\x9F\x98z"), "a" + kBad + "z");
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80"), kBad + kBad + kBad);  // overlong
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), kBad + kBad + kBad);  // surrogate
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), kBad + kBad + kBad + kBad);
  EXPECT_EQ(replace_invalid_utf8("\xC3\xA9\xE2\x82"), "\xC3\xA9" + kBad);
}

TEST(Utf8, CodePointsSurviveTheRoundTrip) {
  for (char32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point >= 0xD800 && code_point < 0xE000) continue;
    std::string text;
    append_utf8(text, code_point);
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
    ASSERT_EQ(first_code_point(text), code_point);
  }
}

TEST(Utf8Stream, HoldsBackAnUnfinishedCharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80 b"), "\xF0\x9F\x98\x80 b");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatNeverCompletes) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("x\xFF"), kBad + "x" + kBad);
  EXPECT_EQ(stream.push("\xC3"), "");
  EXPECT_EQ(stream.finish(), kBad);
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, AnyCutGivesTheSameText) {
  std::mt19937 random(1);
  const std::string alphabet = "a\x80\x9F\xA0\xBF\xC3\xE0\xE2\xED\xEF\xF0\xF4\xFF";
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (int idx = 0; idx < 12; ++idx) bytes += alphabet[random() % alphabet.size()];
    Utf8Stream stream;
    std::string joined;
    for (size_t pos = 0; pos < bytes.size();) {
      const size_t num_bytes = 1 + random() % 3;
      const std::string part = stream.push(bytes.substr(pos, num_bytes));
      EXPECT_EQ(valid_utf8_prefix(part), part.size());
      joined += part;
      pos += num_bytes;
    }
    ASSERT_EQ(joined + stream.finish(), replace_invalid_utf8(bytes)) << "round " << round;
  }
}

TEST(Nfc, ComposesAndOrdersMarks) {
  EXPECT_EQ(to_nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(to_nfc("q\xCC\x87\xCC\xA3"), "q\xCC\xA3\xCC\x87");    // class 220 before 230
  EXPECT_EQ(to_nfc("\xE1\x84\x80\xE1\x85\xA1"), "\xEA\xB0\x80");  // Hangul
  EXPECT_EQ(to_nfc(std::string("a\0b", 3)), std::string("a\0b", 3));
  EXPECT_FALSE(is_surely_nfc("e\xCC\x81"));
  EXPECT_TRUE(is_surely_nfc("caf\xC3\xA9"));
}

}  // namespace
}  // namespace parallax::text
