// An instance of the forward kernel that the library has only if PLX_ROUNDED_SUMS asks for it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/instance.h"

namespace parallax::cuda::sm90 {

/// bfloat16, head size 64.
extern const ForwardInstance kRoundedSumsInstance;

}  // namespace parallax::cuda::sm90
