// SPDX-License-Identifier: Apache-2.0
#include "core/row_ops.h"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/check_tensor.h"
#include "parallax/error.h"

namespace parallax::core {
namespace {

/// The arguments of one call, checked as they come.
class Checks {
 public:
  Checks(std::string name, const ConstTensorView& view) : first_{std::move(name), view} {
    check_values(first_);
    PLX_CHECK(dim() >= 1 && dim() <= std::numeric_limits<int>::max() / 16, first_.name,
              " has shape ", shape_text(view), "; its last dimension must not be empty");
    inputs_.push_back(first_);
  }

  void input_alike(std::string name, const ConstTensorView& view) {
    add_alike(inputs_, std::move(name), view);
  }
  void output_alike(std::string name, const TensorView& view) {
    add_alike(outputs_, std::move(name), view);
  }
  /// A vector along the last dimension.
  void input_vector(std::string name, const ConstTensorView& view) {
    add_vector(inputs_, std::move(name), view);
  }
  void output_vector(std::string name, const TensorView& view) {
    add_vector(outputs_, std::move(name), view);
  }
  void tables(const ConstTensorView& cos, const ConstTensorView& sin) {
    const ConstTensorView& x = first_.view;
    PLX_CHECK(x.rank >= 3 && dim() % 2 == 0, first_.name, " has shape ", shape_text(x),
              "; to be rotated it must be [.., N, H, D] with an even D");
    for (const Argument& table : {Argument{"cos", cos}, Argument{"sin", sin}}) {
      check_present(table);
      check_dtype(table, DType::kFloat32, "tables are");
      check_shape(table, {{x.size(x.rank - 3), dim() / 2}, "[N, D / 2] of " + first_.name});
      check_innermost_stride(table);
      inputs_.push_back(table);
    }
  }

  void finish() const { check_together(inputs_, outputs_); }

 private:
  int64_t dim() const { return first_.view.size(first_.view.rank - 1); }

  static void check_values(const Argument& argument) {
    check_present(argument);
    const DType dtype = argument.view.dtype;
    PLX_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
              argument.name, " is ", name(dtype), "; it must be float32, bfloat16 or float16");
    check_innermost_stride(argument);
  }
  void add_alike(std::vector<Argument>& list, std::string name, const ConstTensorView& view) {
    const Argument argument{std::move(name), view};
    check_values(argument);
    const auto& sizes = first_.view.sizes;
    check_shape(argument,
                {{sizes.begin(), sizes.begin() + first_.view.rank}, "the shape of " + first_.name});
    list.push_back(argument);
  }
  void add_vector(std::vector<Argument>& list, std::string name, const ConstTensorView& view) {
    const Argument argument{std::move(name), view};
    check_values(argument);
    check_shape(argument, {{dim()}, "[D] of " + first_.name});
    list.push_back(argument);
  }

  Argument first_;
  std::vector<Argument> inputs_, outputs_;
};

/// Arguments of the forward and backward pass alike.
template <typename Args>
void check_norm_rope(Checks& checks, const Args& args) {
  const bool rotates = args.cos.defined() || args.sin.defined();
  PLX_CHECK(args.gain.defined() || rotates,
            "norm_rope: got neither a gain nor cos and sin, so there is nothing to compute");
  PLX_CHECK(args.eps >= 0 && std::isfinite(args.eps), "norm_rope: eps is ", args.eps,
            "; it must be 0 or positive");
  if (args.gain.defined()) checks.input_vector("gain", args.gain);
  if (rotates) checks.tables(args.cos, args.sin);
}

}  // namespace

void validate(const NormRopeArgs& args) {
  Checks checks("x", args.x);
  check_norm_rope(checks, args);
  checks.output_alike("y", args.y);
  checks.finish();
}

void validate(const NormRopeBackwardArgs& args) {
  Checks checks("x", args.x);
  check_norm_rope(checks, args);
  checks.input_alike("dy", args.dy);
  checks.output_alike("dx", args.dx);
  if (args.gain.defined()) checks.output_vector("d_gain", args.d_gain);
  checks.finish();
}

void validate(const SwigluArgs& args) {
  Checks checks("gate", args.gate);
  checks.input_alike("up", args.up);
  checks.output_alike("y", args.y);
  checks.finish();
}

void validate(const SwigluBackwardArgs& args) {
  Checks checks("gate", args.gate);
  checks.input_alike("up", args.up);
  checks.input_alike("dy", args.dy);
  checks.output_alike("d_gate", args.d_gate);
  checks.output_alike("d_up", args.d_up);
  checks.finish();
}

}  // namespace parallax::core
