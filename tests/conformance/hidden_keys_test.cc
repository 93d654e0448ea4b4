// What a query does not see does not reach its results, nor it the gradients of what it does not
// see: not a NaN, not an infinity, not one bit of a huge number. And what it sees does show.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "support/decode_case.h"

namespace parallax::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// q.k, r.k and d_out.v of kHuge and a normal number overflow float32. In fp16 it is an infinity.
constexpr double kHuge = 3e38;
constexpr double kBadValues[] = {kNan, kHuge};

constexpr int64_t kKeys = 150, kHeads = 2, kD = 20;

struct Hidden {
  AttentionCase attention_case;
  int64_t bad_key, bad_query;
};

int64_t num_queries(const Hidden& hidden) { return hidden.attention_case.Tq; }

bool sees(const Hidden& hidden, int64_t query, int64_t key) {
  const int64_t newest = query + kKeys - num_queries(hidden);
  return key <= newest && key > newest - hidden.attention_case.window.value_or(kKeys);
}

/// Keys and queries at the edges and in the middle of tiles; windows that hide older keys too.
std::vector<Hidden> hidden_cases() {
  std::vector<Hidden> cases;
  const auto add = [&](DType dtype, std::optional<int64_t> window, int64_t Tq, int64_t bad_key,
                       int64_t bad_query) {
    cases.push_back({.attention_case = {.Tq = Tq,
                                        .Tk = kKeys,
                                        .Hq = kHeads,
                                        .Hkv = 1,
                                        .D = kD,
                                        .dtype = dtype,
                                        .window = window},
                     .bad_key = bad_key,
                     .bad_query = bad_query});
  };
  for (const std::optional<int64_t> window : {std::optional<int64_t>{}, {4}, {70}}) {
    add(DType::kFloat32, window, kKeys, 64, 63);
    add(DType::kFloat32, window, kKeys, 100, 0);
    add(DType::kFloat32, window, 9, 146, 3);
  }
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    add(dtype, 4, kKeys, 0, 100);
  return cases;
}

/// One odd and one even coordinate of a row of `count` numbers.
void spoil(HostTensor& tensor, int64_t row, int64_t count, double value) {
  tensor.set(row * count + count / 2, value);
  tensor.set(row * count + count - 1, value);
}

using RowFilter = std::function<bool(int64_t row)>;

/// The elements of the rows that `filter` picks have the same bits; a row is `count` numbers.
void expect_same(const char* tensor, const HostTensor& a, const HostTensor& b, int64_t count,
                 const RowFilter& filter) {
  for (int64_t idx = 0; idx < a.num_elements(); ++idx) {
    if (!filter(idx / count)) continue;
    ASSERT_EQ(a.get(idx), b.get(idx)) << tensor << ", row " << idx / count;
  }
}

/// Calls body for each case, bad value and backend. Returns after the first failure.
void for_each(const std::function<void(const Hidden&, double, const Backend&)>& body) {
  for (const Hidden& hidden : hidden_cases())
    for (const double bad : kBadValues)
      for (const auto& [label, backend] : tested_backends()) {
        SCOPED_TRACE(hidden.attention_case.name() + ", key " + std::to_string(hidden.bad_key) +
                     ", query " + std::to_string(hidden.bad_query) + ", " + std::to_string(bad) +
                     ", " + label);
        body(hidden, bad, *backend);
        if (::testing::Test::HasFatalFailure()) return;
      }
}

TEST(HiddenKeys, DoNotChangeABitOfTheForward) {
  for_each([](const Hidden& hidden, double bad, const Backend& backend) {
    const AttentionInputs inputs(hidden.attention_case, 3);
    AttentionInputs spoilt = inputs;
    spoil(spoilt.k, hidden.bad_key, kD, bad);
    spoil(spoilt.v, hidden.bad_key, kD, bad);
    const ForwardTensors before = run_forward(backend, inputs);
    const ForwardTensors after = run_forward(backend, spoilt);
    const auto blind = [&](int64_t query) { return !sees(hidden, query, hidden.bad_key); };
    const auto blind_stat = [&](int64_t idx) { return blind(idx % num_queries(hidden)); };
    expect_same("out", before.out, after.out, kHeads * kD, blind);
    expect_same("out_softmax", before.out_softmax, after.out_softmax, kHeads * kD, blind);
    expect_same("lse", before.lse, after.lse, 1, blind_stat);
    expect_same("t_mean", before.t_mean, after.t_mean, 1, blind_stat);
    for (int64_t query = 0; query < num_queries(hidden) && std::isnan(bad); ++query)
      ASSERT_NE(blind(query), std::isnan(after.out.get(query * kHeads * kD))) << query;
  });
}

