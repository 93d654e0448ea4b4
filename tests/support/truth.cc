// SPDX-License-Identifier: Apache-2.0
#include "support/truth.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "reference/backend.h"
#include "support/host_tensor.h"

namespace parallax::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

HostTensor doubles(const std::vector<double>& values, std::vector<int64_t> sizes) {
  return HostTensor::of(DType::kFloat64, std::move(sizes), values);
}

HostTensor cu_seqlens(const PackedProblem& problem, int64_t SequenceLengths::* length) {
  std::vector<int32_t> starts{0};
  for (const SequenceLengths& sequence : problem.sequences)
    starts.push_back(starts.back() + static_cast<int32_t>(sequence.*length));
  const auto count = static_cast<int64_t>(starts.size());
  return HostTensor::ints(starts, {count});
}

/// The problem as float64 tensors of a packed call.
struct DoubleInputs {
  HostTensor q, r, k, v, cu_q, cu_k;
  std::vector<int64_t> q_sizes, k_sizes, stat_sizes;

  explicit DoubleInputs(const PackedProblem& problem)
      : cu_q(cu_seqlens(problem, &SequenceLengths::num_queries)),
        cu_k(cu_seqlens(problem, &SequenceLengths::num_keys)),
        q_sizes{problem.total_queries(), problem.num_heads_q, problem.head_dim},
        k_sizes{problem.total_keys(), problem.num_heads_kv, problem.head_dim},
        stat_sizes{problem.num_heads_q, problem.total_queries()} {
    q = doubles(problem.q, q_sizes);
    r = doubles(problem.r, q_sizes);
    k = doubles(problem.k, k_sizes);
    v = doubles(problem.v, k_sizes);
  }
};

/// [rows, columns] -> [columns, rows].
std::vector<double> transposed(const std::vector<double>& values, int64_t rows, int64_t columns) {
  std::vector<double> result(values.size());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      result[static_cast<size_t>(column * rows + row)] =
          values[static_cast<size_t>(row * columns + column)];
  return result;
}

/// One order of the plain loop's operations. Orders differ in rounding only.
struct Order {
  enum class Direction : uint8_t { kForward, kBackward, kShuffled };

  std::vector<size_t> dims;                   // in which the terms of a sum over D are added
  Direction direction = Direction::kForward;  // of the rows, and of each row's keys
  bool scale_first = false;                   // (scale q) . k, not scale (q . k)
  bool regrouped = false;                     // 1 + (t_mean - t), and p outside the brackets
  size_t centre_keys = 0;                     // t less its mean over so many first keys, if any
  bool fused = false;                         // sums add products that are not rounded
  uint64_t seed = 0;

  template <typename Element>
  void arrange(std::vector<Element>& elements) const {
    if (direction == Direction::kBackward) std::reverse(elements.begin(), elements.end());
    if (direction != Direction::kShuffled) return;
    std::mt19937_64 random(seed);
    std::shuffle(elements.begin(), elements.end(), random);
  }
};

/// Order 0 is the textbook's, 1 the same as a compiler fuses it, 2 goes from the last to the first,
/// 3 takes even dimensions before odd ones; the others are shuffled. Half of them fuse: where D is
/// so small that a sum has few orders, kernels round as only the fused ones do. Every third centres
/// t, and one in six by a single key: a window may begin with the last key of a kernel's tile.
Order make_order(int idx, size_t head_dim) {
  Order order{.dims = std::vector<size_t>(head_dim), .seed = static_cast<uint64_t>(idx)};
  std::iota(order.dims.begin(), order.dims.end(), size_t{0});
  if (idx == 2) order.direction = Order::Direction::kBackward;
  if (idx >= 4) order.direction = Order::Direction::kShuffled;
  if (idx == 3)
    std::stable_partition(order.dims.begin(), order.dims.end(),
                          [](size_t dim) { return dim % 2 == 0; });
  else
    order.arrange(order.dims);
  order.fused = idx % 2 == 1;
  order.scale_first = idx / 2 % 2 == 1;
  order.regrouped = idx / 4 % 2 == 1 || idx == 2;
  if (idx % 3 == 2) order.centre_keys = idx % 2 == 0 ? 16 : 1;
  return order;
}

/// One (query, head) row of the plain loop: its visible keys and what both passes need.
struct PlainRow {
  size_t query = 0;  // offset of its D numbers in q
  size_t stat = 0;   // its entry in lse
  int64_t key_begin = 0, key_end = 0;
  int64_t head_kv = 0;
};

