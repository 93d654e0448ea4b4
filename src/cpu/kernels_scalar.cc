// The tile kernels for the compiler's default target: no instruction set of its own is asked for
// (flags: CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 16
#include "cpu/tile/kernel_table.h"

namespace parallax::cpu {
extern const Kernels kScalarKernels;
const Kernels kScalarKernels = make_kernels("scalar");
}  // namespace parallax::cpu
