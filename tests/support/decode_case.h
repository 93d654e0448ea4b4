// One case of decode: query tokens against a contiguous or paged cache whose unused memory is NaN.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "support/attention_case.h"
#include "support/tolerance.h"

namespace parallax::testing {

/// One sequence: `num_queries` tokens, the newest of the valid keys start .. length.
struct CachedSequence {
  int64_t num_queries = 1;
  int64_t length = 0;
  int64_t start = 0;
};

struct DecodeCase {
  std::vector<CachedSequence> sequences{};
  int64_t Hq = 1, Hkv = 1, D = 64;
  DType dtype = DType::kFloat32;
  int64_t page_size = 0;  // 0: contiguous
  std::optional<int64_t> window{};
  std::optional<float> softmax_scale{};
  Regime regime = Regime::kNormal;
  Layout layout = Layout::kContiguous;

  /// Whether q is packed: the sequences differ in their number of query tokens.
  bool ragged() const;
  /// E.g. decode_1x500_1x17_Hq8_Hkv2_D128_bf16_page16; 1x500from3 has start 3.
  std::string name() const;
  friend void PrintTo(const DecodeCase& value, std::ostream* stream) { *stream << value.name(); }
};

struct DecodeInputs {
  DecodeInputs(const DecodeCase& decode_case, uint64_t seed);

  DecodeCase description;
  HostTensor q, r, k_cache, v_cache, cache_starts, cache_seqlens, cu_seqlens_q, page_table;
  PackedProblem problem;  // the same call with the valid keys only

 private:
  void place_caches(std::mt19937_64& random);
};

/// As run_forward(): outputs start poisoned, guards are checked.
ForwardTensors run_decode(const Backend& backend, const DecodeInputs& inputs);

/// Every tested backend against the truth.
void expect_decode_conforms(const DecodeCase& decode_case, uint64_t seed);

}  // namespace parallax::testing
