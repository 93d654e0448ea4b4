// The matrix unit's kernels by dot products of bfloat16, with AVX-512 for the rest (flags:
// CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 64
#define PLX_DOT_PRODUCTS
#include "cpu/tile/matrix_table.h"

namespace parallax::cpu {
extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels =
    make_matrix_kernels("avx512_bf16", /*wave_bytes=*/int64_t{32} << 20, /*wave_tiles=*/64);
}  // namespace parallax::cpu
