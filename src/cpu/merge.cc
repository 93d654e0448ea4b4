// Partial results over disjoint sets of keys, merged as src/reference/merge.cc does it, operation
// for operation in float64, so that both give the same bits. Here rows are spread over the threads
// and nothing is allocated per row.
//   w_s = exp(lse_s - lse)    t_mean = sum w_s t_mean_s    out_softmax = sum w_s out_softmax_s
//   out = sum w_s (out_s + (t_mean - t_mean_s) out_softmax_s)
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "cpu/attention.h"

namespace parallax::cpu {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr int64_t kRowsPerTask = 64;  // about 30 us of work: more than waking a thread costs

/// One head of one query, in whichever of the two layouts; packed ones are a single sequence.
struct RowPlace {
  core::Sequence sequence;
  int64_t query, head;

  template <typename T, typename Pointee>
  auto* values(const BasicTensorView<Pointee>& view) const {
    return core::query_rows<T>(view, sequence).at(query, head);
  }
  template <typename Pointee>
  auto* stat(const BasicTensorView<Pointee>& view) const {
    return core::stat_rows<float>(view, sequence).at(query, head);
  }
};

/// What one row takes from each partial; the vectors serve all rows of a task.
struct RowWeights {
  double lse, t_mean;
  std::vector<double> weights, t_means;

  explicit RowWeights(size_t num_partials) : weights(num_partials), t_means(num_partials) {}

  void compute(std::span<const PartialState> partials, const RowPlace& row) {
    lse = kMinusInfinity;
    t_mean = 0.0;
    double max = kMinusInfinity;
    for (size_t s = 0; s < partials.size(); ++s) {
      weights[s] = static_cast<double>(*row.stat(partials[s].lse));
      t_means[s] = static_cast<double>(*row.stat(partials[s].t_mean));
      max = std::max(max, weights[s]);
    }
    double sum = 0.0;
    // A partial without visible keys has no weight, also where no partial has any.
    for (double& w : weights) sum += w = w == kMinusInfinity ? 0.0 : std::exp(w - max);
    if (sum == 0.0) return;
    lse = max + std::log(sum);
    for (size_t s = 0; s < weights.size(); ++s) {
      weights[s] /= sum;
      if (weights[s] != 0.0) t_mean += weights[s] * t_means[s];
    }
  }
};

template <typename T>
void store(T* to, const double* sums, int64_t D) {
  for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(static_cast<float>(sums[d]));
}

template <typename T>
void merge_row(const MergeArgs& args, const RowPlace& row, RowWeights& weights) {
  const int64_t D = args.out.size(args.out.rank - 1);
  weights.compute(args.partials, row);
  double o[kMaxHeadDim] = {};
  double o_softmax[kMaxHeadDim] = {};
  for (size_t s = 0; s < args.partials.size(); ++s) {
    const double w = weights.weights[s];
    if (w == 0.0) continue;
    const double distance = weights.t_mean - weights.t_means[s];
    const T* const out_s = row.values<T>(args.partials[s].out);
    const T* const softmax_s = row.values<T>(args.partials[s].out_softmax);
    for (int64_t d = 0; d < D; ++d) {
      const auto softmax = static_cast<double>(static_cast<float>(softmax_s[d]));
      o[d] += w * (static_cast<double>(static_cast<float>(out_s[d])) + distance * softmax);
      o_softmax[d] += w * softmax;
    }
  }
  store(row.values<T>(args.out), o, D);
  if (args.out_softmax.defined()) store(row.values<T>(args.out_softmax), o_softmax, D);
  if (args.lse.defined()) *row.stat(args.lse) = static_cast<float>(weights.lse);
  if (args.t_mean.defined()) *row.stat(args.t_mean) = static_cast<float>(weights.t_mean);
}

}  // namespace

void merge(const MergeArgs& args) {
  const TensorView& out = args.out;
  const int64_t num_queries = out.size(out.rank - 3);
  const int64_t num_heads = out.size(out.rank - 2);
  const int64_t num_tokens = num_queries * (out.rank == 4 ? out.size(0) : 1);
  const int64_t tokens_per_task = std::max<int64_t>(1, kRowsPerTask / num_heads);
  const int64_t num_tasks = (num_tokens + tokens_per_task - 1) / tokens_per_task;
  core::dispatch_dtype<float, Float16, BFloat16>(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    core::parallel_for(num_tasks, [&](int64_t task) {
      RowWeights weights(args.partials.size());
      const int64_t end = std::min(num_tokens, (task + 1) * tokens_per_task);
      for (int64_t token = task * tokens_per_task; token < end; ++token)
        for (int64_t head = 0; head < num_heads; ++head)
          merge_row<T>(args,
                       {.sequence = {.idx = token / num_queries, .num_queries = num_queries},
                        .query = token % num_queries,
                        .head = head},
                       weights);
    });
  });
}

}  // namespace parallax::cpu
