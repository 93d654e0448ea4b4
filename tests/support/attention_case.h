// One case of forward and backward: its description, readable name, seeded inputs, and how to run a
// backend on it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "parallax/backend.h"
#include "support/host_tensor.h"
#include "support/truth.h"

namespace parallax::testing {

/// Kinds of inputs on which attention kernels lose accuracy in different ways.
enum class Regime : uint8_t {
  kNormal,         // all standard normal
  kSharpLogits,    // q times 4
  kValueMean2,     // v plus 2
  kScoreMean50,    // the mean of t = r.k is about 50
  kMaxInLastTile,  // logits grow towards the last key
  kNormed,         // rows of q, r and k with root mean square 1
  kZeroProbe,      // r = 0
};

struct AttentionCase {
  int64_t B = 1;
  int64_t Tq = 1;
  std::optional<int64_t> Tk{};  // Tq when absent
  int64_t Hq = 1, Hkv = 1, D = 64;
  DType dtype = DType::kFloat32;
  Mask mask = Mask::kCausal;
  std::optional<int64_t> window{};
  std::optional<float> softmax_scale{};
  Regime regime = Regime::kNormal;
  Layout layout = Layout::kContiguous;
  std::vector<SequenceLengths> packed{};  // then B, Tq and Tk mean nothing

  /// E.g. B2_Tq129_Tk129_Hq8_Hkv2_D128_bf16_causal.
  std::string name() const;
  friend void PrintTo(const AttentionCase& value, std::ostream* stream) { *stream << value.name(); }
};

/// The seed of this test run: PLX_TEST_SEED if set, else fresh. Failures must print it.
uint64_t test_seed();

std::vector<double> normal_values(int64_t count, std::mt19937_64& random);

/// The regime applied to standard normal inputs [rows, D]; keys of one sequence follow each other.
void apply_regime(Regime regime, PackedProblem& problem);

struct AttentionInputs {
  AttentionInputs(const AttentionCase& attention_case, uint64_t seed);

  AttentionCase description;
  HostTensor q, r, k, v, d_out, cu_seqlens_q, cu_seqlens_k;
  PackedProblem problem;  // the same values
};

struct ForwardTensors {
  HostTensor out, out_softmax, lse, t_mean;
};

struct GradientTensors {
  HostTensor dq, dr, dk, dv;
};

/// Poisoned outputs of a forward or decode call, and the check that a call wrote nothing beside
/// them.
ForwardTensors poisoned_outputs(DType dtype, Layout layout, const std::vector<int64_t>& query_sizes,
                                const std::vector<int64_t>& stat_sizes);
void expect_guards_intact(const ForwardTensors& tensors);

/// What a forward call is asked for: all outputs, or `out` alone.
enum class Outputs : uint8_t { kTraining, kInference };

/// Validates, checks supports(), runs on poisoned outputs of the case's layout, and fails the test
/// if a byte beside an output was written.
ForwardTensors run_forward(const Backend& backend, const AttentionInputs& inputs,
                           Outputs outputs = Outputs::kTraining);
GradientTensors run_backward(const Backend& backend, const AttentionInputs& inputs,
                             const ForwardValues& saved);

/// Results in canonical order.
ForwardValues values_of(const ForwardTensors& tensors);
GradientValues values_of(const GradientTensors& tensors);

/// A backend with a name that tells instruction sets apart.
struct TestedBackend {
  std::string label;
  const Backend* backend;
};
/// All registered backends that this machine can run, and the CPU backend on each of its
/// instruction sets.
const std::vector<TestedBackend>& tested_backends();

/// Sanitizers slow the kernels down: lengths over 200 shrink to 200 there.
int64_t sanitizer_length(int64_t length);

}  // namespace parallax::testing
