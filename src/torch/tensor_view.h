// From Torch's tensors to the kernel library's views.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string_view>

#include "parallax/tensor.h"

namespace parallax::torch_ops {

/// A view of the tensor's memory with its sizes, strides, dtype and device; the tensor must outlive
/// it. `argument` names it in messages. Throws Error for a layout, device, rank or dtype that no
/// view can have; everything else is left to the library's own checks, which also refuse an
/// innermost stride other than 1.
ConstTensorView const_view(const torch::stable::Tensor& tensor, std::string_view argument);

/// The same; an absent tensor gives an undefined view.
ConstTensorView const_view(const std::optional<torch::stable::Tensor>& tensor,
                           std::string_view argument);

/// The same for lengths, boundaries and page numbers, whose messages ask for int32.
ConstTensorView index_view(const std::optional<torch::stable::Tensor>& tensor,
                           std::string_view argument);

/// The same as const_view for memory to be written.
TensorView mutable_view(const torch::stable::Tensor& tensor, std::string_view argument);

}  // namespace parallax::torch_ops
