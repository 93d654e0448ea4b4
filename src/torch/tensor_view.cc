// SPDX-License-Identifier: Apache-2.0
#include "torch/tensor_view.h"

#include "parallax/error.h"

namespace parallax::torch_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor, std::string_view argument) {
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
      PLX_FAIL(argument, " has Torch's dtype ", torch::headeronly::toString(type),
               "; it must be float32, bfloat16, float16 or float64, and int32 for lengths and "
               "indices");
  }
}

Device device_of(const Tensor& tensor, std::string_view argument) {
  const torch::stable::Device device = tensor.device();
  if (device.is_cpu()) return {};
  PLX_CHECK(device.is_cuda(), argument, " must be on the CPU or on a CUDA device");
  return {DeviceType::kCuda, device.index()};
}

template <typename View, typename Pointer>
View view_of(const Tensor& tensor, Pointer data, std::string_view argument) {
  PLX_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, argument,
            " is sparse or otherwise laid out; it must be a dense strided tensor");
  const int64_t rank = tensor.dim();
  PLX_CHECK(rank >= 1 && rank <= View::kMaxRank, argument, " has ", rank,
            " dimensions; it must have 1 to ", View::kMaxRank);
  View view;
  view.data = data;
  view.dtype = dtype_of(tensor, argument);
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
  return view_of<ConstTensorView>(tensor, tensor.const_data_ptr(), argument);
}

ConstTensorView const_view(const std::optional<Tensor>& tensor, std::string_view argument) {
  return tensor ? const_view(*tensor, argument) : ConstTensorView{};
}

TensorView mutable_view(const Tensor& tensor, std::string_view argument) {
  return view_of<TensorView>(tensor, tensor.mutable_data_ptr(), argument);
}

}  // namespace parallax::torch_ops
