// Temporary names, fsync and rename. A staging folder is locked (flock) while its process lives, so
// a later process can tell what a killed one left behind.
// SPDX-License-Identifier: Apache-2.0
#include "io/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "parallax/error.h"

namespace parallax::io {
namespace {

namespace fs = std::filesystem;

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// "dir/.name.<word>-", the common start of all temporary names of one path.
fs::path temporary_prefix(const fs::path& path, const char* word) {
  fs::path prefix = parent_of(path) / ".";
  prefix += path.filename();
  prefix += std::string(".") + word + "-";
  return prefix;
}

// Differs between processes and between calls.
std::string unique_suffix() {
  static std::atomic<int> counter{0};
  return std::to_string(::getpid()) + "-" + std::to_string(counter++);
}

// Without a trailing slash; where a link to a folder stands, the folder, so that the link stays.
fs::path folder_behind(fs::path path) {
  path = path.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  std::error_code unknown;
  return fs::is_symlink(path, unknown) && fs::is_directory(path, unknown) ? fs::canonical(path)
                                                                          : path;
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

// Folders that start with `prefix` and that no living process holds a lock on.
void remove_abandoned(const fs::path& prefix) {
  std::error_code error;
  const std::string start = prefix.filename().string();
  for (const auto& entry : fs::directory_iterator(prefix.parent_path(), error)) {
    if (entry.path().filename().string().rfind(start, 0) != 0) continue;
    const int number = ::open(entry.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (number < 0) continue;
    if (::flock(number, LOCK_EX | LOCK_NB) == 0) remove_quietly(entry.path());
    ::close(number);
  }
}

void sync_tree(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) {
      sync_tree(entry.path());
    } else if (entry.is_regular_file()) {
      Descriptor(entry.path(), O_RDONLY).sync();
    }
  }
  sync_folder(folder);
}

// Puts the folder `from` in the place of the folder `to` and removes what stood there.
void replace_folder(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    remove_quietly(from);
    return;
  }
  // No swap of names on this file system: set the old folder aside.
  const fs::path aside = temporary_prefix(to, "old").string() + unique_suffix();
  if (::rename(to.c_str(), aside.c_str()) != 0) throw_system_error("replace", to, errno);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int reason = errno;
    ::rename(aside.c_str(), to.c_str());
    throw_system_error("write the folder", to, reason);
  }
  remove_quietly(aside);
}

}  // namespace

AtomicFile::AtomicFile(fs::path path)
    : path_(std::move(path)),
      temporary_path_(temporary_prefix(path_, "tmp").string() + unique_suffix()) {
  PLX_CHECK(path_.has_filename(), "a file name is needed to write to, given \"", path_.string(),
            "\"");
  std::error_code unknown;
  if (fs::is_directory(path_, unknown)) throw_system_error("write", path_, EISDIR);
  descriptor_ = Descriptor(temporary_path_, O_WRONLY | O_CREAT | O_EXCL, path_);
}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_path_.c_str());
}

void AtomicFile::commit() {
  descriptor_.sync();
  descriptor_.close();
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    throw_system_error("write", path_, errno);
  }
  committed_ = true;
  sync_folder(parent_of(path_));
}

void write_file(const fs::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents);
  file.commit();
}

std::string read_file(const fs::path& path) {
  Descriptor file(path, O_RDONLY);
  std::error_code unknown_size;
  const auto expected = fs::file_size(path, unknown_size);
  std::string contents(unknown_size ? 0 : static_cast<size_t>(expected), '\0');
  size_t filled = 0;
  while (true) {  // the size is a hint only: it is 0 for files under /proc
    if (filled == contents.size()) contents.resize(filled + 4096);
    const ssize_t count = ::read(file.number(), contents.data() + filled, contents.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_system_error("read", path, errno);
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  contents.resize(filled);
  return contents;
}

std::string read_part(const fs::path& path, int64_t begin, int64_t count) {
  const Descriptor file(path, O_RDONLY);
  std::string contents(static_cast<size_t>(count), '\0');
  for (size_t filled = 0; filled < contents.size();) {
    const ssize_t read = ::pread(file.number(), contents.data() + filled, contents.size() - filled,
                                 begin + static_cast<off_t>(filled));
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) throw_system_error("read", path, errno);
    PLX_CHECK(read > 0, "cannot read ", path.string(), ": it has become shorter than ",
              begin + count, " bytes while it was in use");
    filled += static_cast<size_t>(read);
  }
  return contents;
}

AtomicFolder::AtomicFolder(fs::path path) : path_(folder_behind(std::move(path))) {
  PLX_CHECK(path_.has_filename() && path_.filename() != "." && path_.filename() != "..",
            "a folder name is needed to write to, given \"", path_.string(), "\"");
  std::error_code error;
  fs::create_directories(parent_of(path_), error);
  if (error) throw_system_error("create the folder of", path_, error.value());
  if (fs::exists(path_, error) && !fs::is_directory(path_, error)) {
    throw_system_error("write the folder", path_, ENOTDIR);
  }
  const fs::path prefix = temporary_prefix(path_, "staging");
  remove_abandoned(prefix);
  const fs::path staging = prefix.string() + unique_suffix();
  fs::create_directory(staging, error);
  if (error) throw_system_error("write the folder", path_, error.value());
  staging_path_ = staging;
  lock_ = Descriptor(staging_path_, O_RDONLY | O_DIRECTORY);
  ::flock(lock_.number(), LOCK_EX | LOCK_NB);  // where unsupported, nothing is cleaned up either
}

AtomicFolder::~AtomicFolder() {
  if (!committed_) remove_quietly(staging_path_);
}

void AtomicFolder::commit() {
  try {
    sync_tree(staging_path_);
  } catch (const fs::filesystem_error& error) {
    throw_system_error("write the folder", path_, error.code().value());
  }
  std::error_code unknown;
  if (fs::exists(path_, unknown)) {
    replace_folder(staging_path_, path_);
  } else if (::rename(staging_path_.c_str(), path_.c_str()) != 0) {
    throw_system_error("write the folder", path_, errno);
  }
  committed_ = true;
  sync_folder(parent_of(path_));
}

void remove_leftovers(const fs::path& folder, const std::string& name_start) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const auto has = [&](const char* word) { return name.find(word) != std::string::npos; };
    if (name.starts_with("." + name_start) && (has(".staging-") || has(".tmp-")))
      remove_quietly(entry.path());
  }
}

}  // namespace parallax::io
