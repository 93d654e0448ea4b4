// SPDX-License-Identifier: Apache-2.0
#include "cpu/packed_operand.h"

#include <algorithm>

#include "core/thread_pool.h"

namespace parallax::cpu {
namespace {

int64_t count_blocks(int64_t num_rows) { return divide_up(num_rows, kPackedRows); }

int64_t num_packed_keys(const core::Problem& problem, const core::Sequence& sequence,
                        const KeyForms& forms) {
  return forms.narrow || num_rows(problem, sequence) > kNarrowRows ? sequence.keys.end : 0;
}

}  // namespace

int64_t packed_bytes(const Kernels& kernels, const core::Problem& problem, int64_t num_rows) {
  return count_blocks(num_rows) * kPackedRows * kernels.padded_dim(problem.head_dim) *
         static_cast<int64_t>(sizeof(uint16_t));
}

std::vector<HeadRange> head_waves(const Kernels& kernels, const core::Problem& problem,
                                  const std::function<int64_t(const core::Sequence&)>& bytes_of) {
  const int64_t num_heads = problem.num_sequences() * problem.num_heads_kv;
  if (kernels.pack == nullptr) return {{0, num_heads}};
  std::vector<HeadRange> waves;
  HeadRange wave{0, 0};
  int64_t bytes = 0, tiles = 0;
  while (wave.end < num_heads) {
    const auto sequence_idx = static_cast<size_t>(wave.end++ / problem.num_heads_kv);
    const core::Sequence& sequence = problem.sequences[sequence_idx];
    bytes += bytes_of(sequence);
    tiles += divide_up(num_rows(problem, sequence), kernels.wide_rows);
    if (wave.end < num_heads && (bytes < kernels.wave_bytes || tiles < kernels.wave_tiles))
      continue;
    waves.push_back(wave);
    wave.first = wave.end;
    bytes = tiles = 0;
  }
  return waves;
}

template <typename NumRows, typename PackBlock>
void PackedOperand::fill(const core::Problem& problem, HeadRange heads, PackedForm form,
                         const NumRows& num_rows, const PackBlock& pack_block) {
  num_heads_ = problem.num_heads_kv;
  first_head_ = heads.first;
  block_starts_.push_back(0);
  const auto sequence_of = [&](int64_t head) -> const core::Sequence& {
    return problem.sequences[static_cast<size_t>(head / num_heads_)];
  };
  for (int64_t head = heads.first; head < heads.end; ++head)
    block_starts_.push_back(block_starts_.back() + count_blocks(num_rows(sequence_of(head))));
  const int64_t num_blocks = block_starts_.back();
  if (form != PackedForm::kTransposed)
    tiles_ = make_call_array<uint16_t>(num_blocks * block_elements_);
  if (form != PackedForm::kTiles)
    transposed_ = make_call_array<uint16_t>(num_blocks * block_elements_);
  not_finite_ = make_call_array<uint32_t>(num_blocks);
  constexpr int64_t kBlocksPerTask = 16;
  core::parallel_for(divide_up(num_blocks, kBlocksPerTask), [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kBlocksPerTask, num_blocks);
    for (int64_t block = task * kBlocksPerTask; block < end; ++block) {
      const auto next = std::upper_bound(block_starts_.begin(), block_starts_.end(), block);
      const int64_t head = heads.first + (next - block_starts_.begin() - 1);
      const int64_t offset = block * block_elements_;
      pack_block(Block{.sequence = sequence_of(head),
                       .head_kv = head % num_heads_,
                       .idx = block - *(next - 1),
                       .tiles = tiles_ ? tiles_.get() + offset : nullptr,
                       .transposed = transposed_ ? transposed_.get() + offset : nullptr,
                       .not_finite = not_finite_.get() + block});
    }
  });
}

PackedOperand::PackedOperand(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
                             const KeySource& source, PackedForm form)
    : block_elements_(kPackedRows * kernels.padded_dim(problem.head_dim)) {
  fill(problem, heads, form, source.num_keys, [&](const Block& block) {
    // What no query sees is left as it is: what products make of it is not used.
    const int64_t first_seen =
        block.sequence.num_queries == 0 ? 0 : problem.visible_keys(block.sequence, 0).begin;
    if ((block.idx + 1) * kPackedRows <= first_seen) return;
    const KeyTensor keys = source.tensor(block.sequence, block.head_kv);
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

PackedOperand::PackedOperand(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
                             const RowSource& source, PackedForm form)
    : block_elements_(kPackedRows * kernels.padded_dim(problem.head_dim)) {
  const auto rows_of = [&](const core::Sequence& sequence) { return num_rows(problem, sequence); };
  fill(problem, heads, form, rows_of, [&](const Block& block) {
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
  const int64_t first_block =
      block_starts_[static_cast<size_t>(sequence_idx * num_heads_ + head_kv - first_head_)];
  const int64_t offset = first_block * block_elements_;
  return {.tiles = tiles_ ? tiles_.get() + offset : nullptr,
          .transposed = transposed_ ? transposed_.get() + offset : nullptr,
          .not_finite = not_finite_.get() + first_block};
}

PackedKeys::PackedKeys(const Kernels& kernels, const core::Problem& problem, HeadRange heads,
                       const KeyForms& forms) {
  if (kernels.pack == nullptr) return;
  const auto source = [&](KeyTensor TileInputs::* tensor) -> KeySource {
    return {.tensor =
                [&problem, tensor](const core::Sequence& sequence, int64_t head_kv) {
                  return tile_inputs(problem, sequence, head_kv).*tensor;
                },
            .num_keys =
                [&](const core::Sequence& sequence) {
                  return num_packed_keys(problem, sequence, forms);
                }};
  };
  k_ = PackedOperand(kernels, problem, heads, source(&TileInputs::k), forms.k);
  v_ = PackedOperand(kernels, problem, heads, source(&TileInputs::v), forms.v);
}

int64_t PackedKeys::bytes_of(const Kernels& kernels, const core::Problem& problem,
                             const core::Sequence& sequence, const KeyForms& forms) {
  const auto copies = [](PackedForm form) { return form == PackedForm::kBoth ? 2 : 1; };
  return packed_bytes(kernels, problem, num_packed_keys(problem, sequence, forms)) *
         (copies(forms.k) + copies(forms.v));
}

void PackedKeys::add_to(TileInputs& inputs, int64_t sequence_idx, int64_t head_kv) const {
  inputs.packed_k = k_.of(sequence_idx, head_kv);
  inputs.packed_v = v_.of(sequence_idx, head_kv);
}

}  // namespace parallax::cpu
