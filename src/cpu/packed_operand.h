// Operands in the order in which a matrix unit takes them (kernels.h, PackedRows), packed once per
// sequence and key head and read by every tile.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/problem.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace parallax::cpu {

enum class PackedForm : uint8_t { kTiles, kTransposed, kBoth };

using KeySource = std::function<KeyTensor(const core::Sequence&, int64_t head_kv)>;
using RowSource = std::function<RowTensor<const void>(const core::Sequence&, int64_t head_kv)>;

/// One tensor of a call. Two bytes per number and form.
class PackedOperand {
 public:
  /// Null pointers, for kernels that need no packing.
  PackedOperand() = default;
  /// The keys (or values) that some query of its sequence sees. `kernels` must have pack().
  PackedOperand(const Kernels& kernels, const core::Problem& problem, const KeySource& source,
                PackedForm form);
  /// The rows of a tensor shaped like q.
  PackedOperand(const Kernels& kernels, const core::Problem& problem, const RowSource& source,
                PackedForm form);

  PackedRows of(int64_t sequence_idx, int64_t head_kv) const;

 private:
  struct Block {
    const core::Sequence& sequence;
    int64_t head_kv, idx;
    uint16_t *tiles, *transposed;
    uint32_t* not_finite;
  };
  /// Allocates for the blocks of `num_rows(sequence)` rows, and calls pack_block(Block) for each.
  template <typename NumRows, typename PackBlock>
  void fill(const core::Problem& problem, PackedForm form, const NumRows& num_rows,
            const PackBlock& pack_block);

  int64_t num_heads_ = 0;
  int64_t block_elements_ = 0;
  std::vector<int64_t> block_starts_{};  // per sequence: blocks of all heads before it
  CallArray<uint16_t> tiles_{}, transposed_{};
  CallArray<uint32_t> not_finite_{};
};

}  // namespace parallax::cpu
