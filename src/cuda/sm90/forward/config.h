// Tiles, stages and shared memory of the Hopper forward kernel, by head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

namespace parallax::cuda::sm90 {

/// Named barriers of a block, the first two one for each consumer; 0 is that of all threads.
enum NamedBarrier : int { kTurnBarrier = 1, kVoteBarrier = 4, kRepairBarrier = 7 };

/// A block is one warpgroup of loaders and kConsumers warpgroups that compute. A consumer has 32
/// queries, whose q and r rows alternate by eights in the 64 rows of its products.
template <typename Element_, int kHeadDim_, bool kRoundedSums_ = false>
struct ForwardConfig {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  /// out and out_softmax are divided by sums of the weights as the products see them, rounded
  /// (docs/math.md, rounded sums); lse and t_mean never are.
  static constexpr bool kRoundedSums = kRoundedSums_;

  static constexpr int kConsumers = kHeadDim == 64 ? 3 : 2;
  /// Keys of a step.
  static constexpr int kKeys = kHeadDim <= 128 ? 128 : (kHeadDim == 192 ? 96 : 64);
  /// Tiles of K, and of V, that are loaded ahead.
  static constexpr int kStages = kHeadDim == 64 ? 4 : 2;
  /// Two, where shared memory has room: the next tile's queries then arrive in time.
  static constexpr int kQueryStages = kHeadDim <= 128 ? 2 : 1;
  /// Of a thread. Their sum over the block is what a launch gives it, 168 or 128 for each thread;
  /// with 24 a loader spills.
  static constexpr int kLoaderRegisters = kConsumers == 3 ? 32 : 40;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232;

  static constexpr int kWarpgroup = 128;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  static constexpr int kGroupQueries = 32;  // of a consumer
  static constexpr int kQueries = kGroupQueries * kConsumers;
  static constexpr int kRows = 2 * kQueries;  // q and r

  // Shared memory, in bytes. A tile is cut into chunks of 64 columns, a row of one chunk being 128
  // bytes: what the copy engine writes and the products read with the 128-byte swizzle.
  static constexpr int kChunkColumns = 64;
  static constexpr int kChunks = (kHeadDim + kChunkColumns - 1) / kChunkColumns;
  static constexpr int kRowBytes = 128;
  static constexpr int kQueryChunkBytes = kRows * kRowBytes;
  static constexpr int kKeyChunkBytes = kKeys * kRowBytes;
  static constexpr int kQueryBytes = kChunks * kQueryChunkBytes;
  static constexpr int kKeyBytes = kChunks * kKeyChunkBytes;

  static constexpr int kQueryOffset = 0;
  static constexpr int kKeyOffset = kQueryOffset + kQueryStages * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kKeyBytes;
  static constexpr int kBarrierOffset = kValueOffset + kStages * kKeyBytes;
  static constexpr int kNumBarriers = 4 * kStages + 2 * kQueryStages;
  static constexpr int kTileOffset = kBarrierOffset + (kNumBarriers * 8 + 15) / 16 * 16;
  static constexpr int kTileBytes = 48;
  static constexpr int kSharedBytes = kTileOffset + kQueryStages * kTileBytes;
  static_assert(kSharedBytes <= 232448, "a block has 227 KB");

  /// A row keeps its reference maximum until it is exceeded by this much, in powers of two: weights
  /// reach 2^8, and most steps rescale nothing. float16 could not hold w (t - centre) then.
  static constexpr float kLazyLimit = std::is_same_v<Element, __nv_bfloat16> ? 8.0f : 0.0f;
};

}  // namespace parallax::cuda::sm90
