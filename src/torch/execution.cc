// SPDX-License-Identifier: Apache-2.0
#include "torch/execution.h"

#include <dlfcn.h>

#include "parallax/error.h"

namespace parallax::torch_ops {
namespace {

/// Part of Torch's stable C interface, and only of its CUDA builds: looked up, so that one library
/// serves both.
using GetCurrentStream = int32_t (*)(int32_t device_index, void** stream);

GetCurrentStream get_current_stream() {
  static const auto function =
      reinterpret_cast<GetCurrentStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  return function;
}

}  // namespace

void* current_cuda_stream(int device_index) {
  PLX_CHECK(get_current_stream() != nullptr, "this build of Torch has no CUDA streams");
  void* stream = nullptr;
  PLX_CHECK(get_current_stream()(device_index, &stream) == 0,
            "Torch has no current stream for CUDA device ", device_index);
  return stream;
}

}  // namespace parallax::torch_ops
