// The angles of the rotary position embedding; row_ops.h applies them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>

#include "nn/mixer.h"

namespace parallax::nn {

/// Tables of the given positions (int64 [N]): angle = position * theta^(-2i / head_dim), cos and
/// sin float32 [N, head_dim / 2]. Rounded in float32 at the same places as transformers does, whose
/// checkpoints were trained with those roundings: at position 500 they already exceed 1e-5.
RotaryTables rotary_tables(const torch::Tensor& positions_N, int64_t head_dim, double theta);

}  // namespace parallax::nn
