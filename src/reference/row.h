// The weights of one query row: what forward and backward both start from.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/problem.h"

namespace parallax::reference {

template <typename T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return static_cast<double>(static_cast<float>(value));
}

template <typename T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return static_cast<T>(static_cast<float>(value));
}

/// The element type of lse and t_mean.
template <typename T>
using Stat = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T, typename U>
double dot(const T* a, const U* b, int64_t D) {
  double sum = 0.0;
  for (int64_t d = 0; d < D; ++d) sum += to_double(a[d]) * to_double(b[d]);
  return sum;
}

/// The inputs of one sequence.
template <typename T>
struct Inputs {
  core::Rows<const T> q, r, k, v;

  Inputs(const core::Problem& problem, const core::Sequence& sequence)
      : q(core::query_rows<T>(problem.q, sequence)),
        r(core::query_rows<T>(problem.r, sequence)),
        k(core::key_rows<T>(problem, problem.k, sequence)),
        v(core::key_rows<T>(problem, problem.v, sequence)) {}
};

/// Softmax weights and covariance scores of one query over its visible keys; entry x belongs to key
/// keys.begin + x. A row without visible keys keeps the values below.
struct Row {
  core::KeyRange keys{};
  std::vector<double> p{}, t{};
  double lse = -std::numeric_limits<double>::infinity();
  double t_mean = 0.0;

  /// p (1 + t_mean - t). The difference comes first, so that one visible key has weight 1 exactly.
  double weight(size_t x) const { return p[x] * (1.0 + (t_mean - t[x])); }
};

/// s = softmax_scale q.k, p = exp(s - lse), lse = log sum exp(s), t = r.k, t_mean = sum p t.
template <typename T>
Row score_row(const core::Problem& problem, const Inputs<T>& inputs, core::KeyRange keys,
              int64_t query, int64_t head) {
  Row row{.keys = keys};
  if (keys.empty()) return row;
  const int64_t D = problem.head_dim;
  const int64_t head_kv = head / problem.group_size;
  for (int64_t key = keys.begin; key < keys.end; ++key) {
    const T* const k = inputs.k.at(key, head_kv);
    row.p.push_back(problem.softmax_scale * dot(inputs.q.at(query, head), k, D));
    row.t.push_back(dot(inputs.r.at(query, head), k, D));
  }
  const double max = *std::max_element(row.p.begin(), row.p.end());
  double sum = 0.0;
  for (double& p : row.p) sum += p = std::exp(p - max);
  for (size_t x = 0; x < row.p.size(); ++x) {
    row.p[x] /= sum;
    row.t_mean += row.p[x] * row.t[x];
  }
  row.lse = max + std::log(sum);
  return row;
}

}  // namespace parallax::reference
