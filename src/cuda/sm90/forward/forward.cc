// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/forward/forward.h"

#include "cuda/sm90/forward/instance.h"
#include "cuda/sm90/schedule.h"
#include "cuda/sm90/support.h"

namespace parallax::cuda::sm90 {
namespace {

const ForwardInstance& instance_of(const ForwardCall& call) {
  return *find_instance(call.attention, forward_instances());
}

}  // namespace

Support supports_forward(const ForwardCall& call) {
  const AttentionCall& attention = call.attention;
  const Support instance = supports_instance("forward", attention, forward_instances());
  if (!instance.ok) return instance;
  if (num_tiles(attention, TileRows::kQueries, instance_of(call).tile.queries) > kMaxCount)
    return refuse("forward", "more than 2^30 tiles");
  return supports_tensors("forward", attention,
                          {{"out", as_const(call.out), TileRows::kQueries},
                           {"out_softmax", as_const(call.out_softmax), TileRows::kQueries}});
}

int64_t forward_workspace_bytes(const ForwardCall& call) {
  const ForwardTile& tile = instance_of(call).tile;
  const int64_t flags = tile.warps * num_tiles(call.attention, TileRows::kQueries, tile.queries);
  return static_cast<int64_t>(sizeof(TileWorkspace) + sizeof(uint32_t) * flags);
}

void launch_forward(const ForwardCall& call, const DeviceInfo& device, void* workspace,
                    cudaStream_t stream) {
  const ForwardInstance& instance = instance_of(call);
  const TileSchedule schedule =
      make_schedule(call.attention, TileRows::kQueries, instance.tile.queries, device.l2_bytes);
  instance.launch(call, schedule, workspace, device.num_multiprocessors, stream);
}

}  // namespace parallax::cuda::sm90
