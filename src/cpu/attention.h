// The CPU backend's computations; all but the merge run over any of the kernel tables. Arguments
// have passed validation and supports().
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernels.h"
#include "cpu/row_tiles.h"

namespace parallax::cpu {

/// Memory beside the outputs: a fixed scratch per thread, and for kernels that pack their operands
/// a copy of k and v of one wave of heads (packed_operand.h), of which the calling thread keeps up
/// to 32 MiB for its next call (scratch.h).
void forward(const Kernels& kernels, const ForwardArgs& args);

/// Memory beside the outputs: a fixed scratch per thread, and in half types fp32 sums for dk and dv
/// of the key heads at work, one per thread at most. For kernels that pack their operands, of one
/// wave of heads: 16 bytes per query and head, two copies each of k, q, r and d_out and one of v.
void backward(const Kernels& kernels, const BackwardArgs& args);

/// Long caches are split over tasks when the query rows fill a single tile: at most 16 pieces of at
/// least 512 keys, cut by the sequence's own length, so that its bits depend on nothing else.
/// Memory beside the outputs: a fixed scratch per thread, one fp32 tile state per piece, and packed
/// k and v as for forward, for sequences with more rows than a narrow tile.
void decode(const Kernels& kernels, const DecodeArgs& args);

/// In float64, with the bits of the reference. Memory beside the outputs: 16 bytes per partial and
/// task.
void merge(const MergeArgs& args);

/// Cuts the fields of `memory` (state_floats long) to a state of `rows` rows.
TileState carve_state(float* memory, int64_t padded_dim, int rows);

/// Output places of one sequence and key head, for forward and decode arguments alike.
template <typename Args>
ForwardOutputs forward_outputs(const core::Problem& problem, const Args& args,
                               const core::Sequence& sequence, int64_t head_kv) {
  return {.out = group_rows(problem, args.out, sequence, head_kv),
          .out_softmax = group_rows(problem, args.out_softmax, sequence, head_kv),
          .lse = group_scalars(problem, args.lse, sequence, head_kv),
          .t_mean = group_scalars(problem, args.t_mean, sequence, head_kv)};
}

}  // namespace parallax::cpu
