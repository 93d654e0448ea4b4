// Named Torch tensors in a safetensors file: how optimizer state is kept.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <string>

namespace parallax::optim {

/// Writes tensors of any device and stride, atomically. float64, float32, bfloat16, float16, int64,
/// int32 and uint8 only; another dtype is an Error that names the tensor.
void save_tensors(const std::filesystem::path& path,
                  const std::map<std::string, torch::Tensor>& tensors,
                  const std::map<std::string, std::string>& metadata = {});

/// Reads all of them into own CPU memory. Throws on a damaged file.
std::map<std::string, torch::Tensor> load_tensors(const std::filesystem::path& path);

}  // namespace parallax::optim
