// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernels.h"

#if defined(PLX_X86_KERNELS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace parallax::cpu {

extern const Kernels kScalarKernels;
#ifdef PLX_X86_KERNELS
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;

namespace {

/// The processor has AMX-BF16, and Linux lets this process use the tile
/// registers, which it saves on request only.
bool may_use_amx() {
#ifdef __linux__
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

InstructionSetList usable_instruction_sets() {
  InstructionSetList list{};
  const auto add = [&list](const Kernels& floats, const Kernels& bfloat16s,
                           int64_t min_backward_keys = 0) {
    list.entries[list.count++] = {.name = bfloat16s.isa,
                                  .floats = &floats,
                                  .bfloat16s = &bfloat16s,
                                  .min_backward_keys = min_backward_keys};
  };
#ifdef PLX_X86_KERNELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw");
  constexpr int64_t kDotBackwardKeys = 2048;  // from here on 1.0 to 1.25 times as fast (Zen 5)
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  // Dot products of bfloat16 have twice the rate of fp32 multiply-adds on Zen 5 and half of it on a
  // Xeon (docs/kernels/cpu.md).
  const bool fast_bf16 = bf16 && __builtin_cpu_is("amd");
  if (bf16 && may_use_amx()) add(kAvx512Kernels, kAmxKernels);
  if (fast_bf16) add(kAvx512Kernels, kAvx512Bf16Kernels, kDotBackwardKeys);
  if (avx512) add(kAvx512Kernels, kAvx512Kernels);
  if (bf16 && !fast_bf16) add(kAvx512Kernels, kAvx512Bf16Kernels, kDotBackwardKeys);
  if (avx2) add(kAvx2Kernels, kAvx2Kernels);
#endif
  add(kScalarKernels, kScalarKernels);
  return list;
}

}  // namespace parallax::cpu
