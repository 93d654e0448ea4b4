// out = sum_j p (1 + t_mean - t) v, one query row at a time; forward and decode.
// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "reference/kernels.h"
#include "reference/row.h"

namespace parallax::reference {
namespace {

/// One query head of one sequence.
template <typename T>
void forward_head(const core::Problem& problem, const ForwardOutputs& outputs,
                  const core::Sequence& sequence, int64_t head) {
  const int64_t D = problem.head_dim;
  const Inputs<T> inputs(problem, sequence);
  const auto out = core::query_rows<T>(outputs.out, sequence);
  const auto out_softmax = core::query_rows<T>(outputs.out_softmax, sequence);
  const auto lse = core::stat_rows<Stat<T>>(outputs.lse, sequence);
  const auto t_mean = core::stat_rows<Stat<T>>(outputs.t_mean, sequence);
  std::vector<double> o(static_cast<size_t>(D)), o_softmax(static_cast<size_t>(D));

  for (int64_t query = 0; query < sequence.num_queries; ++query) {
    const Row row = score_row(problem, inputs, problem.visible_keys(sequence, query), query, head);
    std::fill(o.begin(), o.end(), 0.0);
    std::fill(o_softmax.begin(), o_softmax.end(), 0.0);
    for (size_t x = 0; x < row.p.size(); ++x) {
      const T* const v =
          inputs.v.at(row.keys.begin + static_cast<int64_t>(x), head / problem.group_size);
      const double p = row.p[x];
      const double w = row.weight(x);
      for (size_t d = 0; d < o.size(); ++d) {
        o[d] += w * to_double(v[d]);
        o_softmax[d] += p * to_double(v[d]);
      }
    }
    std::transform(o.begin(), o.end(), out.at(query, head), from_double<T>);
    if (out_softmax)
      std::transform(o_softmax.begin(), o_softmax.end(), out_softmax.at(query, head),
                     from_double<T>);
    if (lse) *lse.at(query, head) = static_cast<Stat<T>>(row.lse);
    if (t_mean) *t_mean.at(query, head) = static_cast<Stat<T>>(row.t_mean);
  }
}

}  // namespace

void forward(const core::Problem& problem, const ForwardOutputs& outputs) {
  core::dispatch_float(problem.q.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    core::parallel_for(problem.num_sequences() * problem.num_heads_q, [&](int64_t task) {
      const auto idx = static_cast<size_t>(task / problem.num_heads_q);
      forward_head<T>(problem, outputs, problem.sequences[idx], task % problem.num_heads_q);
    });
  });
}

}  // namespace parallax::reference
