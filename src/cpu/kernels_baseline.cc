// The tile kernels for the compiler's default target (flags: CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 16
#include "cpu/tile/kernel_table.h"

namespace parallax::cpu {
extern const Kernels kBaselineKernels;
const Kernels kBaselineKernels = make_kernels("baseline");
}  // namespace parallax::cpu
