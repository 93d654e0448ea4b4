// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/backward/backward.h"

#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/backward/instance.h"
#include "cuda/sm90/schedule.h"
#include "cuda/sm90/support.h"

namespace parallax::cuda::sm90 {
namespace {

constexpr TileRows kPasses[] = {TileRows::kQueries, TileRows::kKeys};
constexpr int kWarpsPerTile = 8;  // that compute, each of which may flag it

BackwardWorkspace carve(const BackwardCall& call, void* memory) {
  BackwardWorkspace workspace{};
  int64_t bytes = 0;
  const auto take = [&](int64_t size) {
    char* const place = static_cast<char*>(memory) + bytes;
    bytes += (size + 15) / 16 * 16;
    return place;
  };
  workspace.passes = reinterpret_cast<TileWorkspace*>(take(2 * sizeof(TileWorkspace)));
  for (int which = 0; which < 2; ++which) {
    const int64_t tiles =
        num_tiles(call.attention, kPasses[which], backward_tile_rows(call.attention.head_dim));
    workspace.flagged_tiles[which] = reinterpret_cast<uint32_t*>(
        take(static_cast<int64_t>(sizeof(uint32_t)) * kWarpsPerTile * tiles));
  }
  const int64_t groups = num_tiles(call.attention, TileRows::kQueries, kBackwardRows);
  workspace.constants = reinterpret_cast<float*>(
      take(groups * kBackwardRows * 4 * static_cast<int64_t>(sizeof(float))));
  workspace.bytes = bytes;
  return workspace;
}

}  // namespace

Support supports_backward(const BackwardCall& call) {
  const AttentionCall& attention = call.attention;
  const Support instance = supports_instance("backward", attention, backward_instances());
  if (!instance.ok) return instance;
  for (const TileRows rows : kPasses)  // tiles of keys, and groups of row constants
    if (num_tiles(attention, rows, kBackwardRows) > kMaxCount)
      return refuse("backward", "more than 2^30 tiles");
  return supports_tensors("backward", attention,
                          {{"d_out", call.d_out, TileRows::kQueries},
                           {"out", call.out, TileRows::kQueries},
                           {"out_softmax", call.out_softmax, TileRows::kQueries},
                           {"dq", as_const(call.dq), TileRows::kQueries},
                           {"dr", as_const(call.dr), TileRows::kQueries},
                           {"dk", as_const(call.dk), TileRows::kKeys},
                           {"dv", as_const(call.dv), TileRows::kKeys}});
}

int64_t backward_workspace_bytes(const BackwardCall& call) { return carve(call, nullptr).bytes; }

void launch_backward(const BackwardCall& call, const DeviceInfo& device, void* workspace,
                     cudaStream_t stream) {
  const AttentionCall& attention = call.attention;
  BackwardLaunch launch{
      .call = call,
      .constants_per_head = make_schedule(attention, TileRows::kQueries, kBackwardRows,
                                          /*l2_bytes=*/0)
                                .num_blocks,
      .schedules = {},
      .workspace = carve(call, workspace),
      .num_blocks = device.num_multiprocessors};
  for (int which = 0; which < 2; ++which)
    launch.schedules[which] = make_schedule(
        attention, kPasses[which], backward_tile_rows(attention.head_dim), device.l2_bytes);
  find_instance(attention, backward_instances())->launch(launch, stream);
}

}  // namespace parallax::cuda::sm90
