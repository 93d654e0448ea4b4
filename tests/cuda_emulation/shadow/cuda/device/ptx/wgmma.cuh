// ptx/wgmma.cuh, emulated: each thread computes its own numbers of C, when the product is issued or
// when it is waited for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/device/ptx/shared.cuh"

namespace parallax::cuda::ptx {

inline void wgmma_fence() {}
inline void wgmma_commit() { emulation::commit_products(); }
template <int kGroups>
void wgmma_wait(const std::source_location& where = std::source_location::current()) {
  emulation::wait_products(kGroups, where);
}
template <int kSize>
void pin(float (&)[kSize]) {}

inline uint64_t operand(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32;
}
inline uint64_t advance(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}

/// Where an operand's numbers lie.
struct Operand16 {
  uint32_t address, leading, stride;

  explicit Operand16(uint64_t operand)
      : address(static_cast<uint32_t>(operand & 0x3fff) << 4),
        leading(static_cast<uint32_t>(operand >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(operand >> 32 & 0x3fff) << 4) {}
  /// Of a row and a column k of it.
  uint32_t along(int row, int k) const {
    return address + row / 8 * stride + row % 8 * 128 + k * 2;
  }
  /// Of a row k and a column.
  uint32_t across(int k, int column) const {
    return address + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2;
  }
};

template <typename Element>
float number_at(uint32_t address) {
  return static_cast<float>(load_words<Element>(address));
}

template <int N>
struct Wgmma {
  static constexpr int kDepth = 16;

  template <typename Element>
  static void shared_by_shared(float (&c)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    emulation::issue_product({.run = &add_from_shared<Element>,
                              .sums = c,
                              .rows_in_registers = nullptr,
                              .rows = a,
                              .columns = b,
                              .accumulate = accumulate});
  }

  template <typename Element>
  static void registers_by_shared(float (&c)[N / 2], const uint32_t* a, uint64_t b,
                                  bool accumulate) {
    emulation::issue_product({.run = &add_from_registers<Element>,
                              .sums = c,
                              .rows_in_registers = a,
                              .rows = 0,
                              .columns = b,
                              .accumulate = accumulate});
  }

 private:
  template <typename Element>
  static void add_from_shared(const emulation::Product& product) {
    const Operand16 rows(product.rows), columns(product.columns);
    float factors[2][kDepth];
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < kDepth; ++k)
        factors[half][k] = number_at<Element>(rows.along(row_of(half), k));
    add(product, factors,
        [&](int k, int column) { return number_at<Element>(columns.along(column, k)); });
  }

  template <typename Element>
  static void add_from_registers(const emulation::Product& product) {
    const Operand16 values(product.columns);
    const int lane = threadIdx.x % 32;
    auto& fragments = emulation::fragments(static_cast<int>(threadIdx.x / 32));
    for (int word = 0; word < 4; ++word) fragments[lane][word] = product.rows_in_registers[word];
    __syncwarp();
    float factors[2][kDepth];
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < kDepth; ++k) {
        const uint32_t pair = fragments[lane / 4 * 4 + k % 8 / 2][half + k / 8 * 2];
        const auto bits = static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16);
        Element element;
        std::memcpy(&element, &bits, sizeof bits);
        factors[half][k] = static_cast<float>(element);
      }
    __syncwarp();
    add(product, factors,
        [&](int k, int column) { return number_at<Element>(values.across(k, column)); });
  }

  static int row_of(int half) {
    return static_cast<int>(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4) + 8 * half;
  }

  template <typename NumberOfB>
  static void add(const emulation::Product& product, const float (&factors)[2][kDepth],
                  const NumberOfB& b) {
    float* const c = product.sums;
    for (int idx = 0; idx < N / 2; ++idx) {
      const int column = idx / 4 * 8 + static_cast<int>(threadIdx.x % 4) * 2 + idx % 2;
      float sum = 0.0f;
      for (int k = 0; k < kDepth; ++k) sum += factors[idx / 2 % 2][k] * b(k, column);
      c[idx] = (product.accumulate ? c[idx] : 0.0f) + sum;
    }
  }
};

}  // namespace parallax::cuda::ptx
