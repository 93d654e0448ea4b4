// Parallax attention in one page: 6 tokens, 2 query heads that share one key head, causal.
// Checks the last token of head 0 against out = E_p[v] - Cov_p(v, k) r, computed from the
// definition.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "parallax/parallax.h"

namespace {

constexpr int64_t T = 6, Hq = 2, Hkv = 1, D = 4;

std::vector<float> random_values(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

int main() try {
  std::vector<float> q = random_values(T * Hq * D, 1), r = random_values(T * Hq * D, 2);
  std::vector<float> k = random_values(T * Hkv * D, 3), v = random_values(T * Hkv * D, 4);
  std::vector<float> out(q.size()), lse(Hq * T);

  const parallax::ForwardArgs args{.q = parallax::make_view(q.data(), {1, T, Hq, D}),
                                   .r = parallax::make_view(r.data(), {1, T, Hq, D}),
                                   .k = parallax::make_view(k.data(), {1, T, Hkv, D}),
                                   .v = parallax::make_view(v.data(), {1, T, Hkv, D}),
                                   .out = parallax::make_view(out.data(), {1, T, Hq, D}),
                                   .lse = parallax::make_view(lse.data(), {1, Hq, T})};
  parallax::attention_forward(args);
  std::printf("backend %s\n", std::string(parallax::find_backend(args).name()).c_str());

  // The last token sees every key: p_j = exp(q.k_j / sqrt(D) - lse).
  const size_t row = (T - 1) * Hq * D;
  double p[T], mean_k[D] = {}, mean_v[D] = {}, worst = 0.0;
  for (size_t j = 0; j < T; ++j) {
    double score = 0.0;
    for (size_t d = 0; d < D; ++d) score += q[row + d] * k[j * D + d] / std::sqrt(double(D));
    p[j] = std::exp(score - lse[T - 1]);
    for (size_t d = 0; d < D; ++d) mean_k[d] += p[j] * k[j * D + d];
    for (size_t d = 0; d < D; ++d) mean_v[d] += p[j] * v[j * D + d];
  }
  for (size_t a = 0; a < D; ++a) {
    double expected = mean_v[a];
    for (size_t b = 0; b < D; ++b)
      for (size_t j = 0; j < T; ++j)
        expected -= p[j] * (v[j * D + a] - mean_v[a]) * (k[j * D + b] - mean_k[b]) * r[row + b];
    std::printf("out %8.5f   E[v] - Cov(v, k) r %8.5f\n", out[row + a], expected);
    worst = std::max(worst, std::abs(out[row + a] - expected));
  }
  std::printf("largest difference %.1e\n", worst);
  return worst < 1e-5 ? 0 : 1;  // float32 values of order 1 to 10
} catch (const parallax::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
