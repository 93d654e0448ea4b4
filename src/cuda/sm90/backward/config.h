// Tiles, stages and shared memory of the Hopper backward kernels, by head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {

/// Rows of a consumer's products, and of a step. Row constants lie in groups of as many.
constexpr int kBackwardRows = 64;

/// What both passes share.
template <typename Element_, int kHeadDim_>
struct BackwardConfig {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kIsBf16 = std::is_same_v<Element, __nv_bfloat16>;

  /// Weights are kept as float16, times this power of two: small ones stay normal numbers, and
  /// (float16 gradients of scores) large ones have room for their factors.
  static constexpr int kWeightPower = kIsBf16 ? 14 : 4;

  static constexpr int kChunkColumns = 64;  // 128 bytes, a row of the swizzle
  static constexpr int kRowBytes = 128;
  static constexpr int kChunks = (kHeadDim + kChunkColumns - 1) / kChunkColumns;
  static constexpr int kChunkBytes = kBackwardRows * kRowBytes;
  static constexpr int kTileBytes = kChunks * kChunkBytes;  // of kBackwardRows rows
};

/// The pass over tiles of kRows_: keys for dk and dv, queries for dq and dr. A block is one
/// warpgroup of loaders and two consumers, each with 64 rows of its own, and steps of 64 rows of
/// the other kind go by both.
template <class Config_, TileRows kRows_>
struct BackwardPass {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr TileRows kRows = kRows_;
  static constexpr bool kKeys = kRows == TileRows::kKeys;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kConsumers = 2;
  static constexpr int kTileRows = kConsumers * kBackwardRows;
  static constexpr int kWarpgroup = 128;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  /// Of a thread; their sum is what a launch gives a block, 168 for each. The loaders of keys spill
  /// with 24, and the consumers of large heads spill more with 232.
  static constexpr int kLoaderRegisters = kKeys && kHeadDim > 64 ? 24 : 40;
  static constexpr int kConsumerRegisters = kKeys && kHeadDim > 64 ? 240 : 232;

  /// Operands of a consumer: k, v or q, r, d_out; those of a step are the others.
  static constexpr int kOwnTiles = kKeys ? 2 : 3;
  static constexpr int kFirstTiles = kKeys ? 2 : 1;  // of a step, for the scores
  static constexpr int kStepTiles = 5 - kOwnTiles;
  static constexpr int kStages = kHeadDim == 64 ? 4 : 3;

  // Shared memory, in bytes.
  static constexpr int kConstantBytes = 4 * kBackwardRows * 4;  // float4 of 64 queries, transposed
  static constexpr int kOwnBytes = kOwnTiles * Config::kTileBytes;
  static constexpr int kStageBytes = kStepTiles * Config::kTileBytes;
  static constexpr int kOwnOffset = 0;
  static constexpr int kStageOffset = kConsumers * kOwnBytes;
  static constexpr int kConstantOffset = kStageOffset + kStages * kStageBytes;
  static constexpr int kNumConstants = kKeys ? kStages : kConsumers;
  static constexpr int kBarrierOffset = kConstantOffset + kNumConstants * kConstantBytes;
  static constexpr int kNumBarriers = 4 * kStages + 2 * kConsumers + 4;
  static constexpr int kTileOffset = kBarrierOffset + (kNumBarriers * 8 + 15) / 16 * 16;
  static constexpr int kTileSlotBytes = 48;
  static constexpr int kAlignment = 1024;  // of the swizzle's atoms
  static constexpr int kSharedBytes = kTileOffset + 2 * kTileSlotBytes + kAlignment;
  static_assert(kSharedBytes <= 232448, "a block has 227 KB");
};

}  // namespace parallax::cuda::sm90