/// The tensors inside have their D numbers in the order's order, so that every sum over D is one
/// plain loop; results come back in the caller's.
class PlainLoop {
 public:
  PlainLoop(const PackedProblem& problem, DType dtype, int order_idx)
      : problem_(problem),
        dtype_(dtype),
        D_(static_cast<size_t>(problem.head_dim)),
        order_(make_order(order_idx, D_)),
        scale_(static_cast<float>(problem.scale())),
        q_(reordered(problem.q)),
        r_(reordered(problem.r)),
        k_(reordered(problem.k)),
        v_(reordered(problem.v)) {}

  ForwardValues forward() const;
  GradientValues backward(const ForwardValues& saved) const;

 private:
  std::vector<PlainRow> rows() const;
  std::vector<size_t> key_offsets(const PlainRow& row) const;
  float score(const PlainRow& row, size_t key) const;
  void forward_row(const PlainRow& row, ForwardValues& result) const;

  std::vector<float> reordered(const std::vector<double>& values) const {
    std::vector<float> result(values.size());
    for (size_t row = 0; row < values.size(); row += D_)
      for (size_t d = 0; d < D_; ++d)
        result[row + d] = static_cast<float>(values[row + order_.dims[d]]);
    return result;
  }

  std::vector<double> restored(const std::vector<float>& values) const {
    std::vector<double> result(values.size());
    for (size_t row = 0; row < values.size(); row += D_)
      for (size_t d = 0; d < D_; ++d)
        result[row + order_.dims[d]] = static_cast<double>(round(values[row + d]));
    return result;
  }

  /// sum += a b. Two floats have an exact product in float64, so that its sum rounds like that of a
  /// fused multiply-add.
  void add_product(float& sum, float a, float b) const {
    sum = order_.fused ? static_cast<float>(sum + double{a} * double{b}) : sum + a * b;
  }

  float dot(const std::vector<float>& a, size_t a_offset, const std::vector<float>& b,
            size_t b_offset) const {
    float sum = 0.0f;
    for (size_t d = 0; d < D_; ++d) add_product(sum, a[a_offset + d], b[b_offset + d]);
    return sum;
  }

  float round(float value) const { return static_cast<float>(testing::rounded(dtype_, value)); }

  const PackedProblem& problem_;
  DType dtype_;
  size_t D_;
  Order order_;
  float scale_;
  std::vector<float> q_, r_, k_, v_;
};

std::vector<PlainRow> PlainLoop::rows() const {
  std::vector<PlainRow> result;
  int64_t query_start = 0, key_start = 0;
  for (const auto& [num_queries, num_keys] : problem_.sequences) {
    for (int64_t i = 0; i < num_queries; ++i) {
      int64_t begin = 0, end = num_keys;
      if (problem_.options.mask == Mask::kCausal) {
        end = std::max<int64_t>(0, i + num_keys - num_queries + 1);
        if (problem_.options.window && *problem_.options.window < end)
          begin = end - *problem_.options.window;
      }
      for (int64_t h = 0; h < problem_.num_heads_q; ++h) {
        const auto stat = static_cast<size_t>((query_start + i) * problem_.num_heads_q + h);
        result.push_back({.query = stat * D_,
                          .stat = stat,
                          .key_begin = key_start + begin,
                          .key_end = key_start + end,
                          .head_kv = h / (problem_.num_heads_q / problem_.num_heads_kv)});
      }
    }
    query_start += num_queries;
    key_start += num_keys;
  }
  order_.arrange(result);
  return result;
}

std::vector<size_t> PlainLoop::key_offsets(const PlainRow& row) const {
  std::vector<size_t> offsets;
  for (int64_t key = row.key_begin; key < row.key_end; ++key)
    offsets.push_back(static_cast<size_t>(key * problem_.num_heads_kv + row.head_kv) * D_);
  order_.arrange(offsets);
  return offsets;
}

/// scale q.k
float PlainLoop::score(const PlainRow& row, size_t key) const {
  if (!order_.scale_first) return scale_ * dot(q_, row.query, k_, key);
  float sum = 0.0f;
  for (size_t d = 0; d < D_; ++d) add_product(sum, scale_ * q_[row.query + d], k_[key + d]);
  return sum;
}

/// The weighted mean of t over the first keys: what kernels take for the centre (docs/math.md).
float mean_of_first(size_t num_keys, const std::vector<float>& s, const std::vector<float>& t) {
  const size_t count = std::min(num_keys, s.size());
  const float max = *std::max_element(s.begin(), s.begin() + static_cast<int64_t>(count));
  float weight = 0.0f, sum = 0.0f;
  for (size_t x = 0; x < count; ++x) {
    weight += std::exp(s[x] - max);
    sum += std::exp(s[x] - max) * t[x];
  }
  return sum / weight;
}

