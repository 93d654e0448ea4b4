// Operands in the order in which a matrix unit takes them (kernels.h, PackedRows), packed once per
// sequence and key head and read by every tile. A call computes its heads in waves, and packs those
// of one wave at a time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/problem.h"
#include "cpu/kernels.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

namespace parallax::cpu {

enum class PackedForm : uint8_t { kTiles, kTransposed, kBoth };

struct KeySource {
  std::function<KeyTensor(const core::Sequence&, int64_t head_kv)> tensor;
  std::function<int64_t(const core::Sequence&)> num_keys;
};
using RowSource = std::function<RowTensor<const void>(const core::Sequence&, int64_t head_kv)>;

/// The waves of a call, in the order of the heads. `bytes_of(sequence)` is what one of its heads
/// packs. One wave of all heads for kernels that pack nothing.
std::vector<HeadRange> head_waves(const Kernels& kernels, const core::Problem& problem,
                                  const std::function<int64_t(const core::Sequence&)>& bytes_of);

/// Bytes of num_rows packed rows in one form.
int64_t packed_bytes(const Kernels& kernels, const core::Problem& problem, int64_t num_rows);

/// One tensor of some heads of a call.
class PackedOperand {
 public:
  /// Null pointers, for kernels that need no packing.
  PackedOperand() = default;
  /// The keys (or values) that some query of its sequence sees. `kernels` must have pack().
  PackedOperand(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
                const KeySource& source, PackedForm form);
  /// The rows of a tensor shaped like q.
  PackedOperand(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
                const RowSource& source, PackedForm form);

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
  void fill(const core::Problem& problem, HeadRange heads, PackedForm form, const NumRows& num_rows,
            const PackBlock& pack_block);

  int64_t num_heads_ = 0;  // of a sequence
  int64_t first_head_ = 0;
  int64_t block_elements_ = 0;
  std::vector<int64_t> block_starts_{};  // per head: blocks of all heads before it
  CallArray<uint16_t> tiles_{}, transposed_{};
  CallArray<uint32_t> not_finite_{};
};

/// In which forms k and v are packed, and for which sequences.
struct KeyForms {
  PackedForm k, v;
  bool narrow;  // also for sequences whose rows the narrow kernels take, which read no packed keys
};
constexpr KeyForms kForwardForms{PackedForm::kTiles, PackedForm::kTransposed, false};
constexpr KeyForms kBackwardForms{PackedForm::kBoth, PackedForm::kTiles, true};

/// k and v of some heads of a call as its kernels take them; nothing for kernels that read them
/// where they lie.
class PackedKeys {
 public:
  PackedKeys(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
             const KeyForms& forms);
  /// What one head of the sequence packs.
  static int64_t bytes_of(const Kernels& kernels, const core::Problem& problem,
                          const core::Sequence& sequence, const KeyForms& forms);
  void add_to(TileInputs& inputs, int64_t sequence_idx, int64_t head_kv) const;

 private:
  PackedOperand k_, v_;
};

}  // namespace parallax::cpu
