// See descriptor.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/descriptor.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "parallax/error.h"

namespace parallax::io {
namespace {

// Calls write_some(pointer, bytes) until nothing is left; a signal in between is not a failure.
template <typename WriteSome>
void write_all(const std::filesystem::path& path, const void* data, size_t num_bytes,
               WriteSome write_some) {
  const char* position = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written = write_some(position, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("write", path, errno);
    if (written == 0) throw_system_error("write", path, ENOSPC);
    position += written;
    num_bytes -= static_cast<size_t>(written);
  }
}

}  // namespace

void throw_system_error(std::string_view action, const std::filesystem::path& path,
                        int error_number) {
  PLX_FAIL("cannot ", action, " ", path.string(), ": ",
           std::generic_category().message(error_number));
}

Descriptor::Descriptor(const std::filesystem::path& path, int flags,
                       std::filesystem::path shown_path)
    : shown_path_(shown_path.empty() ? path : std::move(shown_path)) {
  do {
    number_ = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (number_ < 0 && errno == EINTR);
  if (number_ < 0) {
    throw_system_error((flags & O_CREAT) != 0 ? "create" : "open", shown_path_, errno);
  }
}

Descriptor::~Descriptor() {
  if (is_open()) ::close(number_);
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : shown_path_(std::move(other.shown_path_)), number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(shown_path_, other.shown_path_);
  std::swap(number_, other.number_);
  return *this;
}

void Descriptor::write(const void* data, size_t num_bytes) {
  write_all(shown_path_, data, num_bytes,
            [this](const char* from, size_t count) { return ::write(number_, from, count); });
}

void Descriptor::write_at(const void* data, size_t num_bytes, size_t offset) {
  write_all(shown_path_, data, num_bytes, [&](const char* from, size_t count) {
    const ssize_t written = ::pwrite(number_, from, count, static_cast<off_t>(offset));
    if (written > 0) offset += static_cast<size_t>(written);
    return written;
  });
}

void Descriptor::sync() {
  // EINVAL: a pipe or another file that has no disk behind it.
  if (::fsync(number_) != 0 && errno != EINVAL) throw_system_error("write", shown_path_, errno);
}

void Descriptor::close() {
  const int number = std::exchange(number_, -1);
  if (::close(number) != 0 && errno != EINTR) throw_system_error("write", shown_path_, errno);
}

Descriptor lock_folder(const std::filesystem::path& folder) {
  Descriptor lock(folder, O_RDONLY | O_DIRECTORY);
  if (::flock(lock.number(), LOCK_EX | LOCK_NB) == 0) return lock;
  PLX_CHECK(errno != EWOULDBLOCK, folder.string(), " is in use by another process");
  return {};
}

void sync_folder(const std::filesystem::path& folder) {
  const int number = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (number < 0) return;
  const int result = ::fsync(number);
  const int reason = errno;
  ::close(number);
  if (result != 0 && reason == EIO) throw_system_error("write", folder, reason);
}

}  // namespace parallax::io
