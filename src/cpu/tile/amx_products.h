// Products of bfloat16 tiles on Intel AMX-BF16. With PLX_EMULATE_AMX the eight tile registers are
// memory, so that the kernels run, slowly, on any machine; the products have the unit's bits but
// for subnormal numbers, which it takes for 0.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_operands.h"

namespace parallax::cpu {
namespace {

#ifdef PLX_EMULATE_AMX

/// The registers of a thread.
struct TileRegisters {
  alignas(64) float words[8][16][16];
};
thread_local TileRegisters tile_registers;

struct TileSession {
  TileSession() {}  // not trivial, so that a session may be an unused name here too
};

template <int kTile>
PLX_INLINE void tile_zero() {
  std::memset(tile_registers.words[kTile], 0, sizeof tile_registers.words[kTile]);
}

template <int kTile>
PLX_INLINE void tile_load(const void* source, int64_t stride_bytes) {
  for (int row = 0; row < kTileRows; ++row)
    std::memcpy(tile_registers.words[kTile][row],
                static_cast<const char*>(source) + row * stride_bytes, 64);
}

template <int kTile>
PLX_INLINE void tile_store(void* target, int64_t stride_bytes) {
  for (int row = 0; row < kTileRows; ++row)
    std::memcpy(static_cast<char*>(target) + row * stride_bytes, tile_registers.words[kTile][row],
                64);
}

/// As the manual says: the even and the odd products of a row are summed apart, then added.
template <int kC, int kA, int kB>
static void tile_product() {
  const auto low = [](float pair) { return float_of_bits(bits_of_float(pair) << 16); };
  const auto high = [](float pair) { return float_of_bits(bits_of_float(pair) & 0xffff0000u); };
  for (int m = 0; m < kTileRows; ++m) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < 16; ++k) {
      const float a = tile_registers.words[kA][m][k];
      const float* const b = tile_registers.words[kB][k];
      for (int n = 0; n < 16; ++n) {
        even[n] += low(a) * low(b[n]);
        odd[n] += high(a) * high(b[n]);
      }
    }
    for (int n = 0; n < 16; ++n) tile_registers.words[kC][m][n] += even[n] + odd[n];
  }
}

#else

/// Eight tiles of full size are configured as long as this lives. The registers are released at its
/// end: who else uses the unit on this thread configures it anew.
class TileSession {
 public:
  TileSession() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;  // bytes per row
      config[48 + tile] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~TileSession() { asm volatile("tilerelease"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// Own assembly, since GCC's intrinsics are macros that take the register's number as a token.
template <int kTile>
PLX_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
PLX_INLINE void tile_load(const void* source, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(source), "r"(stride_bytes), "i"(kTile)
               : "memory");
}

template <int kTile>
PLX_INLINE void tile_store(void* target, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(target), "r"(stride_bytes), "i"(kTile)
               : "memory");
}

template <int kC, int kA, int kB>
PLX_INLINE void tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

#endif

/// C (+)= A B over `depth` tiles. Four sums and four operands fill the eight registers: every
/// operand is used twice.
template <Sums kSums>
PLX_INLINE void tile_block_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                                   int64_t depth) {
  const int64_t stride = c.stride * 4;
  float* const lower_left = c.left + kTileRows * c.stride;
  float* const lower_right = c.right + kTileRows * c.stride;
  if constexpr (kSums == Sums::kAdd) {
    tile_load<0>(c.left, stride);
    tile_load<1>(c.right, stride);
    tile_load<2>(lower_left, stride);
    tile_load<3>(lower_right, stride);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t k = 0; k < depth; ++k) {
    tile_load<4>(a.first + k * a.step, 64);
    tile_load<6>(b.first + k * b.step, 64);
    tile_product<0, 4, 6>();
    tile_load<7>(b.second + k * b.step, 64);
    tile_product<1, 4, 7>();
    tile_load<5>(a.second + k * a.step, 64);
    tile_product<2, 5, 6>();
    tile_product<3, 5, 7>();
  }
  tile_store<0>(c.left, stride);
  tile_store<1>(c.right, stride);
  tile_store<2>(lower_left, stride);
  tile_store<3>(lower_right, stride);
}

/// The same for 16 columns: C[32][16] = A B; b.second and c.right are unused.
PLX_INLINE void tile_column_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                                    int64_t depth) {
  tile_zero<0>();
  tile_zero<2>();
  for (int64_t k = 0; k < depth; ++k) {
    tile_load<6>(b.first + k * b.step, 64);
    tile_load<4>(a.first + k * a.step, 64);
    tile_product<0, 4, 6>();
    tile_load<5>(a.second + k * a.step, 64);
    tile_product<2, 5, 6>();
  }
  tile_store<0>(c.left, c.stride * 4);
  tile_store<2>(c.left + kTileRows * c.stride, c.stride * 4);
}

/// C[16][16] += A B of single tiles.
PLX_INLINE void tile_add_product(float* c, const uint16_t* a, const uint16_t* b) {
  tile_load<0>(c, 64);
  tile_load<4>(a, 64);
  tile_load<6>(b, 64);
  tile_product<0, 4, 6>();
  tile_store<0>(c, 64);
}

}  // namespace
}  // namespace parallax::cpu
