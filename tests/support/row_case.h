// One case of norm_rope or swiglu: its description, seeded inputs, the formulas as plain loops, and
// how to run it on the kernels of a CPU's instruction set or of a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "support/host_tensor.h"

namespace parallax::testing {

/// The kernels of one instruction set, or those that the library runs on CUDA device 0.
struct TestedRowOps {
  std::string name;
  const cpu::Kernels* kernels;  // null: CUDA
};

/// What tests/conformance tests: every instruction set and, where there is one, the CUDA device.
const std::vector<TestedRowOps>& tested_row_ops();

struct RowCase {
  std::vector<int64_t> sizes;  // [.., D] or, rotated, [.., N, H, D]
  bool norm = true, rotate = false;
  DType dtype = DType::kFloat32;        // of x and dx; of gate and d_gate
  DType out_dtype = DType::kFloat32;    // of y and dy
  DType other_dtype = DType::kFloat32;  // of the gain and its gradient; of up and d_up
  Layout layout = Layout::kContiguous;
  double scale = 1.0, eps = 1e-6;

  int64_t dim() const { return sizes.back(); }
  int64_t tokens() const { return sizes[sizes.size() - 3]; }
  std::string text() const;
};

/// The same with one dtype for everything.
RowCase of_dtype(RowCase row_case, DType dtype);

struct NormRopeInputs {
  HostTensor x, dy, gain, cos, sin;
};
NormRopeInputs make_norm_rope_inputs(const RowCase& row_case, uint64_t seed);

struct NormRopeOutputs {
  HostTensor y, dx, d_gain;
};
/// The outputs begin as poison.
NormRopeOutputs run_norm_rope(const TestedRowOps& ops, const RowCase& row_case,
                              const NormRopeInputs& inputs);

struct SwigluInputs {
  HostTensor gate, up, dy;
};
SwigluInputs make_swiglu_inputs(const RowCase& row_case, uint64_t seed);

struct SwigluOutputs {
  HostTensor y, d_gate, d_up;
};
SwigluOutputs run_swiglu(const TestedRowOps& ops, const RowCase& row_case,
                         const SwigluInputs& inputs);

/// Fails the test unless all kernels are within the derived tolerance (docs/testing.md) of float64.
void expect_norm_rope_conforms(const RowCase& row_case);
void expect_swiglu_conforms(const RowCase& row_case);

/// The truth in float64.
std::vector<double> true_swiglu(const SwigluInputs& inputs);
std::vector<double> true_swiglu_d_gate(const SwigluInputs& inputs);

}  // namespace parallax::testing
