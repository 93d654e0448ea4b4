// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_tiles.h"

#include <algorithm>
#include <type_traits>

namespace parallax::cpu {
namespace {

// The layout code is written for element types; for addresses only their size matters.
template <typename Pointee>
RowTensor<Pointee> typed_group_rows(const core::Problem& problem,
                                    const BasicTensorView<Pointee>& tensor,
                                    const core::Sequence& sequence, int64_t head_kv) {
  const auto erase = [&](const auto& rows) -> RowTensor<Pointee> {
    if (!rows) return {.data = nullptr, .dtype = tensor.dtype, .token_stride = 0, .head_stride = 0};
    return {.data = rows.data + head_kv * problem.group_size * rows.head_stride,
            .dtype = tensor.dtype,
            .token_stride = rows.token_stride,
            .head_stride = rows.head_stride};
  };
  if (size_of(tensor.dtype) == sizeof(float))
    return erase(core::query_rows<float>(tensor, sequence));
  return erase(core::query_rows<uint16_t>(tensor, sequence));
}

template <typename Number, typename View>
RowScalars<Number> typed_group_scalars(const core::Problem& problem, const View& tensor,
                                       const core::Sequence& sequence, int64_t head_kv) {
  const auto rows = core::stat_rows<float>(tensor, sequence);
  if (!rows) return {.data = nullptr, .token_stride = 0, .head_stride = 0};
  return {.data = rows.data + head_kv * problem.group_size * rows.head_stride,
          .token_stride = rows.token_stride,
          .head_stride = rows.head_stride};
}

KeyTensor key_tensor(const core::Problem& problem, const ConstTensorView& tensor,
                     const core::Sequence& sequence, int64_t head_kv) {
  const auto erase = [&](const auto& rows) -> KeyTensor {
    if (!rows) return {};
    return {.data = rows.data + head_kv * rows.head_stride,
            .dtype = tensor.dtype,
            .token_stride = rows.token_stride,
            .pages = rows.pages,
            .page_size = rows.page_size,
            .page_stride = rows.page_stride};
  };
  if (size_of(tensor.dtype) == sizeof(float))
    return erase(core::key_rows<float>(problem, tensor, sequence));
  return erase(core::key_rows<uint16_t>(problem, tensor, sequence));
}

Band band_of(const core::Problem& problem, const core::Sequence& sequence) {
  constexpr int64_t kFar = core::Problem::kNoWindow;
  if (problem.mask == Mask::kFull)
    return {.begin = sequence.keys.begin,
            .end = sequence.keys.end,
            .begin_offset = -kFar,
            .end_offset = kFar};
  const int64_t end_offset = sequence.keys.end - sequence.num_queries + 1;
  return {.begin = sequence.keys.begin,
          .end = sequence.keys.end,
          .begin_offset = end_offset - problem.window,
          .end_offset = end_offset};
}

}  // namespace

RowTensor<const void> group_rows(const core::Problem& problem, const ConstTensorView& tensor,
                                 const core::Sequence& sequence, int64_t head_kv) {
  return typed_group_rows(problem, tensor, sequence, head_kv);
}

RowTensor<void> group_rows(const core::Problem& problem, const TensorView& tensor,
                           const core::Sequence& sequence, int64_t head_kv) {
  return typed_group_rows(problem, tensor, sequence, head_kv);
}

RowScalars<const float> group_scalars(const core::Problem& problem, const ConstTensorView& tensor,
                                      const core::Sequence& sequence, int64_t head_kv) {
  return typed_group_scalars<const float>(problem, tensor, sequence, head_kv);
}

RowScalars<float> group_scalars(const core::Problem& problem, const TensorView& tensor,
                                const core::Sequence& sequence, int64_t head_kv) {
  return typed_group_scalars<float>(problem, tensor, sequence, head_kv);
}

RowTensor<void> head_rows(const core::Problem& problem, const TensorView& tensor,
                          const core::Sequence& sequence, int64_t head_kv) {
  const auto erase = [&](const auto& rows) -> RowTensor<void> {
    return {.data = rows.data + head_kv * rows.head_stride,
            .dtype = tensor.dtype,
            .token_stride = rows.token_stride,
            .head_stride = 0};
  };
  if (size_of(tensor.dtype) == sizeof(float))
    return erase(core::key_rows<float>(problem, tensor, sequence));
  return erase(core::key_rows<uint16_t>(problem, tensor, sequence));
}

TileInputs tile_inputs(const core::Problem& problem, const core::Sequence& sequence,
                       int64_t head_kv) {
  return {.q = group_rows(problem, problem.q, sequence, head_kv),
          .r = group_rows(problem, problem.r, sequence, head_kv),
          .k = key_tensor(problem, problem.k, sequence, head_kv),
          .v = key_tensor(problem, problem.v, sequence, head_kv),
          .packed_k = {},
          .packed_v = {},
          .band = band_of(problem, sequence),
          .group = problem.group_size,
          .head_dim = static_cast<int>(problem.head_dim),
          .softmax_scale = static_cast<float>(problem.softmax_scale)};
}

RowSpan rows_that_see(const core::Problem& problem, const core::Sequence& sequence,
                      core::KeyRange keys) {
  const Band band = band_of(problem, sequence);
  const int64_t first_token = std::max<int64_t>(0, keys.begin - band.end_offset + 1);
  const int64_t end_token = std::min(sequence.num_queries, keys.end - band.begin_offset);
  return {.begin = first_token * problem.group_size,
          .end = std::max(first_token, end_token) * problem.group_size};
}

TileNumbering::Place TileNumbering::operator[](int64_t number) const {
  const auto next = std::upper_bound(starts_.begin(), starts_.end(), number);
  const int64_t sequence_idx = next - starts_.begin() - 1;
  const int64_t start = *(next - 1);
  const int64_t num_tiles = (*next - start) / num_heads_;
  const int64_t head_kv = (number - start) / num_tiles;
  const int64_t tile_idx = num_tiles - 1 - (number - start) % num_tiles;
  return {.sequence_idx = sequence_idx, .head_kv = head_kv, .tile_idx = tile_idx};
}

int64_t TileNumbering::first_of(int64_t head) const {
  const auto sequence_idx = static_cast<size_t>(head / num_heads_);
  if (sequence_idx + 1 == starts_.size()) return count();
  const int64_t start = starts_[sequence_idx];
  return start + head % num_heads_ * ((starts_[sequence_idx + 1] - start) / num_heads_);
}

TileNumbering number_row_tiles(const core::Problem& problem, int wide_rows) {
  return TileNumbering(problem, [&](const core::Sequence& sequence) {
    return divide_up(num_rows(problem, sequence), wide_rows);
  });
}

RowTile row_tile(const core::Problem& problem, const TileNumbering::Place& place, int wide_rows) {
  const core::Sequence& sequence = problem.sequences[static_cast<size_t>(place.sequence_idx)];
  const int64_t first_row = place.tile_idx * wide_rows;
  const int64_t end_row = std::min(first_row + wide_rows, num_rows(problem, sequence));
  const int64_t first_token = first_row / problem.group_size;
  const int64_t last_token = (end_row - 1) / problem.group_size;
  return {.sequence_idx = place.sequence_idx,
          .head_kv = place.head_kv,
          .tile = {.first_row = first_row,
                   .num_rows = end_row - first_row,
                   .key_begin = problem.visible_keys(sequence, first_token).begin,
                   .key_end = problem.visible_keys(sequence, last_token).end},
          .rows = end_row - first_row <= kNarrowRows ? kNarrowRows : wide_rows};
}

}  // namespace parallax::cpu
