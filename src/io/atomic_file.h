// Files and folders that appear whole or not at all.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "io/descriptor.h"

namespace parallax::io {

/// Writes to a temporary name beside `path`; commit() flushes to disk and renames. Without commit()
/// nothing of it is left. Every failure (no space, read-only folder) is an Error that names the
/// path and the system's reason. The folder must exist.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t num_bytes) { descriptor_.write(data, num_bytes); }
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::filesystem::path path_, temporary_path_;
  Descriptor descriptor_;
  bool committed_ = false;
};

/// AtomicFile in one call.
void write_file(const std::filesystem::path& path, std::string_view contents);
/// The whole file; an Error that names the path and the reason if it cannot be read.
std::string read_file(const std::filesystem::path& path);

/// Bytes [begin, begin + count) of a file; an Error as above, also if the file has fewer.
std::string read_part(const std::filesystem::path& path, int64_t begin, int64_t count);

/// A folder that appears whole: fill staging(), then commit() flushes and renames it to `path`,
/// replacing what stood there in one step where the file system can swap names (where it cannot, a
/// kill between two renames leaves the old folder whole under a hidden name beside `path`). Without
/// commit() the staging folder is removed; what a killed process left is removed by the next
/// AtomicFolder of the same path. Missing parent folders are created. Staging names start with a
/// dot. Where `path` is a link to a folder, that folder is replaced and the link stays.
class AtomicFolder {
 public:
  explicit AtomicFolder(std::filesystem::path path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::filesystem::path& staging() const { return staging_path_; }
  void commit();

 private:
  std::filesystem::path path_, staging_path_;
  Descriptor lock_;  // held while the staging folder is in use, so that others leave it alone
  bool committed_ = false;
};

/// Removes what killed processes left in `folder` under the temporary names of files and folders
/// whose own names start with `name_start`. Only for who knows that nobody else writes there
/// (lock_folder).
void remove_leftovers(const std::filesystem::path& folder, const std::string& name_start);

}  // namespace parallax::io
