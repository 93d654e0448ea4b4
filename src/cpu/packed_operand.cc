// SPDX-License-Identifier: Apache-2.0
#include "cpu/packed_operand.h"

#include "core/thread_pool.h"
#include "cpu/row_tiles.h"

namespace parallax::cpu {
namespace {

int64_t count_blocks(int64_t num_rows) { return divide_up(num_rows, kPackedRows); }

}  // namespace

template <typename NumRows, typename PackBlock>
void PackedOperand::fill(const core::Problem& problem, PackedForm form, const NumRows& num_rows,
                         const PackBlock& pack_block) {
  num_heads_ = problem.num_heads_kv;
  block_starts_.push_back(0);
  for (const core::Sequence& sequence : problem.sequences)
    block_starts_.push_back(block_starts_.back() + num_heads_ * count_blocks(num_rows(sequence)));
  const int64_t count = block_starts_.back() * block_elements_;
  if (form != PackedForm::kTransposed) tiles_ = make_call_array<uint16_t>(count);
  if (form != PackedForm::kTiles) transposed_ = make_call_array<uint16_t>(count);
  not_finite_ = make_call_array<uint32_t>(block_starts_.back());
  const TileNumbering blocks(
      problem, [&](const core::Sequence& sequence) { return count_blocks(num_rows(sequence)); });
  constexpr int64_t kBlocksPerTask = 16;
  core::parallel_for(divide_up(blocks.count(), kBlocksPerTask), [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kBlocksPerTask, blocks.count());
    for (int64_t number = task * kBlocksPerTask; number < end; ++number) {
      const auto [sequence_idx, head_kv, block] = blocks[number];
      const PackedRows target = of(sequence_idx, head_kv);
      const int64_t offset = block * block_elements_;
      const auto at = [&](const uint16_t* array) {
        return array == nullptr ? nullptr : const_cast<uint16_t*>(array) + offset;
      };
      pack_block(Block{.sequence = problem.sequences[static_cast<size_t>(sequence_idx)],
                       .head_kv = head_kv,
                       .idx = block,
                       .tiles = at(target.tiles),
                       .transposed = at(target.transposed),
                       .not_finite = const_cast<uint32_t*>(target.not_finite) + block});
    }
  });
}

PackedOperand::PackedOperand(const Kernels& kernels, const core::Problem& problem,
                             const KeySource& source, PackedForm form)
    : block_elements_(kPackedRows * kernels.padded_dim(problem.head_dim)) {
  const auto num_keys = [](const core::Sequence& sequence) { return sequence.keys.end; };
  fill(problem, form, num_keys, [&](const Block& block) {
    // What no query sees is left as it is: its tiles are never read.
    const int64_t first_seen =
        block.sequence.num_queries == 0 ? 0 : problem.visible_keys(block.sequence, 0).begin;
    if ((block.idx + 1) * kPackedRows <= first_seen) return;
    const KeyTensor keys = source(block.sequence, block.head_kv);
    kernels.pack({.keys = &keys,
                  .rows = nullptr,
                  .group = 1,
                  .first_row = block.idx * kPackedRows,
                  .begin = block.sequence.keys.begin,
                  .end = block.sequence.keys.end,
                  .head_dim = static_cast<int>(problem.head_dim),
                  .tiles = block.tiles,
                  .transposed = block.transposed,
                  .not_finite = block.not_finite});
  });
}

PackedOperand::PackedOperand(const Kernels& kernels, const core::Problem& problem,
                             const RowSource& source, PackedForm form)
    : block_elements_(kPackedRows * kernels.padded_dim(problem.head_dim)) {
  const auto rows_of = [&](const core::Sequence& sequence) { return num_rows(problem, sequence); };
  fill(problem, form, rows_of, [&](const Block& block) {
    const RowTensor<const void> rows = source(block.sequence, block.head_kv);
    kernels.pack({.keys = nullptr,
                  .rows = &rows,
                  .group = problem.group_size,
                  .first_row = block.idx * kPackedRows,
                  .begin = 0,
                  .end = num_rows(problem, block.sequence),
                  .head_dim = static_cast<int>(problem.head_dim),
                  .tiles = block.tiles,
                  .transposed = block.transposed,
                  .not_finite = block.not_finite});
  });
}

PackedRows PackedOperand::of(int64_t sequence_idx, int64_t head_kv) const {
  if (block_starts_.empty()) return {};
  const auto idx = static_cast<size_t>(sequence_idx);
  const int64_t per_head = (block_starts_[idx + 1] - block_starts_[idx]) / num_heads_;
  const int64_t first_block = block_starts_[idx] + head_kv * per_head;
  const int64_t offset = first_block * block_elements_;
  return {.tiles = tiles_ ? tiles_.get() + offset : nullptr,
          .transposed = transposed_ ? transposed_.get() + offset : nullptr,
          .not_finite = not_finite_.get() + first_block};
}

}  // namespace parallax::cpu
