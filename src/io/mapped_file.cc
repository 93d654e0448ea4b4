// See mapped_file.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "io/descriptor.h"
#include "parallax/error.h"

namespace parallax::io {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY);
  struct stat facts{};
  if (::fstat(file.number(), &facts) != 0) throw_system_error("read", path, errno);
  if (S_ISDIR(facts.st_mode)) throw_system_error("read", path, EISDIR);
  PLX_CHECK(S_ISREG(facts.st_mode), "cannot map ", path.string(), ": not a regular file");
  const auto num_bytes = static_cast<size_t>(facts.st_size);
  if (num_bytes == 0) return;  // an empty map is refused by the system
  void* start = ::mmap(nullptr, num_bytes, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (start == MAP_FAILED) throw_system_error("map", path, errno);
  bytes_ = {static_cast<const std::byte*>(start), num_bytes};
}

MappedFile::~MappedFile() {
  // munmap takes a mutable pointer although it writes nothing.
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace parallax::io
