// SPDX-License-Identifier: Apache-2.0
#include "peaks.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace parallax::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Runs work() on all threads at once for about `seconds` and returns the sum of what the calls
/// returned, per second.
double rate(int num_threads, double seconds, const std::function<double(int thread)>& work) {
  std::vector<double> rates(static_cast<size_t>(num_threads));
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread)
    threads.emplace_back([&, thread] {
      work(thread);
      const auto start = Clock::now();
      double done = 0.0, elapsed = 0.0;
      while (elapsed < seconds) {
        done += work(thread);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rates[static_cast<size_t>(thread)] = done / elapsed;
    });
  for (std::thread& thread : threads) thread.join();
  double sum = 0.0;
  for (const double one : rates) sum += one;
  return sum;
}

constexpr int kChains = 12;  // more than latency times throughput of any core so far
constexpr int kSteps = 100'000;

/// kSteps rounds of kChains independent multiply-adds on vectors of kFloats.
template <int kFloats>
[[gnu::always_inline]] inline double multiply_add_loop() {
  typedef float Vector __attribute__((vector_size(4 * kFloats)));
  const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  // By name, not as an array: the empty assembly, which keeps every round in the loop, would put an
  // array in memory.
  Vector a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{}, k{}, l{};
  for (int step = 0; step < kSteps; ++step) {
    a = a * factor + term, b = b * factor + term, c = c * factor + term, d = d * factor + term;
    e = e * factor + term, f = f * factor + term, g = g * factor + term, h = h * factor + term;
    i = i * factor + term, j = j * factor + term, k = k * factor + term, l = l * factor + term;
    asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f));
    asm volatile("" : "+x"(g), "+x"(h), "+x"(i), "+x"(j), "+x"(k), "+x"(l));
  }
  return 2.0 * kFloats * kChains * kSteps;
}

#if defined(__x86_64__)

[[gnu::target("avx512f"), gnu::optimize("fp-contract=fast")]] double fma_avx512() {
  return multiply_add_loop<16>();
}
[[gnu::target("avx2,fma"), gnu::optimize("fp-contract=fast")]] double fma_avx2() {
  return multiply_add_loop<8>();
}

/// As multiply_add_loop(), with dot products of two bfloat16 numbers each. In assembly: it must
/// compile for machines without the instruction.
[[gnu::target("avx512f")]] double bf16_dot_products() {
  for (int step = 0; step < kSteps; ++step)
    asm volatile(
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm0\n vdpbf16ps %%zmm30, %%zmm31, %%zmm1\n"
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm2\n vdpbf16ps %%zmm30, %%zmm31, %%zmm3\n"
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm4\n vdpbf16ps %%zmm30, %%zmm31, %%zmm5\n"
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm6\n vdpbf16ps %%zmm30, %%zmm31, %%zmm7\n"
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm8\n vdpbf16ps %%zmm30, %%zmm31, %%zmm9\n"
        "vdpbf16ps %%zmm30, %%zmm31, %%zmm10\n vdpbf16ps %%zmm30, %%zmm31, %%zmm11"
        :
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11");
  return 4.0 * 16 * kChains * kSteps;
}

bool has_amx() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const bool in_cpu = (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0;  // AMX-BF16, AMX-TILE
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return in_cpu && ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

/// Six independent accumulator tiles, two operands.
double amx_products() {
  alignas(64) uint8_t config[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;  // bytes per row
    config[48 + tile] = 16;      // rows
  }
  asm volatile(
      "ldtilecfg %0\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7"
      :
      : "m"(config));
  for (int step = 0; step < kSteps / 10; ++step)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm7, %tmm0\n tdpbf16ps %tmm6, %tmm7, %tmm1\n"
        "tdpbf16ps %tmm6, %tmm7, %tmm2\n tdpbf16ps %tmm6, %tmm7, %tmm3\n"
        "tdpbf16ps %tmm6, %tmm7, %tmm4\n tdpbf16ps %tmm6, %tmm7, %tmm5");
  asm volatile("tilerelease");
  return 2.0 * 16 * 16 * 32 * 6 * (kSteps / 10);
}

bool has_bf16_dot_products() { return __builtin_cpu_supports("avx512bf16") != 0; }

double fma_best() {
  if (__builtin_cpu_supports("avx512f")) return fma_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2();
  return multiply_add_loop<4>();
}

#else

bool has_amx() { return false; }
bool has_bf16_dot_products() { return false; }
double amx_products() { return 0.0; }
double bf16_dot_products() { return 0.0; }
double fma_best() { return multiply_add_loop<4>(); }

#endif

/// Reads all of `memory` once.
double read_all(const std::vector<uint64_t>& memory) {
  uint64_t sums[16] = {};
  for (size_t idx = 0; idx + 16 <= memory.size(); idx += 16)
    for (size_t lane = 0; lane < 16; ++lane) sums[lane] += memory[idx + lane];
  for (const uint64_t& sum : sums) asm volatile("" : : "m"(sum));
  return static_cast<double>(memory.size() * sizeof(uint64_t));
}

}  // namespace

Limits measure_limits(int num_threads) {
  constexpr double kSeconds = 0.5;
  Limits limits;
  limits.fma_gflops = 1e-9 * rate(num_threads, kSeconds, [](int) { return fma_best(); });
  if (has_amx())
    limits.amx_gflops = 1e-9 * rate(num_threads, kSeconds, [](int) { return amx_products(); });
  if (has_bf16_dot_products())
    limits.bf16_dot_gflops =
        1e-9 * rate(num_threads, kSeconds, [](int) { return bf16_dot_products(); });
  constexpr size_t kBytes = size_t{1} << 28;
  std::vector<std::vector<uint64_t>> memory(static_cast<size_t>(num_threads));
  limits.read_gbytes = 1e-9 * rate(num_threads, 2 * kSeconds, [&](int thread) {
                         auto& own = memory[static_cast<size_t>(thread)];  // touched first by it
                         if (own.empty()) own.resize(kBytes / sizeof(uint64_t), 1);
                         return read_all(own);
                       });
  return limits;
}

}  // namespace parallax::bench
