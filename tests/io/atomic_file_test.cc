// Files and folders appear whole or not at all, and failures name the path and the reason.
// SPDX-License-Identifier: Apache-2.0
#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/temp_folder.h"

namespace parallax::io {
namespace {

using test::expect_error;
using test::FileSizeLimit;
using test::TempFolder;
using Names = std::vector<std::string>;

TEST(AtomicFile, AppearsOnCommitOnly) {
  const TempFolder folder;
  AtomicFile file(folder / "a.txt");
  file.write("hello ");
  file.write("world");
  EXPECT_FALSE(std::filesystem::exists(folder / "a.txt"));
  file.commit();
  EXPECT_EQ(read_file(folder / "a.txt"), "hello world");
  EXPECT_EQ(folder.entries(), Names{"a.txt"});
}

TEST(AtomicFile, WithoutCommitKeepsTheOldContentsAndLeavesNothing) {
  const TempFolder folder;
  write_file(folder / "a.txt", "old");
  {
    AtomicFile(folder / "a.txt").write("new");
  }
  EXPECT_EQ(read_file(folder / "a.txt"), "old");
  EXPECT_EQ(folder.entries(), Names{"a.txt"});
}

TEST(AtomicFile, FullDiskNamesPathAndReasonAndKeepsTheOldFile) {
  const TempFolder folder;
  write_file(folder / "a.txt", "old");
  {
    const FileSizeLimit limit(1000);
    expect_error([&] { write_file(folder / "a.txt", std::string(5000, 'x')); },
                 {(folder / "a.txt").string(), "File too large"});
  }
  EXPECT_EQ(read_file(folder / "a.txt"), "old");
  EXPECT_EQ(folder.entries(), Names{"a.txt"});
}

TEST(AtomicFile, UnwritablePlacesNamePathAndReason) {
  const TempFolder folder;
  folder.write("plain", "");
  expect_error([&] { write_file(folder / "plain/a.txt", "x"); },
               {(folder / "plain/a.txt").string(), "Not a directory"});
  expect_error([&] { write_file(folder / "missing/a.txt", "x"); },
               {(folder / "missing/a.txt").string(), "No such file or directory"});
  expect_error([&] { write_file(folder.path(), "x"); }, {folder.path().string(), "Is a directory"});
  expect_error([&] { write_file("/proc/plx_test.txt", "x"); }, {"/proc/plx_test.txt"});
}

TEST(ReadFile, ReadsFilesWhoseSizeTheSystemDoesNotKnow) {
  EXPECT_NE(read_file("/proc/self/status").find("Name:"), std::string::npos);
}

TEST(ReadFile, NamesPathAndReason) {
  const TempFolder folder;
  expect_error([&] { read_file(folder / "none"); },
               {(folder / "none").string(), "No such file or directory"});
  expect_error([&] { read_file(folder.path()); }, {folder.path().string(), "Is a directory"});
}

TEST(AtomicFolder, AppearsOnCommitWithMissingParents) {
  const TempFolder folder;
  AtomicFolder made(folder / "deep/er/run/");
  write_file(made.staging() / "a", "1");
  EXPECT_FALSE(std::filesystem::exists(folder / "deep/er/run"));
  made.commit();
  EXPECT_EQ(read_file(folder / "deep/er/run/a"), "1");
}

TEST(AtomicFolder, ReplacesTheOldFolderWhole) {
  const TempFolder folder;
  for (const std::string name : {"first", "second"}) {
    AtomicFolder made(folder / "run");
    write_file(made.staging() / name, name);
    made.commit();
  }
  EXPECT_EQ(folder.entries(), Names{"run"});
  EXPECT_FALSE(std::filesystem::exists(folder / "run/first"));
  EXPECT_EQ(read_file(folder / "run/second"), "second");
}

TEST(AtomicFolder, WithoutCommitKeepsTheOldFolderAndLeavesNothing) {
  const TempFolder folder;
  folder.write("run/old", "old");
  {
    const AtomicFolder made(folder / "run");
    write_file(made.staging() / "new", "new");
  }
  EXPECT_EQ(folder.entries(), Names{"run"});
  EXPECT_EQ(read_file(folder / "run/old"), "old");
}

TEST(AtomicFolder, RemovesWhatAKilledProcessLeftButNotWhatIsInUse) {
  const TempFolder folder;
  const pid_t child = fork();
  if (child == 0) {
    const AtomicFolder made(folder / "run");
    write_file(made.staging() / "half", "half");
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  ASSERT_EQ(folder.entries().size(), 1u);
  EXPECT_EQ(folder.entries()[0].rfind(".run.staging-", 0), 0u) << folder.entries()[0];

  const AtomicFolder in_use(folder / "run");
  AtomicFolder made(folder / "run");
  EXPECT_TRUE(std::filesystem::exists(in_use.staging()));
  EXPECT_EQ(folder.entries().size(), 2u);
  made.commit();
}

TEST(AtomicFolder, UnwritablePlacesNamePathAndReason) {
  const TempFolder folder;
  folder.write("plain", "");
  expect_error([&] { AtomicFolder made(folder / "plain/run"); },
               {(folder / "plain/run").string(), "Not a directory"});
  expect_error([&] { AtomicFolder made(folder / "plain"); },
               {(folder / "plain").string(), "Not a directory"});
  expect_error([&] { AtomicFolder made("/proc/plx_test"); }, {"/proc/plx_test"});
  expect_error([&] { AtomicFolder made("/"); }, {"a folder name is needed"});
}

}  // namespace
}  // namespace parallax::io
