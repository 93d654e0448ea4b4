// SPDX-License-Identifier: Apache-2.0
#include "torch/tensor_view.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "parallax/error.h"

namespace parallax::torch_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// What a tensor holds decides which dtypes its messages offer.
enum class Role { kValues, kIndex };

/// Python's name of a dtype, as the library's own messages have it: int64, not Long.
std::string python_name(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default: {  // Bool, UInt16, Float8_e4m3fn, ...
      std::string text = torch::headeronly::toString(type);
      std::transform(text.begin(), text.end(), text.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      return text;
    }
  }
}

DType dtype_of(const Tensor& tensor, std::string_view argument, Role role) {
  const ScalarType type = tensor.scalar_type();
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Int:
      return DType::kInt32;
    default:
      PLX_FAIL(argument, " is ", python_name(type), "; it must be ",
               role == Role::kIndex ? "int32 (lengths and indices)"
                                    : "float32, bfloat16, float16 or float64");
  }
}

Device device_of(const Tensor& tensor, std::string_view argument) {
  const torch::stable::Device device = tensor.device();
  if (device.is_cpu()) return {};
  PLX_CHECK(device.is_cuda(), argument, " must be on the CPU or on a CUDA device");
  return {DeviceType::kCuda, device.index()};
}

template <typename View, typename Pointer>
View view_of(const Tensor& tensor, Pointer data, std::string_view argument, Role role) {
  PLX_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, argument,
            " is sparse or otherwise laid out; it must be a dense strided tensor");
  const int64_t rank = tensor.dim();
  PLX_CHECK(rank >= 1 && rank <= View::kMaxRank, argument, " has ", rank,
            " dimensions; it must have 1 to ", View::kMaxRank);
  View view;
  view.data = data;
  view.dtype = dtype_of(tensor, argument, role);
  view.device = device_of(tensor, argument);
  view.rank = static_cast<int>(rank);
  for (int64_t dim = 0; dim < rank; ++dim) {
    view.sizes[static_cast<size_t>(dim)] = tensor.size(dim);
    view.strides[static_cast<size_t>(dim)] = tensor.stride(dim);
  }
  return view;
}

}  // namespace

ConstTensorView const_view(const Tensor& tensor, std::string_view argument) {
  return view_of<ConstTensorView>(tensor, tensor.const_data_ptr(), argument, Role::kValues);
}

ConstTensorView const_view(const std::optional<Tensor>& tensor, std::string_view argument) {
  return tensor ? const_view(*tensor, argument) : ConstTensorView{};
}

ConstTensorView index_view(const std::optional<Tensor>& tensor, std::string_view argument) {
  if (!tensor) return {};
  return view_of<ConstTensorView>(*tensor, tensor->const_data_ptr(), argument, Role::kIndex);
}

TensorView mutable_view(const Tensor& tensor, std::string_view argument) {
  return view_of<TensorView>(tensor, tensor.mutable_data_ptr(), argument, Role::kValues);
}

}  // namespace parallax::torch_ops
