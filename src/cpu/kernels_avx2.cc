// The tile kernels for AVX2 and FMA (flags: CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 32
#include "cpu/tile/kernel_table.h"

namespace parallax::cpu {
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = make_kernels("avx2");
}  // namespace parallax::cpu
