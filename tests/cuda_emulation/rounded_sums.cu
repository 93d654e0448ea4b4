// The forward kernel as PLX_ROUNDED_SUMS builds it, beside the default one.
// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulation/rounded_sums.h"

#include "cuda/sm90/forward/launch.cuh"

namespace parallax::cuda::sm90 {

using RoundedSums = ForwardConfig<__nv_bfloat16, 64, true>;

const ForwardInstance kRoundedSumsInstance = {DType::kBFloat16, 64, kForwardTile<RoundedSums>,
                                              launch_forward<RoundedSums>};

}  // namespace parallax::cuda::sm90
