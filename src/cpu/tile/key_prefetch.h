// Requests for the next tile of keys, spread over the products of the present one: a burst of them
// would fill the queue of misses, and rows a page apart, as in [B, T, H, D], are not fetched ahead
// by the hardware.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/rows.h"
#include "cpu/tile/visibility.h"

namespace parallax::cpu {
namespace {

PLX_INLINE RowTensor<const void> constant(const RowTensor<void>& tensor) {
  return {tensor.data, tensor.dtype, tensor.token_stride, tensor.head_stride};
}
/// Keys that do not lie in pages.
PLX_INLINE RowTensor<const void> key_rows_of(const KeyTensor& tensor) {
  return {tensor.data, tensor.dtype, tensor.token_stride, /*head_stride=*/0};
}

/// The rows of k, v and the sums of dk and dv.
class KeyPrefetch {
 public:
  static constexpr int kTensors = 4;

  KeyPrefetch(const RowTensor<const void> (&tensors)[kTensors], int head_dim) {
    for (int idx = 0; idx < kTensors; ++idx) {
      tensors_[idx] = tensors[idx];
      row_bytes_[idx] = head_dim * (tensors[idx].dtype == DType::kFloat32 ? 4 : 2);
      lines_per_key_ += (row_bytes_[idx] + kLineBytes - 1) / kLineBytes;
    }
  }

  /// Begins a tile at first_key. About num_asks calls of ask() follow.
  void start(int64_t first_key, int64_t end, int num_asks) {
    key_ = first_key;
    end_ = end < first_key + kKeyTile ? end : first_key + kKeyTile;
    lines_per_ask_ = ((end_ - key_) * lines_per_key_ + num_asks - 1) / num_asks;
    tensor_ = 0;
    if (key_ < end_) start_row();
  }

  void ask() {
    for (int64_t line = 0; line < lines_per_ask_ && key_ < end_; ++line) {
      __builtin_prefetch(at_, /*rw=*/0, /*locality=*/2);
      at_ += kLineBytes;
      if (at_ >= row_end_) next_row();
    }
  }

 private:
  void start_row() {
    at_ = static_cast<const char*>(row_address(tensors_[tensor_], key_, /*group=*/1));
    row_end_ = at_ + row_bytes_[tensor_];
  }
  void next_row() {
    if (++tensor_ == kTensors) tensor_ = 0, ++key_;
    if (key_ < end_) start_row();
  }

  RowTensor<const void> tensors_[kTensors];
  int row_bytes_[kTensors];
  int64_t lines_per_key_ = 0, lines_per_ask_ = 0;
  int tensor_ = 0;
  int64_t key_ = 0, end_ = 0;
  const char *at_ = nullptr, *row_end_ = nullptr;
};

}  // namespace
}  // namespace parallax::cpu
