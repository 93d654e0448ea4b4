// Calls of the CUDA runtime that may fail.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "parallax/error.h"

/// Throws Error with the call's text and the error's name unless `call` is cudaSuccess. The error
/// is cleared, so that the context stays usable after one that is not sticky.
#define PLX_CUDA_CHECK(call)                                               \
  do {                                                                     \
    const cudaError_t plx_cuda_error = (call);                             \
    if (plx_cuda_error != cudaSuccess) {                                   \
      static_cast<void>(cudaGetLastError());                               \
      PLX_FAIL(#call, " failed: ", cudaGetErrorName(plx_cuda_error), " (", \
               cudaGetErrorString(plx_cuda_error), ")");                   \
    }                                                                      \
  } while (false)
