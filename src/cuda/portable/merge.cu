// Partial results over disjoint sets of keys, merged as src/reference/merge.cc does it: the same
// float64 operations in the same order, none of them fused.
//   w_s = exp(lse_s - lse)    t_mean = sum_s w_s t_mean_s    out_softmax = sum_s w_s out_softmax_s
//   out = sum_s w_s (out_s + (t_mean - t_mean_s) out_softmax_s)
// A warp computes one row. The list of partials travels as an argument of the kernel, since there
// is no memory to put it in; weights are computed again where they are needed, for the same reason.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cuda/device/elements.cuh"
#include "cuda/launch_kernel.h"
#include "cuda/portable/launch.h"

namespace parallax::cuda::portable {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kMaxHeadDim = 256;

template <typename Pointee, typename Number>
struct State {
  Operand<Pointee> out, out_softmax;
  Statistic<Number> lse, t_mean;
};

template <int kMaxCount>
struct MergeCall {
  State<const void, const float> partials[kMaxCount];
  State<void, float> result;
  int num_partials;
  DType dtype;
  int head_dim;
  int64_t batch, num_queries, num_heads;
};

/// One query and head, and where its numbers are in a tensor.
struct RowPlace {
  int64_t batch, query, head;

  template <typename Tensor>
  __device__ __forceinline__ int64_t in(const Tensor& tensor) const {
    return batch * tensor.batch_stride + query * tensor.token_stride + head * tensor.head_stride;
  }
};

/// lse and t_mean of a row over all partials, and what a partial's weight is made of.
struct RowStatistics {
  double max, sum, lse, t_mean;

  /// A partial without visible keys has no weight, also where no partial has any.
  __device__ __forceinline__ double weight(double lse_of_partial) const {
    return unscaled(lse_of_partial) / sum;
  }
  __device__ __forceinline__ double unscaled(double lse_of_partial) const {
    return lse_of_partial == -INFINITY ? 0.0 : exp(lse_of_partial - max);
  }
};

template <int kMaxCount>
__device__ __forceinline__ RowStatistics row_statistics(const MergeCall<kMaxCount>& call,
                                                        const RowPlace& row) {
  const auto number = [&](const Statistic<const float>& statistic) {
    return static_cast<double>(statistic.data[row.in(statistic)]);
  };
  RowStatistics total{.max = -INFINITY, .sum = 0.0, .lse = -INFINITY, .t_mean = 0.0};
  for (int s = 0; s < call.num_partials; ++s)
    total.max = fmax(total.max, number(call.partials[s].lse));
  for (int s = 0; s < call.num_partials; ++s)
    total.sum = __dadd_rn(total.sum, total.unscaled(number(call.partials[s].lse)));
  if (total.sum == 0.0) return total;
  total.lse = __dadd_rn(total.max, log(total.sum));
  for (int s = 0; s < call.num_partials; ++s) {
    const double w = total.weight(number(call.partials[s].lse));
    if (w == 0.0) continue;
    total.t_mean = __dadd_rn(total.t_mean, __dmul_rn(w, number(call.partials[s].t_mean)));
  }
  return total;
}

/// The columns lane, lane + kWarp, ... of a row.
template <typename T, int kMaxCount>
__device__ __forceinline__ void merge_columns(const MergeCall<kMaxCount>& call, const RowPlace& row,
                                              const RowStatistics& total) {
  constexpr int kCount = kMaxHeadDim / kWarp;
  const int lane = threadIdx.x % kWarp;
  double out[kCount] = {}, out_softmax[kCount] = {};
  for (int s = 0; s < call.num_partials && total.sum != 0.0; ++s) {
    const State<const void, const float>& partial = call.partials[s];
    const double w = total.weight(partial.lse.data[row.in(partial.lse)]);
    if (w == 0.0) continue;
    const double distance = __dadd_rn(total.t_mean, -partial.t_mean.data[row.in(partial.t_mean)]);
    const T* const out_s = static_cast<const T*>(partial.out.data) + row.in(partial.out);
    const T* const softmax_s =
        static_cast<const T*>(partial.out_softmax.data) + row.in(partial.out_softmax);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int column = lane + i * kWarp;
      if (column >= call.head_dim) continue;
      const double softmax = static_cast<float>(softmax_s[column]);
      const double shifted =
          __dadd_rn(static_cast<float>(out_s[column]), __dmul_rn(distance, softmax));
      out[i] = __dadd_rn(out[i], __dmul_rn(w, shifted));
      out_softmax[i] = __dadd_rn(out_softmax[i], __dmul_rn(w, softmax));
    }
  }
  const State<void, float>& result = call.result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = lane + i * kWarp;
    if (column >= call.head_dim) continue;
    static_cast<T*>(result.out.data)[row.in(result.out) + column] =
        from_float<T>(static_cast<float>(out[i]));
    if (result.out_softmax.data != nullptr)
      static_cast<T*>(result.out_softmax.data)[row.in(result.out_softmax) + column] =
          from_float<T>(static_cast<float>(out_softmax[i]));
  }
}

