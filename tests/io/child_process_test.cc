// What is written to a program and read from it, and how it may fail.
// SPDX-License-Identifier: Apache-2.0
#include "io/child_process.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "support/temp_folder.h"

namespace parallax::io {
namespace {

using test::expect_error;

TEST(ChildProcess, ReadsTheLinesOfWhatWasWritten) {
  ChildProcess cat({"cat"});
  const std::string large(300'000, 'x');
  EXPECT_TRUE(cat.write("one\ntwo\n\n"));
  EXPECT_EQ(cat.read_line(), "one");
  EXPECT_EQ(cat.read_line(), "two");
  EXPECT_EQ(cat.read_line(), "");
  ChildProcess tail({"tail", "-c", "100001"});  // writes once its input has ended
  EXPECT_TRUE(tail.write(large + "\nend"));
  tail.close_input();
  EXPECT_EQ(tail.read_line()->size(), 99'997u);
  EXPECT_EQ(tail.read_line(), "end");  // without a line end
  EXPECT_EQ(tail.read_line(), std::nullopt);
  EXPECT_EQ(tail.wait(), 0);
}

TEST(ChildProcess, TellsHowItEnded) {
  EXPECT_EQ(ChildProcess({"sh", "-c", "exit 7"}).wait(), 7);
  EXPECT_EQ(ChildProcess({"sh", "-c", "kill -TERM $$"}).wait(), 128 + SIGTERM);
}

TEST(ChildProcess, WritingToOneThatHasEndedIsToldWithoutASignal) {
  ChildProcess process({"sh", "-c", "exec <&-; echo closed; exec sleep 60"});
  EXPECT_EQ(process.read_line(), "closed");
  EXPECT_FALSE(process.write("x"));
}  // it runs on until it is killed here

TEST(ChildProcess, AProgramThatIsNotThereIsNamed) {
  expect_error([] { ChildProcess({"no-such-program"}); },
               {"start no-such-program", "No such file"});
}

}  // namespace
}  // namespace parallax::io
