// The matrix unit's kernels over tile registers in memory: the same source, without the unit, and
// with waves of few heads.
// SPDX-License-Identifier: Apache-2.0
#define PLX_VECTOR_BYTES 16
#define PLX_EMULATE_AMX
#include "cpu/tile/matrix_table.h"

namespace parallax::cpu {
extern const Kernels kEmulatedAmxKernels;
const Kernels kEmulatedAmxKernels =
    make_matrix_kernels("amx emulated", /*wave_bytes=*/1, /*wave_tiles=*/5);
}  // namespace parallax::cpu
