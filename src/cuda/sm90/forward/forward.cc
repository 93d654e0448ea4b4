// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/forward/forward.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/sm90/forward/instance.h"
#include "cuda/sm90/forward/schedule.h"

namespace parallax::cuda::sm90 {
namespace {

const ForwardInstance* find_instance(const AttentionCall& call) {
  const auto instances = forward_instances();
  const auto found = std::ranges::find_if(instances, [&](const ForwardInstance& instance) {
    return instance.dtype == call.dtype && instance.head_dim == call.head_dim;
  });
  return found == instances.end() ? nullptr : &*found;
}

std::string built_head_dims(DType dtype) {
  std::string text;
  for (const ForwardInstance& instance : forward_instances())
    if (instance.dtype == dtype)
      text.append(text.empty() ? "" : ", ").append(std::to_string(instance.head_dim));
  return text.empty() ? "none" : text;
}

Support refuse(const std::string& why) { return Support::no("cuda_sm90 forward: " + why); }

/// The copy engine's and the 16-byte stores' conditions.
Support supports_memory(const ForwardCall& call) {
  const AttentionCall& attention = call.attention;
  const MapShape queries = query_map_shape(attention);
  const MapShape keys = key_map_shape(attention, /*box_tokens=*/1);
  const auto constant = [](const Operand<void>& operand) -> Operand<const void> {
    return {operand.data, operand.batch_stride, operand.token_stride, operand.head_stride};
  };
  const struct {
    const char* name;
    Operand<const void> operand;
    const MapShape& shape;
  } tensors[] = {{"q", attention.q, queries},
                 {"r", attention.r, queries},
                 {"k", attention.k, keys},
                 {"v", attention.v, keys},
                 {"out", constant(call.out), queries},
                 {"out_softmax", constant(call.out_softmax), queries}};
  for (const auto& [name, operand, shape] : tensors)
    if (const char* const refusal = map_refusal(operand, shape);
        operand.data != nullptr && refusal != nullptr)
      return refuse(std::string(name) + ": " + refusal);
  return Support::yes();
}

}  // namespace

Support supports_forward(const ForwardCall& call) {
  const AttentionCall& attention = call.attention;
  const SequenceTable& table = attention.sequences;
  if (attention.dtype != DType::kBFloat16 && attention.dtype != DType::kFloat16)
    return refuse("dtype " + std::string(name(attention.dtype)) +
                  " is not built (built: bfloat16, float16)");
  const ForwardInstance* const instance = find_instance(attention);
  if (instance == nullptr)
    return refuse("head_dim " + std::to_string(attention.head_dim) +
                  " is not built (built: " + built_head_dims(attention.dtype) + ")");
  if (!(attention.softmax_scale > 0.0f)) return refuse("softmax_scale is not positive");
  if (table.num_sequences == 0 || table.num_queries == 0) return refuse("there are no queries");
  if (table.num_keys == 0) return refuse("there are no keys");
  constexpr int64_t kMaxCount = std::numeric_limits<int>::max() / 2;
  if (table.num_queries > kMaxCount || table.num_keys > kMaxCount ||
      num_tiles(attention, instance->tile) > kMaxCount)
    return refuse("more than 2^30 queries, keys or tiles");
  return supports_memory(call);
}

int64_t forward_workspace_bytes(const ForwardCall& call) {
  const ForwardTile& tile = find_instance(call.attention)->tile;
  const int64_t flags = tile.warps * num_tiles(call.attention, tile);
  return static_cast<int64_t>(sizeof(ForwardWorkspace) + sizeof(uint32_t) * flags);
}

void launch_forward(const ForwardCall& call, const DeviceInfo& device, void* workspace,
                    cudaStream_t stream) {
  const ForwardInstance& instance = *find_instance(call.attention);
  const TileSchedule schedule = make_schedule(call.attention, instance.tile, device.l2_bytes);
  instance.launch(call, schedule, workspace, device.num_multiprocessors, stream);
}

}  // namespace parallax::cuda::sm90
