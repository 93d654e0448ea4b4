// File descriptors that close themselves, and system calls that finish or throw.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>
#include <utility>

namespace parallax::io {

/// Throws an Error: "cannot <action> <path>: <the system's reason for error_number>".
[[noreturn]] void throw_system_error(std::string_view action, const std::filesystem::path& path,
                                     int error_number);

/// Owns one open file descriptor. Calls that fail are Errors that name the path and the reason.
class Descriptor {
 public:
  Descriptor() = default;
  /// `flags` as in open(2). Errors call the file `shown_path` if that is given: the name that the
  /// caller knows, when `path` is a temporary one.
  Descriptor(const std::filesystem::path& path, int flags, std::filesystem::path shown_path = {});
  /// Takes an open descriptor over; errors call it `shown_path`.
  Descriptor(int number, std::filesystem::path shown_path)
      : shown_path_(std::move(shown_path)), number_(number) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;

  bool is_open() const { return number_ >= 0; }
  int number() const { return number_; }

  /// All bytes at the current position, or at `offset` without moving that position.
  void write(const void* data, size_t num_bytes);
  void write_at(const void* data, size_t num_bytes, size_t offset);
  /// Until the bytes are on the disk.
  void sync();
  /// Reports what the system found out only now (quota, network file systems).
  void close();

 private:
  std::filesystem::path shown_path_;
  int number_ = -1;
};

/// Holds a folder for this process until the result closes: an Error if another holds it. The lock
/// is on the folder itself, so that a killed process leaves none behind. Where the file system has
/// no locks the result is not open.
Descriptor lock_folder(const std::filesystem::path& folder);

/// Makes the entries of a folder (a rename) survive a power cut. File systems that cannot sync
/// folders are left alone.
void sync_folder(const std::filesystem::path& folder);

}  // namespace parallax::io