/// The saved tensors are those of the unspoilt forward, so that a query that sees the spoilt key is
/// right about all others.
TEST(HiddenKeys, DoNotChangeABitOfTheGradients) {
  for_each([](const Hidden& hidden, double bad, const Backend& backend) {
    const AttentionInputs inputs(hidden.attention_case, 4);
    AttentionInputs spoilt = inputs;
    spoil(spoilt.k, hidden.bad_key, kD, bad);
    spoil(spoilt.v, hidden.bad_key, kD, bad);
    const ForwardValues saved = values_of(run_forward(backend, inputs));
    const GradientTensors before = run_backward(backend, inputs, saved);
    const GradientTensors after = run_backward(backend, spoilt, saved);
    const auto blind = [&](int64_t query) { return !sees(hidden, query, hidden.bad_key); };
    const auto other = [&](int64_t key) {  // no query sees both
      for (int64_t query = 0; query < num_queries(hidden); ++query)
        if (sees(hidden, query, key) && !blind(query)) return false;
      return true;
    };
    expect_same("dq", before.dq, after.dq, kHeads * kD, blind);
    expect_same("dr", before.dr, after.dr, kHeads * kD, blind);
    expect_same("dk", before.dk, after.dk, kD, other);
    expect_same("dv", before.dv, after.dv, kD, other);
  });
}

/// One tensor of one query after the other, and last what the forward saved of it.
TEST(HiddenKeys, GetNothingFromQueriesThatDoNotSeeThem) {
  for_each([](const Hidden& hidden, double bad, const Backend& backend) {
    const AttentionInputs inputs(hidden.attention_case, 5);
    const ForwardValues saved = values_of(run_forward(backend, inputs));
    const GradientTensors before = run_backward(backend, inputs, saved);
    const auto other_query = [&](int64_t query) { return query != hidden.bad_query; };
    const auto unseen = [&](int64_t key) { return !sees(hidden, hidden.bad_query, key); };
    const auto expect_unchanged = [&](const AttentionInputs& spoilt, const ForwardValues& forward) {
      const GradientTensors after = run_backward(backend, spoilt, forward);
      expect_same("dq", before.dq, after.dq, kHeads * kD, other_query);
      expect_same("dr", before.dr, after.dr, kHeads * kD, other_query);
      expect_same("dk", before.dk, after.dk, kD, unseen);
      expect_same("dv", before.dv, after.dv, kD, unseen);
    };
    for (HostTensor AttentionInputs::* tensor :
         {&AttentionInputs::q, &AttentionInputs::r, &AttentionInputs::d_out}) {
      AttentionInputs spoilt = inputs;
      spoil(spoilt.*tensor, hidden.bad_query, kHeads * kD, bad);
      expect_unchanged(spoilt, saved);
    }
    ForwardValues spoilt = saved;
    const auto stat = static_cast<size_t>(hidden.bad_query * kHeads);
    spoilt.out[stat * kD] = spoilt.out_softmax[stat * kD] = bad;
    spoilt.lse[stat] = spoilt.t_mean[stat] = bad;
    expect_unchanged(inputs, spoilt);
  });
}

constexpr size_t kNanRow = 37;  // query 18, head 1

/// That row, and no other, has NaN in every result: out, what is saved, and dq.
void expect_one_row_of_nans(const AttentionInputs& inputs) {
  const auto D = static_cast<size_t>(inputs.description.D);
  for (const auto& [label, backend] : tested_backends()) {
    const ForwardValues values = values_of(run_forward(*backend, inputs));
    const GradientTensors gradients = run_backward(*backend, inputs, values);
    for (size_t row = 0; row < values.lse.size(); ++row) {
      SCOPED_TRACE(inputs.description.name() + ", " + label + ", row " + std::to_string(row));
      const bool expected = row == kNanRow;
      EXPECT_EQ(std::isnan(values.out[row * D]), expected);
      EXPECT_EQ(std::isnan(values.out_softmax[row * D]), expected);
      EXPECT_EQ(std::isnan(values.lse[row]), expected);
      EXPECT_EQ(std::isnan(values.t_mean[row]), expected);
      EXPECT_EQ(std::isnan(gradients.dq.get(static_cast<int64_t>(row * D))), expected);
    }
  }
}

/// A row whose scores are all -infinity has no weights: 0/0, not "sees no key". Nor is a row of
/// NaNs one: merge_states() would leave it out, and the backward pass give it no gradient.
TEST(RowsWithoutWeights, GiveNan) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (const int64_t D : {8, 64})
      for (const double bad : {-kInfinity, kNan}) {
        AttentionInputs inputs({.Tq = 70, .Hq = 2, .D = D, .dtype = dtype}, 6);
        for (int64_t idx = 0; idx < inputs.k.num_elements(); ++idx) inputs.k.set(idx, 1.0);
        inputs.q.set(static_cast<int64_t>(kNanRow) * D, bad);
        expect_one_row_of_nans(inputs);
      }
}

/// Scores of -1e60: -infinity in float32, and all the same in float64.
TEST(RowsWithoutWeights, AnOverflowIsNotSilentInDecode) {
  for (const int64_t length : {5, 1300}) {  // in one piece and in several
    DecodeInputs inputs({.sequences = {{1, length}}, .D = 8}, 7);
    for (int64_t idx = 0; idx < 8; ++idx) inputs.q.set(idx, -1e30);
    for (int64_t idx = 0; idx < length * 8; ++idx) {
      inputs.k_cache.set(idx, 1e30);
      inputs.v_cache.set(idx, 1.0);
    }
    for (int64_t idx = 0; idx < 8; ++idx) inputs.r.set(idx, 0.0);
    for (const auto& [label, backend] : tested_backends()) {
      const double out = run_decode(*backend, inputs).out.get(0);
      EXPECT_TRUE(std::isnan(out) || std::abs(out - 1.0) < 1e-6) << label << ": " << out;
    }
  }
}

}  // namespace
}  // namespace parallax::testing
