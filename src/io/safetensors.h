// The safetensors format: a JSON header and raw little-endian tensors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace parallax::io {

/// A tensor inside a mapped file. dtype is the format's own name: F32, BF16, F16, F64, I64, I32,
/// ...
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

/// A read-only memory map of one .safetensors file. The header is checked in full on opening: its
/// length, its JSON, each dtype and shape against its byte range, ranges that overlap, leave gaps
/// or leave the file. A fault is an Error that names the file and the tensor.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::map<std::string, StoredTensor>& tensors() const;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes atomically; the widest dtype first, then by name, so that each tensor is aligned to its
/// elements. (Files of other writers may not be: copy from StoredTensor::data, do not cast it.)
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace parallax::io
