// Torch tensors to and from the safetensors format.
// SPDX-License-Identifier: Apache-2.0
#include "optim/state_file.h"

#include <array>
#include <cstring>
#include <utility>

#include "io/safetensors.h"
#include "parallax/error.h"

namespace parallax::optim {
namespace {

constexpr std::array<std::pair<const char*, torch::ScalarType>, 7> kDtypes = {{
    {"F64", torch::kFloat64},
    {"F32", torch::kFloat32},
    {"BF16", torch::kBFloat16},
    {"F16", torch::kFloat16},
    {"I64", torch::kInt64},
    {"I32", torch::kInt32},
    {"U8", torch::kUInt8},
}};

std::string format_name(const std::string& tensor_name, torch::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes)
    if (known == dtype) return name;
  PLX_FAIL("the tensor '", tensor_name, "' has dtype ", dtype, ", which cannot be saved");
}

torch::ScalarType dtype_of(const std::string& tensor_name, const std::string& name) {
  for (const auto& [known, dtype] : kDtypes)
    if (name == known) return dtype;
  PLX_FAIL("the tensor '", tensor_name, "' has dtype ", name, ", which is not supported here");
}

}  // namespace

void save_tensors(const std::filesystem::path& path,
                  const std::map<std::string, torch::Tensor>& tensors,
                  const std::map<std::string, std::string>& metadata) {
  std::vector<torch::Tensor> keep_alive;
  std::map<std::string, io::StoredTensor> stored;
  for (const auto& [name, tensor] : tensors) {
    const torch::Tensor plain = tensor.detach().to(torch::kCPU).contiguous();
    keep_alive.push_back(plain);
    stored[name] = {
        .dtype = format_name(name, plain.scalar_type()),
        .shape = plain.sizes().vec(),
        .data = {static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}};
  }
  io::write_safetensors(path, stored, metadata);
}

std::map<std::string, torch::Tensor> load_tensors(const std::filesystem::path& path) {
  const io::SafetensorsFile file(path);
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& [name, stored] : file.tensors()) {
    torch::Tensor tensor = torch::empty(stored.shape, dtype_of(name, stored.dtype));
    if (!stored.data.empty())
      std::memcpy(tensor.mutable_data_ptr(), stored.data.data(), stored.data.size());
    tensors[name] = std::move(tensor);
  }
  return tensors;
}

}  // namespace parallax::optim
