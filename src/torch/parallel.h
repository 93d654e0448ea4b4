// Torch's threads for the kernel library.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace parallax::torch_ops {

/// Makes the library run its tasks on Torch's intra-op threads, on at most PLX_NUM_THREADS of them:
/// torch.set_num_threads() then holds for it too, there is one thread pool per process, and a call
/// from inside a parallel region runs on the calling thread alone.
void use_torch_threads();

}  // namespace parallax::torch_ops
