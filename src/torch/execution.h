// Where a call on CUDA tensors runs: Torch's current stream, with memory from Torch's allocator.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "parallax/attention.h"
#include "row_backends.h"

namespace parallax::torch_ops {

/// The cudaStream_t that is current for the device. Throws Error in a Torch without CUDA.
void* current_cuda_stream(int device_index);

/// Sets args.execution for tensors on a CUDA device. The result is the workspace that
/// workspace_bytes(args) asks for, if there is such a function; it is to be kept until the call is
/// enqueued, and the allocator reuses its memory in the order of the stream.
template <typename Args>
std::optional<torch::stable::Tensor> set_execution(const torch::stable::Tensor& q, Args& args) {
  if (!q.is_cuda()) return {};
  args.execution.stream = current_cuda_stream(static_cast<int>(q.get_device_index()));
  if constexpr (requires { workspace_bytes(args); }) {
    const int64_t bytes = workspace_bytes(args);
    if (bytes == 0) return {};
    torch::stable::Tensor workspace =
        torch::stable::new_empty(q, {bytes}, torch::headeronly::ScalarType::Byte);
    args.execution.workspace = workspace.mutable_data_ptr();
    args.execution.workspace_bytes = bytes;
    return workspace;
  }
  return {};
}

}  // namespace parallax::torch_ops
