// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernels.h"

namespace parallax::cpu {

extern const Kernels kBaselineKernels;
#ifdef PLX_X86_KERNELS
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

KernelList usable_kernels() {
  KernelList list{};
#ifdef PLX_X86_KERNELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx2 && avx512) list.entries[list.count++] = &kAvx512Kernels;
  if (avx2) list.entries[list.count++] = &kAvx2Kernels;
#endif
  list.entries[list.count++] = &kBaselineKernels;
  return list;
}

}  // namespace parallax::cpu
