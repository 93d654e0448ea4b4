// The device of a run.
// SPDX-License-Identifier: Apache-2.0
#include "train/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/SDPBackend.h>
#include <dlfcn.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include <array>
#include <cstdlib>

#include "nn/attention_op.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

constexpr double kTera = 1e12;

/// The makers' data sheets, dense, bfloat16 and float32 in TFLOP/s. The first row whose name is
/// part of the device's counts, so that variants stand before the name that they contain.
struct PeakRate {
  std::string_view name;
  double bfloat16, float32;
};
constexpr std::array kPeakRates = {
    PeakRate{"H100 PCIe", 756, 51},  PeakRate{"H100 NVL", 835, 60}, PeakRate{"H100", 989, 67},
    PeakRate{"H200 NVL", 835, 60},   PeakRate{"H200", 989, 67},     PeakRate{"H800", 989, 67},
    PeakRate{"GH200", 989, 67},      PeakRate{"H20", 148, 44},      PeakRate{"A100", 312, 19.5},
    PeakRate{"A800", 312, 19.5},     PeakRate{"A30", 165, 10.3},    PeakRate{"A10G", 70, 35},
    PeakRate{"L40S", 362, 91.6},     PeakRate{"L40", 181, 90.5},    PeakRate{"L4", 121, 30.3},
    PeakRate{"RTX 4090", 165, 82.6}, PeakRate{"RTX 3090", 71, 35.6}};

/// The driver's name of the device; torch has none that needs no CUDA headers.
std::string ask_driver(int index) {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver == nullptr) return "";
  using DeviceGet = int(int* device, int ordinal);
  using DeviceGetName = int(char* name, int length, int device);
  auto* const get = reinterpret_cast<DeviceGet*>(::dlsym(driver, "cuDeviceGet"));
  auto* const get_name = reinterpret_cast<DeviceGetName*>(::dlsym(driver, "cuDeviceGetName"));
  int device = 0;
  std::array<char, 128> name{};
  const bool known = get != nullptr && get_name != nullptr && get(&device, index) == 0 &&
                     get_name(name.data(), static_cast<int>(name.size()) - 1, device) == 0;
  ::dlclose(driver);
  return known ? name.data() : "";
}

}  // namespace

torch::Device choose_device(const std::string& name, int local_rank) {
  const bool has_cuda = torch::cuda::is_available();
  PLX_CHECK(name != "cuda" || has_cuda, "train.device is cuda, and torch ", TORCH_VERSION,
            torch::globalContext().hasCUDA() ? " sees no CUDA device; is there a driver, and does "
                                               "CUDA_VISIBLE_DEVICES leave one?"
                                             : " is a build without CUDA",
            " (train.device is one of auto, cpu, cuda)");
  const bool is_wanted = name == "cuda" || (name == "auto" && nn::has_attention_on(torch::kCUDA));
  if (!has_cuda || !is_wanted) return torch::kCPU;
  const auto num_devices = static_cast<int>(torch::cuda::device_count());
  PLX_CHECK(local_rank < num_devices, "process ", local_rank, " of this machine has no GPU: there ",
            num_devices == 1 ? "is " : "are ", num_devices, ", and each process takes one");
  at::accelerator::setDeviceIndex(static_cast<c10::DeviceIndex>(local_rank));
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(local_rank)};
}

bool has_fast_bfloat16(torch::Device device) {
  if (!device.is_cpu()) return true;
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

torch::ScalarType choose_compute(const std::string& name, torch::Device device) {
  const bool is_bfloat16 = name == "bfloat16" || (name == "auto" && has_fast_bfloat16(device));
  return is_bfloat16 ? torch::kBFloat16 : torch::kFloat32;
}

void configure_torch(torch::Device device, bool deterministic) {
  at::Context& context = at::globalContext();
  // Read when the first cuBLAS handle is made; without it Torch refuses deterministic products.
  if (deterministic && device.is_cuda())
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
  context.setDeterministicCuDNN(deterministic);
  // Every buffer here is written before it is read; filling it first would cost a pass each.
  context.setDeterministicFillUninitializedMemory(false);
  if (!device.is_cuda()) return;
  using at::SDPBackend;
  const auto order = [](auto... backends) {
    return std::vector<int64_t>{static_cast<int64_t>(backends)...};
  };
  // cuDNN's kernels are the fastest on Hopper; flash attention has a backward that repeats.
  context.setSDPPriorityOrder(
      deterministic
          ? order(SDPBackend::flash_attention, SDPBackend::efficient_attention,
                  SDPBackend::cudnn_attention, SDPBackend::math, SDPBackend::overrideable)
          : order(SDPBackend::cudnn_attention, SDPBackend::flash_attention,
                  SDPBackend::efficient_attention, SDPBackend::math, SDPBackend::overrideable));
}

std::string device_name(torch::Device device) {
  return device.is_cuda() ? ask_driver(device.has_index() ? device.index() : 0) : "";
}

std::optional<double> peak_flops(std::string_view device_name, torch::ScalarType compute) {
  for (const PeakRate& row : kPeakRates)
    if (device_name.find(row.name) != std::string_view::npos)
      return kTera * (compute == torch::kBFloat16 ? row.bfloat16 : row.float32);
  return std::nullopt;
}

}  // namespace parallax::train
