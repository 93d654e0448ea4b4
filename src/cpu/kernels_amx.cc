// The matrix unit's kernels for AMX-BF16, with AVX-512 for the rest (flags: CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 64
#include "cpu/tile/matrix_table.h"

namespace parallax::cpu {
extern const Kernels kAmxKernels;
const Kernels kAmxKernels =
    make_matrix_kernels("amx", /*wave_bytes=*/int64_t{32} << 20, /*wave_tiles=*/64);
}  // namespace parallax::cpu
