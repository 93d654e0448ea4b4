// SPDX-License-Identifier: Apache-2.0
#include "row_backends.h"

#include "cpu/backend.h"
#include "cpu/row_ops.h"
#include "parallax/error.h"
#ifdef PLX_CUDA
#include "cuda/row_ops/row_ops.h"
#endif

namespace parallax {
namespace {

const cpu::Kernels& best_kernels() { return *cpu::instruction_set().floats; }

/// Where a call whose arguments have passed the checks runs.
enum class Place : uint8_t { kCpu, kCuda };

template <typename Args>
Place checked_place(const Args& args, const Device& device) {
  core::validate(args);
  const Support support = supports_row_ops(device);
  PLX_CHECK(support.ok, support.reason);
  return device.type == DeviceType::kCpu ? Place::kCpu : Place::kCuda;
}

}  // namespace

Support supports_row_ops(const Device& device) {
  if (device.type == DeviceType::kCpu) return Support::yes();
#ifdef PLX_CUDA
  return cuda::supports_row_ops(device);
#else
  return Support::no(
      "norm_rope and swiglu: this build has kernels for the CPU only (PLX_CUDA=OFF)");
#endif
}

void norm_rope(const core::NormRopeArgs& args) {
  if (checked_place(args, args.x.device) == Place::kCpu)
    return cpu::norm_rope(best_kernels(), args);
#ifdef PLX_CUDA
  cuda::norm_rope(args);
#endif
}

int64_t workspace_bytes(const core::NormRopeBackwardArgs& args) {
  if (checked_place(args, args.x.device) == Place::kCpu) return 0;
#ifdef PLX_CUDA
  return cuda::workspace_bytes(args);
#else
  return 0;
#endif
}

void norm_rope_backward(const core::NormRopeBackwardArgs& args) {
  if (checked_place(args, args.x.device) == Place::kCpu)
    return cpu::norm_rope_backward(best_kernels(), args);
#ifdef PLX_CUDA
  const int64_t needed = cuda::workspace_bytes(args), given = args.execution.workspace_bytes;
  PLX_CHECK(needed == 0 || (given >= needed && args.execution.workspace != nullptr),
            "norm_rope_backward: execution.workspace has ", given, " bytes; it needs ", needed,
            " (workspace_bytes())");
  cuda::norm_rope_backward(args);
#endif
}

void swiglu(const core::SwigluArgs& args) {
  if (checked_place(args, args.gate.device) == Place::kCpu)
    return cpu::swiglu(best_kernels(), args);
#ifdef PLX_CUDA
  cuda::swiglu(args);
#endif
}

void swiglu_backward(const core::SwigluBackwardArgs& args) {
  if (checked_place(args, args.gate.device) == Place::kCpu)
    return cpu::swiglu_backward(best_kernels(), args);
#ifdef PLX_CUDA
  cuda::swiglu_backward(args);
#endif
}

}  // namespace parallax
