// SPDX-License-Identifier: Apache-2.0
#include "support/checks.h"

#include <gtest/gtest.h>

#include "support/tolerance.h"

namespace parallax::testing {
namespace {

std::vector<Verdict> judge_case(const AttentionCase& attention_case, uint64_t seed,
                                int num_orders) {
  const DType dtype = attention_case.dtype;
  const AttentionInputs inputs(attention_case, seed);
  const ForwardValues truth = true_forward(inputs.problem);
  const ForwardErrors plain = plain_errors(inputs.problem, truth, dtype, num_orders);
  const ForwardValues saved = rounded(truth, dtype);
  const GradientValues gradients = true_backward(inputs.problem, truth);
  const GradientErrors plain_gradients =
      plain_errors(inputs.problem, gradients, saved, dtype, num_orders);
  std::vector<Verdict> verdicts;
  for (const auto& [label, backend] : tested_backends()) {
    const std::string context =
        attention_case.name() + ", PLX_TEST_SEED=" + std::to_string(seed) + ", " + label;
    SCOPED_TRACE(context);
    judge_forward(dtype, values_of(run_forward(*backend, inputs)), truth, plain, context, verdicts);
    judge_gradients(dtype, values_of(run_backward(*backend, inputs, saved)), gradients,
                    plain_gradients, context, verdicts);
  }
  return verdicts;
}

}  // namespace

void expect_case_conforms(const AttentionCase& attention_case, uint64_t seed) {
  expect_right([&](int num_orders) { return judge_case(attention_case, seed, num_orders); });
}

}  // namespace parallax::testing
