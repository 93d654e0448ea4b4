// Partial results over disjoint sets of keys, merged:
//   w_s = exp(lse_s - lse)    t_mean = sum w_s t_mean_s    out_softmax = sum w_s out_softmax_s
//   out = sum w_s (out_s + (t_mean - t_mean_s) out_softmax_s)
// The last line is (1 + t_mean) out_softmax - E[t v], written without the large terms that cancel.
// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"
#include "reference/kernels.h"
#include "reference/row.h"

namespace parallax::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Merged outputs are laid out as one sequence per batch entry, packed ones as a single sequence.
struct Grid {
  int64_t batch, num_queries, num_heads, D;
  explicit Grid(const TensorView& out)
      : batch(out.rank == 4 ? out.size(0) : 1),
        num_queries(out.size(out.rank - 3)),
        num_heads(out.size(out.rank - 2)),
        D(out.size(out.rank - 1)) {}
};

/// One row's statistics of every partial, merged.
struct RowWeights {
  double lse = kMinusInfinity;
  double t_mean = 0.0;
  std::vector<double> weights, t_means;
};

template <typename T>
RowWeights merge_stats(std::span<const PartialState> partials, const core::Sequence& sequence,
                       int64_t query, int64_t head) {
  RowWeights row;
  double max = kMinusInfinity;
  for (const PartialState& partial : partials) {
    const auto lse = core::stat_rows<Stat<T>>(partial.lse, sequence);
    const auto t_mean = core::stat_rows<Stat<T>>(partial.t_mean, sequence);
    row.weights.push_back(static_cast<double>(*lse.at(query, head)));
    row.t_means.push_back(static_cast<double>(*t_mean.at(query, head)));
    max = std::max(max, row.weights.back());
  }
  double sum = 0.0;
  // A partial without visible keys has no weight, also where no partial has any.
  for (double& w : row.weights) sum += w = w == kMinusInfinity ? 0.0 : std::exp(w - max);
  if (sum == 0.0) return row;
  row.lse = max + std::log(sum);
  for (size_t s = 0; s < row.weights.size(); ++s) {
    row.weights[s] /= sum;
    if (row.weights[s] != 0.0) row.t_mean += row.weights[s] * row.t_means[s];
  }
  return row;
}

template <typename T>
void merge_row(const MergeArgs& args, const core::Sequence& sequence, int64_t query, int64_t head) {
  const auto D = static_cast<size_t>(Grid(args.out).D);
  const RowWeights row = merge_stats<T>(args.partials, sequence, query, head);
  std::vector<double> o(D), o_softmax(D);
  for (size_t s = 0; s < args.partials.size(); ++s) {
    if (row.weights[s] == 0.0) continue;
    const T* const out_s = core::query_rows<T>(args.partials[s].out, sequence).at(query, head);
    const T* const softmax_s =
        core::query_rows<T>(args.partials[s].out_softmax, sequence).at(query, head);
    for (size_t d = 0; d < D; ++d) {
      const double shift = (row.t_mean - row.t_means[s]) * to_double(softmax_s[d]);
      o[d] += row.weights[s] * (to_double(out_s[d]) + shift);
      o_softmax[d] += row.weights[s] * to_double(softmax_s[d]);
    }
  }
  const auto out = core::query_rows<T>(args.out, sequence);
  const auto out_softmax = core::query_rows<T>(args.out_softmax, sequence);
  const auto lse = core::stat_rows<Stat<T>>(args.lse, sequence);
  const auto t_mean = core::stat_rows<Stat<T>>(args.t_mean, sequence);
  std::transform(o.begin(), o.end(), out.at(query, head), from_double<T>);
  if (out_softmax)
    std::transform(o_softmax.begin(), o_softmax.end(), out_softmax.at(query, head), from_double<T>);
  if (lse) *lse.at(query, head) = static_cast<Stat<T>>(row.lse);
  if (t_mean) *t_mean.at(query, head) = static_cast<Stat<T>>(row.t_mean);
}

}  // namespace

void merge(const MergeArgs& args) {
  const Grid grid(args.out);
  core::dispatch_float(args.out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t idx = 0; idx < grid.batch; ++idx)
      for (int64_t query = 0; query < grid.num_queries; ++query)
        for (int64_t head = 0; head < grid.num_heads; ++head)
          merge_row<T>(args, {.idx = idx, .num_queries = grid.num_queries}, query, head);
  });
}

}  // namespace parallax::reference
