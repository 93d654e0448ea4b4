// Tiles, stages and shared memory of the Hopper backward kernels, by head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {

/// Rows of a consumer's products, and of a step. Row constants lie in groups of as many.
constexpr int kBackwardRows = 64;

/// Rows of a tile. The sums of larger heads fill the registers with half of their columns, so there
/// both consumers take the same rows, and half of the columns of their results each.
constexpr bool splits_columns(int head_dim) { return head_dim > 128; }
constexpr int backward_tile_rows(int head_dim) {
  return splits_columns(head_dim) ? kBackwardRows : 2 * kBackwardRows;
}

/// What both passes share.
template <typename Element_, int kHeadDim_>
struct BackwardConfig {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kIsBf16 = std::is_same_v<Element, __nv_bfloat16>;

  /// Weights are kept as float16, times this power of two: small ones stay normal numbers, and
  /// (float16 gradients of scores) large ones have room for their factors.
  static constexpr int kWeightPower = kIsBf16 ? 14 : 4;

  static constexpr bool kSplit = splits_columns(kHeadDim);
  static constexpr int kSumColumns = kSplit ? 128 : kHeadDim;  // of a consumer

  static constexpr int kChunkColumns = 64;  // 128 bytes, a row of the swizzle
  static constexpr int kRowBytes = 128;
  static constexpr int kSumChunks = (kSumColumns + kChunkColumns - 1) / kChunkColumns;
  static constexpr int kChunks = (kSplit ? 2 : 1) * kSumChunks;  // zeros beyond the head size
  static constexpr int kChunkBytes = kBackwardRows * kRowBytes;
  static constexpr int kTileBytes = kChunks * kChunkBytes;  // of kBackwardRows rows
};

/// The pass over tiles of kRows_: keys for dk and dv, queries for dq and dr. A block is one
/// warpgroup of loaders and two consumers, each with 64 rows of its own or (kSplit) both with the
/// same, and steps of 64 rows of the other kind go by both.
template <class Config_, TileRows kRows_>
struct BackwardPass {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr TileRows kRows = kRows_;
  static constexpr bool kKeys = kRows == TileRows::kKeys;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kConsumers = 2;
  static constexpr int kOwnSets = Config::kSplit ? 1 : kConsumers;
  static constexpr int kTileRows = kOwnSets * kBackwardRows;
  static_assert(kTileRows == backward_tile_rows(kHeadDim));
  /// Which 64 rows of a tile a consumer has.
  static constexpr __host__ __device__ int own_set(int consumer) {
    return Config::kSplit ? 0 : consumer;
  }
  static constexpr int kWarpgroup = 128;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  static constexpr int kLoaders = kKeys ? 4 : 3;  // warps
  /// Of a thread; their sum is what a launch gives a block, 168 for each. The loaders of keys spill
  /// with 24, and the consumers of large heads spill more with 232.
  static constexpr int kLoaderRegisters = kKeys && kHeadDim > 64 ? 24 : 40;
  static constexpr int kConsumerRegisters = kKeys && kHeadDim > 64 ? 240 : 232;

  /// Operands of a consumer: k, v or q, r, d_out; those of a step are the others.
  static constexpr int kOwnTiles = kKeys ? 2 : 3;
  static constexpr int kFirstTiles = kKeys ? 2 : 1;  // of a step, for the scores; one is left
  static constexpr int kStages = Config::kSplit ? 2 : (kHeadDim == 64 ? 4 : 3);
  static constexpr int kLastStages = Config::kSplit && kKeys ? 1 : kStages;  // of a step's last

  // Shared memory, in bytes.
  static constexpr int kConstantBytes = 4 * kBackwardRows * 4;  // float4 of 64 queries, transposed
  static constexpr int kOwnBytes = kOwnTiles * Config::kTileBytes;
  static constexpr int kFirstBytes = kFirstTiles * Config::kTileBytes;
  static constexpr int kLastBytes = Config::kTileBytes;
  static constexpr int kOwnOffset = 0;
  static constexpr int kFirstOffset = kOwnSets * kOwnBytes;
  static constexpr int kLastOffset = kFirstOffset + kStages * kFirstBytes;
  static constexpr int kConstantOffset = kLastOffset + kLastStages * kLastBytes;
  static constexpr int kNumConstants = kKeys ? kStages : kConsumers;
  static constexpr int kBarrierOffset = kConstantOffset + kNumConstants * kConstantBytes;
  static constexpr int kNumBarriers = 2 * kStages + 2 * kLastStages + 2 * kOwnSets + 4;
  static constexpr int kTileOffset = kBarrierOffset + (kNumBarriers * 8 + 15) / 16 * 16;
  static constexpr int kTileSlotBytes = 48;
  static constexpr int kSharedBytes = kTileOffset + 2 * kTileSlotBytes;
  static_assert(kSharedBytes <= 232448, "a block has 227 KB");
};

}  // namespace parallax::cuda::sm90
