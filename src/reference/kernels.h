// The four computations of the reference. docs/math.md has the equations.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/problem.h"

namespace parallax::reference {

struct ForwardOutputs {
  TensorView out{}, out_softmax{}, lse{}, t_mean{};
};

/// Forward and decode: a cache is only another place for the keys.
void forward(const core::Problem& problem, const ForwardOutputs& outputs);
void backward(const core::Problem& problem, const BackwardArgs& args);
void merge(const MergeArgs& args);

}  // namespace parallax::reference
