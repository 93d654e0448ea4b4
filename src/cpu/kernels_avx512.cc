// The tile kernels for AVX-512 (flags: CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 64
#include "cpu/tile/kernel_table.h"

namespace parallax::cpu {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = make_kernels("avx512");
}  // namespace parallax::cpu
