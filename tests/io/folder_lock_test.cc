// A folder has one holder, and what the one before left behind can be cleaned up.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include "io/atomic_file.h"
#include "io/descriptor.h"
#include "support/temp_folder.h"

namespace parallax::io {
namespace {

using test::expect_error;
using test::TempFolder;
using Names = std::vector<std::string>;

TEST(FolderLock, HoldsUntilItCloses) {
  const TempFolder folder;
  {
    const Descriptor lock = lock_folder(folder.path());
    EXPECT_TRUE(lock.is_open());
    expect_error([&] { lock_folder(folder.path()); },
                 {folder.path().string() + " is in use by another process"});
  }
  EXPECT_TRUE(lock_folder(folder.path()).is_open());
  EXPECT_EQ(folder.entries(), Names{});
  expect_error([&] { lock_folder(folder / "absent"); }, {"absent", "No such file"});
}

TEST(FolderLock, AKilledProcessLeavesNoLockAndItsFilesCanBeRemoved) {
  const TempFolder folder;
  const pid_t child = fork();
  if (child == 0) {
    const Descriptor lock = lock_folder(folder.path());
    const AtomicFolder half(folder / "run_1"), other(folder / "other");
    write_file(half.staging() / "file", "half");
    const AtomicFile file(folder / "run.txt");
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  folder.write(".run_notes", "the user's");
  ASSERT_EQ(folder.entries().size(), 4u);
  const Descriptor lock = lock_folder(folder.path());
  EXPECT_TRUE(lock.is_open());
  remove_leftovers(folder.path(), "run");
  const Names left = folder.entries();
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].rfind(".other.staging-", 0), 0u) << left[0];
  EXPECT_EQ(left[1], ".run_notes");
}

}  // namespace
}  // namespace parallax::io