void PlainLoop::forward_row(const PlainRow& row, ForwardValues& result) const {
  const std::vector<size_t> keys = key_offsets(row);
  result.lse[row.stat] = -std::numeric_limits<double>::infinity();
  if (keys.empty()) return;
  std::vector<float> s, t;
  for (const size_t key : keys) {
    s.push_back(score(row, key));
    t.push_back(dot(r_, row.query, k_, key));
  }
  const float max = *std::max_element(s.begin(), s.end());
  const float centre = order_.centre_keys > 0 ? mean_of_first(order_.centre_keys, s, t) : 0.0f;
  for (float& value : t) value -= centre;
  float weight = 0.0f, t_sum = 0.0f;
  std::vector<float> o1(D_), o2(D_);
  for (size_t x = 0; x < s.size(); ++x) {
    const float p = std::exp(s[x] - max);
    weight += p;
    add_product(t_sum, p, t[x]);
    const float p_rounded = round(p);
    const float pt_rounded = round(p * t[x]);
    for (size_t d = 0; d < D_; ++d) {
      add_product(o1[d], p_rounded, v_[keys[x] + d]);
      add_product(o2[d], pt_rounded, v_[keys[x] + d]);
    }
  }
  const float t_mean = t_sum / weight;
  result.lse[row.stat] = max + std::log(weight);
  result.t_mean[row.stat] = centre + t_mean;
  for (size_t d = 0; d < D_; ++d) {
    const size_t at = row.query + order_.dims[d];
    result.out_softmax[at] = round(o1[d] / weight);
    result.out[at] = round(o1[d] / weight * (1.0f + t_mean) - o2[d] / weight);
  }
}

ForwardValues PlainLoop::forward() const {
  ForwardValues result;
  result.out.resize(q_.size());
  result.out_softmax.resize(q_.size());
  result.lse.resize(q_.size() / D_);
  result.t_mean.resize(q_.size() / D_);
  for (const PlainRow& row : rows()) forward_row(row, result);
  return result;
}

GradientValues PlainLoop::backward(const ForwardValues& saved) const {
  const std::vector<float> d_out = reordered(problem_.d_out), out = reordered(saved.out);
  const std::vector<float> out_softmax = reordered(saved.out_softmax);
  std::vector<float> dq(q_.size()), dr(q_.size()), dk(k_.size()), dv(k_.size());
  for (const PlainRow& row : rows()) {
    const auto lse = static_cast<float>(saved.lse[row.stat]);
    const auto t_mean = static_cast<float>(saved.t_mean[row.stat]);
    const float g_mean = dot(d_out, row.query, out_softmax, row.query);
    const float tau = dot(d_out, row.query, out, row.query);
    for (const size_t key : key_offsets(row)) {
      const float p = std::exp(score(row, key) - lse);
      const float t = dot(r_, row.query, k_, key);
      const float g = dot(d_out, row.query, v_, key);
      const bool regrouped = order_.regrouped;
      const float a = regrouped ? 1.0f + (t_mean - t) : 1.0f + t_mean - t;
      const float gradient = regrouped ? p * (a * (g - g_mean) + (g_mean - tau))
                                       : p * a * (g - g_mean) + p * (g_mean - tau);
      const float ds = round(scale_ * gradient);
      const float dt = round(-p * (g - g_mean));
      const float w = round(p * a);
      for (size_t d = 0; d < D_; ++d) {
        add_product(dq[row.query + d], ds, k_[key + d]);
        add_product(dr[row.query + d], dt, k_[key + d]);
        add_product(dk[key + d], ds, q_[row.query + d]);
        add_product(dk[key + d], dt, r_[row.query + d]);
        add_product(dv[key + d], w, d_out[row.query + d]);
      }
    }
  }
  return {.dq = restored(dq), .dr = restored(dr), .dk = restored(dk), .dv = restored(dv)};
}

void raise(Errors& errors, const Errors& other) {
  errors.max = std::max(errors.max, other.max);
  errors.rms = std::max(errors.rms, other.rms);
}

}  // namespace

int64_t PackedProblem::total_queries() const {
  int64_t total = 0;
  for (const SequenceLengths& sequence : sequences) total += sequence.num_queries;
  return total;
}

int64_t PackedProblem::total_keys() const {
  int64_t total = 0;
  for (const SequenceLengths& sequence : sequences) total += sequence.num_keys;
  return total;
}

