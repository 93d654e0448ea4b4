// The matrix unit: bfloat16 tile products with fp32 sums (Intel AMX-BF16), and the one product that
// all kernels are made of. With PLX_EMULATE_AMX the eight tile
// registers are memory, so that the kernels run, slowly, on any machine; the products have the
// unit's bits but for subnormal numbers, which it takes for 0.
//
// A tile has 16 rows of 64 bytes. C[16][16] fp32 += A[16][32] B[32][16] with A row-major and B in
// pairs: row k of B holds (B[2k][n], B[2k + 1][n]) for each n.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;          // inner dimension of one product
constexpr int kTileElements = 16 * 32;  // 16-bit numbers of a tile

PLX_INLINE int matrix_dim(int head_dim) {
  return (head_dim + kTileDepth - 1) / kTileDepth * kTileDepth;
}

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

/// Where a [32][32] block of C lies: two tiles down, 16 columns each at `left` and `right`.
struct SumBlock {
  float *left, *right;
  int64_t stride;  // floats from row to row
};

/// Tiles of one factor: tile k of the upper (left) half at first + k * step, of the lower (right)
/// half at second + k * step.
struct TilePairs {
  const uint16_t *first, *second;
  int64_t step;
};

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

/// A row-major tile [16][32] as the other factor: its 16 rows become columns. Words of two 16-bit
/// numbers are transposed.
PLX_INLINE void transpose_tile(uint16_t* target, const uint16_t* source) {
  for (int row = 0; row < 16; row += kVectorFloats)
    for (int column = 0; column < 16; column += kVectorFloats)
      transpose_block<kVectorFloats>(reinterpret_cast<float*>(target) + column * 16 + row, 16,
                                     reinterpret_cast<const float*>(source) + row * 16 + column,
                                     16);
}

/// 16 columns of a tile of pairs of rows: `even` and `odd` are lanes of two rows, rounded to
/// bfloat16. Adds both, as rounded, to `sums`.
template <int kWidth>
PLX_INLINE void store_pair(uint16_t* target, Floats<kWidth> even, Floats<kWidth> odd,
                           Floats<kWidth>& sums) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_permutexvar_epi16(
      _mm512_load_si512(kInterleave), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
  _mm512_storeu_si512(target, pairs);
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  sums =
      _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(ones));
#else
  for (int lane = 0; lane < kWidth; ++lane) {
    target[2 * lane] = to_bfloat16(even[lane]);
    target[2 * lane + 1] = to_bfloat16(odd[lane]);
    sums[lane] += from_bfloat16(target[2 * lane]) + from_bfloat16(target[2 * lane + 1]);
  }
#endif
}

/// [32 rows][16 columns] fp32 with `stride` -> one tile of pairs of rows, rounded to bfloat16.
PLX_INLINE void round_to_pairs(uint16_t* target, const float* source, int64_t stride) {
  constexpr int kWidth = kVectorFloats;
  using F = Floats<kWidth>;
  F ignored{};
  for (int row = 0; row < kTileDepth; row += 2)
    for (int lane = 0; lane < kTileRows; lane += kWidth)
      store_pair<kWidth>(target + row * kTileRows + 2 * lane, load<F>(source + row * stride + lane),
                         load<F>(source + (row + 1) * stride + lane), ignored);
}

}  // namespace
}  // namespace parallax::cpu