template <int kMaxCount>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    merge_kernel(const __grid_constant__ MergeCall<kMaxCount> call) {
  const int64_t row_idx = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const int64_t token = row_idx / call.num_heads;
  if (token >= call.batch * call.num_queries) return;
  const RowPlace row{.batch = token / call.num_queries,
                     .query = token % call.num_queries,
                     .head = row_idx % call.num_heads};
  const RowStatistics total = row_statistics(call, row);
  with_element_type(call.dtype,
                    [&](auto zero) { merge_columns<decltype(zero)>(call, row, total); });
  if (threadIdx.x % kWarp != 0) return;
  const State<void, float>& result = call.result;
  if (result.lse.data != nullptr)
    result.lse.data[row.in(result.lse)] = static_cast<float>(total.lse);
  if (result.t_mean.data != nullptr)
    result.t_mean.data[row.in(result.t_mean)] = static_cast<float>(total.t_mean);
}

/// PartialState or MergeArgs.
template <typename Pointee, typename Number, typename Tensors>
State<Pointee, Number> state_of(const Tensors& tensors) {
  return {.out = operand_of(tensors.out),
          .out_softmax = operand_of(tensors.out_softmax),
          .lse = statistic_of<Number>(tensors.lse),
          .t_mean = statistic_of<Number>(tensors.t_mean)};
}

template <int kMaxCount>
void launch_merge_of(const MergeArgs& args, cudaStream_t stream) {
  const TensorView& out = args.out;
  MergeCall<kMaxCount> call{};
  for (const PartialState& partial : args.partials)
    call.partials[call.num_partials++] = state_of<const void, const float>(partial);
  call.result = state_of<void, float>(args);
  call.dtype = out.dtype;
  call.head_dim = static_cast<int>(out.size(out.rank - 1));
  call.batch = out.rank == 4 ? out.size(0) : 1;
  call.num_queries = out.size(out.rank - 3);
  call.num_heads = out.size(out.rank - 2);
  const int64_t num_rows = call.batch * call.num_queries * call.num_heads;
  launch_kernel(merge_kernel<kMaxCount>,
                {.blocks_x = (num_rows + kWarpsPerBlock - 1) / kWarpsPerBlock,
                 .threads = kWarp * kWarpsPerBlock,
                 .stream = stream},
                call);
}

}  // namespace

void launch_merge(const MergeArgs& args, cudaStream_t stream) {
  // A short list is a short argument: every launch copies all of it.
  constexpr int kShort = 8;
  static_assert(sizeof(MergeCall<kMaxPartials>) <= 32764, "kernels take no larger arguments");
  if (args.partials.size() <= kShort)
    launch_merge_of<kShort>(args, stream);
  else
    launch_merge_of<kMaxPartials>(args, stream);
}

}  // namespace parallax::cuda::portable
