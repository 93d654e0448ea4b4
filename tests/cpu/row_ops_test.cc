// RMSNorm, rotary embedding and SwiGLU on the CPU's threads. Whether they are right is tested in
// tests/conformance.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "core/thread_pool.h"
#include "parallax/parallel.h"
#include "support/cpu_backends.h"
#include "support/row_case.h"

namespace parallax::testing {
namespace {

TEST(RowOps, OneTwoAndThreeThreadsGiveTheSameBits) {
  const RowCase norm{.sizes = {4, 130, 3, 64}, .rotate = true, .dtype = DType::kBFloat16};
  const RowCase glu{.sizes = {300, 384}};
  const NormRopeInputs inputs = make_norm_rope_inputs(norm, 3);
  const SwigluInputs gates = make_swiglu_inputs(glu, 3);
  for (const TestedRowOps& ops : cpu_row_ops()) {
    std::vector<NormRopeOutputs> norms;
    std::vector<SwigluOutputs> glus;
    for (const int count : {1, 2, 3}) {
      core::ThreadPool pool(count);
      set_parallel_for([&](int64_t num_tasks, const std::function<void(int64_t)>& body) {
        EXPECT_GE(num_tasks, 3);  // else nothing is compared here
        pool.run(num_tasks, body);
      });
      norms.push_back(run_norm_rope(ops, norm, inputs));
      glus.push_back(run_swiglu(ops, glu, gates));
      set_parallel_for({});
      EXPECT_TRUE(norms[0].y.same_bits(norms.back().y));
      EXPECT_TRUE(norms[0].dx.same_bits(norms.back().dx));
      EXPECT_TRUE(norms[0].d_gain.same_bits(norms.back().d_gain));
      EXPECT_TRUE(glus[0].y.same_bits(glus.back().y));
      EXPECT_TRUE(glus[0].d_gate.same_bits(glus.back().d_gate));
      EXPECT_TRUE(glus[0].d_up.same_bits(glus.back().d_up));
    }
  }
}

}  // namespace
}  // namespace parallax::testing
