// The exact gradient of forward.cc. Everything is recomputed from q, r, k, v and d_out: the saved
// out, out_softmax, lse and t_mean are rounded to their dtypes, and a definition should not depend
// on that.
// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "reference/kernels.h"
#include "reference/row.h"

namespace parallax::reference {
namespace {

/// Sums for the keys of one key head, [Tk, D] each.
struct KeyGradients {
  int64_t D;
  std::vector<double> dk, dv;

  KeyGradients(int64_t Tk, int64_t head_dim)
      : D(head_dim), dk(static_cast<size_t>(Tk * D)), dv(static_cast<size_t>(Tk * D)) {}
  double* dk_row(int64_t key) { return dk.data() + key * D; }
  double* dv_row(int64_t key) { return dv.data() + key * D; }
};

/// The rows of one query: its inputs and its gradients before rounding.
template <typename T>
struct Query {
  const T* q;
  const T* r;
  const T* d_out;
  std::vector<double> dq, dr;
};

/// Adds what one query contributes to every gradient:
///   g = d_out.v    gbar = sum p g = d_out.out_softmax    tau = sum w g = d_out.out
///   w = p (1 + t_mean - t)    ds = w (g - gbar) + p (gbar - tau)    dt = -p (g - gbar)
template <typename T>
void backward_row(const core::Problem& problem, const Inputs<T>& inputs, const Row& row,
                  int64_t head_kv, Query<T>& query, KeyGradients& sums) {
  const int64_t D = problem.head_dim;
  const double scale = problem.softmax_scale;
  std::vector<double> g;
  double gbar = 0.0;
  double tau = 0.0;
  for (size_t x = 0; x < row.p.size(); ++x) {
    g.push_back(
        dot(query.d_out, inputs.v.at(row.keys.begin + static_cast<int64_t>(x), head_kv), D));
    gbar += row.p[x] * g[x];
    tau += row.weight(x) * g[x];
  }
  for (size_t x = 0; x < row.p.size(); ++x) {
    const int64_t key = row.keys.begin + static_cast<int64_t>(x);
    const T* const k = inputs.k.at(key, head_kv);
    const double w = row.weight(x);
    const double ds = w * (g[x] - gbar) + row.p[x] * (gbar - tau);
    const double dt = -row.p[x] * (g[x] - gbar);
    for (int64_t d = 0; d < D; ++d) {
      query.dq[static_cast<size_t>(d)] += scale * ds * to_double(k[d]);
      query.dr[static_cast<size_t>(d)] += dt * to_double(k[d]);
      sums.dk_row(key)[d] += scale * ds * to_double(query.q[d]) + dt * to_double(query.r[d]);
      sums.dv_row(key)[d] += w * to_double(query.d_out[d]);
    }
  }
}

/// One key head of one sequence, with all query heads that read it.
template <typename T>
void backward_group(const core::Problem& problem, const BackwardArgs& args,
                    const core::Sequence& sequence, int64_t head_kv) {
  const int64_t D = problem.head_dim;
  const Inputs<T> inputs(problem, sequence);
  const auto d_out = core::query_rows<T>(args.d_out, sequence);
  const auto dq = core::query_rows<T>(args.dq, sequence);
  const auto dr = core::query_rows<T>(args.dr, sequence);
  KeyGradients sums(sequence.keys.end, D);

  const int64_t first_head = head_kv * problem.group_size;
  for (int64_t head = first_head; head < first_head + problem.group_size; ++head) {
    for (int64_t idx = 0; idx < sequence.num_queries; ++idx) {
      const Row row = score_row(problem, inputs, problem.visible_keys(sequence, idx), idx, head);
      const std::vector<double> zeros(static_cast<size_t>(D));
      Query<T> query{.q = inputs.q.at(idx, head),
                     .r = inputs.r.at(idx, head),
                     .d_out = d_out.at(idx, head),
                     .dq = zeros,
                     .dr = zeros};
      backward_row(problem, inputs, row, head_kv, query, sums);
      std::transform(query.dq.begin(), query.dq.end(), dq.at(idx, head), from_double<T>);
      std::transform(query.dr.begin(), query.dr.end(), dr.at(idx, head), from_double<T>);
    }
  }

  const auto dk = core::key_rows<T>(problem, args.dk, sequence);
  const auto dv = core::key_rows<T>(problem, args.dv, sequence);
  for (int64_t key = 0; key < sequence.keys.end; ++key) {
    std::transform(sums.dk_row(key), sums.dk_row(key) + D, dk.at(key, head_kv), from_double<T>);
    std::transform(sums.dv_row(key), sums.dv_row(key) + D, dv.at(key, head_kv), from_double<T>);
  }
}

}  // namespace

void backward(const core::Problem& problem, const BackwardArgs& args) {
  core::dispatch_float(problem.q.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    core::parallel_for(problem.num_sequences() * problem.num_heads_kv, [&](int64_t task) {
      const auto idx = static_cast<size_t>(task / problem.num_heads_kv);
      backward_group<T>(problem, args, problem.sequences[idx], task % problem.num_heads_kv);
    });
  });
}

}  // namespace parallax::reference