double PackedProblem::scale() const {
  return options.softmax_scale ? static_cast<double>(*options.softmax_scale)
                               : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

ForwardValues true_forward(const PackedProblem& problem) {
  const DoubleInputs in(problem);
  HostTensor out(DType::kFloat64, in.q_sizes), out_softmax(DType::kFloat64, in.q_sizes);
  HostTensor lse(DType::kFloat64, in.stat_sizes), t_mean(DType::kFloat64, in.stat_sizes);
  reference::backend().forward({.q = in.q.view(),
                                .r = in.r.view(),
                                .k = in.k.view(),
                                .v = in.v.view(),
                                .cu_seqlens_q = in.cu_q.view(),
                                .cu_seqlens_k = in.cu_k.view(),
                                .options = problem.options,
                                .out = out.view(),
                                .out_softmax = out_softmax.view(),
                                .lse = lse.view(),
                                .t_mean = t_mean.view()});
  const int64_t heads = problem.num_heads_q, total = problem.total_queries();
  return {.out = out.values(),
          .out_softmax = out_softmax.values(),
          .lse = transposed(lse.values(), heads, total),
          .t_mean = transposed(t_mean.values(), heads, total)};
}

GradientValues true_backward(const PackedProblem& problem, const ForwardValues& forward) {
  const DoubleInputs in(problem);
  const int64_t heads = problem.num_heads_q, total = problem.total_queries();
  const HostTensor d_out = doubles(problem.d_out, in.q_sizes);
  const HostTensor out = doubles(forward.out, in.q_sizes);
  const HostTensor out_softmax = doubles(forward.out_softmax, in.q_sizes);
  const HostTensor lse = doubles(transposed(forward.lse, total, heads), in.stat_sizes);
  const HostTensor t_mean = doubles(transposed(forward.t_mean, total, heads), in.stat_sizes);
  HostTensor dq(DType::kFloat64, in.q_sizes), dr(DType::kFloat64, in.q_sizes);
  HostTensor dk(DType::kFloat64, in.k_sizes), dv(DType::kFloat64, in.k_sizes);
  reference::backend().backward({.d_out = d_out.view(),
                                 .q = in.q.view(),
                                 .r = in.r.view(),
                                 .k = in.k.view(),
                                 .v = in.v.view(),
                                 .out = out.view(),
                                 .out_softmax = out_softmax.view(),
                                 .lse = lse.view(),
                                 .t_mean = t_mean.view(),
                                 .cu_seqlens_q = in.cu_q.view(),
                                 .cu_seqlens_k = in.cu_k.view(),
                                 .options = problem.options,
                                 .dq = dq.view(),
                                 .dr = dr.view(),
                                 .dk = dk.view(),
                                 .dv = dv.view()});
  return {.dq = dq.values(), .dr = dr.values(), .dk = dk.values(), .dv = dv.values()};
}

double distance(double value, double truth) {
  if (value == truth) return 0.0;
  const double difference = std::abs(value - truth);
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

Errors errors_of(const std::vector<double>& values, const std::vector<double>& truth) {
  Errors errors;
  double sum = 0.0;
  for (size_t idx = 0; idx < truth.size(); ++idx) {
    const double error = distance(values[idx], truth[idx]);
    sum += error * error;
    errors.max = std::max(errors.max, error);
  }
  if (!truth.empty()) errors.rms = std::sqrt(sum / static_cast<double>(truth.size()));
  return errors;
}

ForwardErrors plain_errors(const PackedProblem& problem, const ForwardValues& truth, DType dtype,
                           int num_orders) {
  ForwardErrors errors;
  for (int order_idx = 0; order_idx < num_orders; ++order_idx) {
    const ForwardValues values = PlainLoop(problem, dtype, order_idx).forward();
    raise(errors.out, errors_of(values.out, truth.out));
    raise(errors.out_softmax, errors_of(values.out_softmax, truth.out_softmax));
    raise(errors.lse, errors_of(values.lse, truth.lse));
    raise(errors.t_mean, errors_of(values.t_mean, truth.t_mean));
  }
  return errors;
}

GradientErrors plain_errors(const PackedProblem& problem, const GradientValues& truth,
                            const ForwardValues& saved, DType dtype, int num_orders) {
  GradientErrors errors;
  for (int order_idx = 0; order_idx < num_orders; ++order_idx) {
    const GradientValues values = PlainLoop(problem, dtype, order_idx).backward(saved);
    raise(errors.dq, errors_of(values.dq, truth.dq));
    raise(errors.dr, errors_of(values.dr, truth.dr));
    raise(errors.dk, errors_of(values.dk, truth.dk));
    raise(errors.dv, errors_of(values.dv, truth.dv));
  }
  return errors;
}

ForwardValues rounded(const ForwardValues& values, DType dtype) {
  ForwardValues result = values;
  for (double& value : result.out) value = rounded(dtype, value);
  for (double& value : result.out_softmax) value = rounded(dtype, value);
  for (double& value : result.lse) value = rounded(DType::kFloat32, value);
  for (double& value : result.t_mean) value = rounded(DType::kFloat32, value);
  return result;
}

}  // namespace parallax::testing
