// Which calls the Hopper kernels take, and why not.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "cuda/call.h"
#include "cuda/sm90/schedule.h"
#include "cuda/tensor_map.h"
#include "parallax/backend.h"

namespace parallax::cuda::sm90 {

/// Of rows and tiles, which kernels count as int.
inline constexpr int64_t kMaxCount = std::numeric_limits<int>::max() / 2;

/// `pass`: "forward", "backward".
inline Support refuse(const std::string& pass, const std::string& why) {
  return Support::no("cuda_sm90 " + pass + ": " + why);
}

/// Null if none was built for the call's dtype and head size.
template <typename Instance>
const Instance* find_instance(const AttentionCall& call, std::span<const Instance> instances) {
  const auto found = std::ranges::find_if(instances, [&](const Instance& instance) {
    return instance.dtype == call.dtype && instance.head_dim == call.head_dim;
  });
  return found == instances.end() ? nullptr : &*found;
}

/// Whether there is an instance, a positive scale, and a number of rows that kernels can count.
template <typename Instance>
Support supports_instance(const std::string& pass, const AttentionCall& call,
                          std::span<const Instance> instances) {
  if (call.dtype != DType::kBFloat16 && call.dtype != DType::kFloat16)
    return refuse(pass, "dtype " + std::string(name(call.dtype)) +
                            " is not built (built: bfloat16, float16)");
  if (find_instance(call, instances) == nullptr) {
    std::string built;
    for (const Instance& instance : instances)
      if (instance.dtype == call.dtype)
        built.append(built.empty() ? "" : ", ").append(std::to_string(instance.head_dim));
    return refuse(pass, "head_dim " + std::to_string(call.head_dim) +
                            " is not built (built: " + (built.empty() ? "none" : built) + ")");
  }
  const SequenceTable& table = call.sequences;
  if (!(call.softmax_scale > 0.0f)) return refuse(pass, "softmax_scale is not positive");
  if (table.num_sequences == 0 || table.num_queries == 0)
    return refuse(pass, "there are no queries");
  if (table.num_keys == 0) return refuse(pass, "there are no keys");
  if (table.num_queries > kMaxCount || table.num_keys > kMaxCount)
    return refuse(pass, "more than 2^30 queries or keys");
  return Support::yes();
}

/// q and tensors of its shape, and k and v, as the copy engine cuts them. Packed tensors are one
/// batch.
inline MapShape query_map_shape(const AttentionCall& call, int box_tokens) {
  const SequenceTable& table = call.sequences;
  return {.head_dim = call.head_dim,
          .num_tokens = table.num_queries,
          .num_heads = call.num_heads_q,
          .num_batches = table.cu_seqlens_q != nullptr ? 1 : table.num_sequences,
          .box_tokens = box_tokens};
}
inline MapShape key_map_shape(const AttentionCall& call, int box_tokens) {
  MapShape shape = query_map_shape(call, box_tokens);
  shape.num_tokens = call.sequences.num_keys;
  shape.num_heads = call.num_heads_kv;
  return shape;
}

/// A tensor shaped like q, or like k.
struct NamedTensor {
  const char* name;
  Operand<const void> operand;
  TileRows rows;
};

/// Whether the copy engine, and 16-byte accesses, reach q, r, k, v and `others`.
inline Support supports_tensors(const std::string& pass, const AttentionCall& call,
                                std::initializer_list<NamedTensor> others) {
  std::vector<NamedTensor> tensors = {{"q", call.q, TileRows::kQueries},
                                      {"r", call.r, TileRows::kQueries},
                                      {"k", call.k, TileRows::kKeys},
                                      {"v", call.v, TileRows::kKeys}};
  tensors.insert(tensors.end(), others);
  const MapShape queries = query_map_shape(call, /*box_tokens=*/1);
  const MapShape keys = key_map_shape(call, /*box_tokens=*/1);
  for (const auto& [name, operand, rows] : tensors)
    if (const char* const why = map_refusal(operand, rows == TileRows::kQueries ? queries : keys);
        operand.data != nullptr && why != nullptr)
      return refuse(pass, std::string(name) + ": " + why);
  return Support::yes();
}

}  // namespace parallax::cuda::sm90
