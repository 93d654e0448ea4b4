// The device of a run: choosing it, setting it up, and what it can do at most.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <optional>
#include <string>
#include <string_view>

namespace parallax::train {

/// The device that a recipe's train.device stands for: "cpu", "cuda", or "auto", which is CUDA
/// where there is one and attention has kernels for it. A CUDA device is made the current one:
/// number `local_rank` of those that this process sees. Throws if there is no such device.
torch::Device choose_device(const std::string& name, int local_rank = 0);

/// Whether bfloat16 products are faster than float32 ones on the device: it has instructions for
/// them.
bool has_fast_bfloat16(torch::Device device);

/// The dtype that a recipe's train.compute stands for on the device.
torch::ScalarType choose_compute(const std::string& name, torch::Device device);

/// Sets Torch's process-wide switches for a run on `device`: only algorithms that repeat bit for
/// bit if `deterministic` (cuBLAS needs CUBLAS_WORKSPACE_CONFIG for it, set here unless it is set),
/// and the order in which scaled_dot_product_attention tries its kernels on CUDA.
void configure_torch(torch::Device device, bool deterministic);

/// What the driver calls a CUDA device, as "NVIDIA H100 80GB HBM3"; empty if it cannot be asked,
/// and for a CPU.
std::string device_name(torch::Device device);

/// The most FLOPs per second of dense matrix products (for float32 without TF32) that the maker
/// states for a device of this name; none if it is in no table here.
std::optional<double> peak_flops(std::string_view device_name, torch::ScalarType compute);

}  // namespace parallax::train
