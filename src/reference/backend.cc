// SPDX-License-Identifier: Apache-2.0
#include "reference/backend.h"

#include "reference/kernels.h"

namespace parallax::reference {
namespace {

Support needs_cpu(const ConstTensorView& tensor) {
  if (tensor.device.type == DeviceType::kCpu) return Support::yes();
  return Support::no("reference: the tensors are on a CUDA device; it reads CPU memory only");
}

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string description() const override {
    return "plain loops in double precision, CPU memory; defines the results, slow";
  }

  Support supports(const ForwardArgs& args) const override { return needs_cpu(args.q); }
  Support supports(const BackwardArgs& args) const override { return needs_cpu(args.q); }
  Support supports(const DecodeArgs& args) const override { return needs_cpu(args.q); }
  Support supports(const MergeArgs& args) const override { return needs_cpu(args.out); }

  void forward(const ForwardArgs& args) const override {
    reference::forward(core::make_problem(args),
                       {args.out, args.out_softmax, args.lse, args.t_mean});
  }
  void backward(const BackwardArgs& args) const override {
    reference::backward(core::make_problem(args), args);
  }
  void decode(const DecodeArgs& args) const override {
    reference::forward(core::make_problem(args),
                       {args.out, args.out_softmax, args.lse, args.t_mean});
  }
  void merge(const MergeArgs& args) const override { reference::merge(args); }
};

}  // namespace

const Backend& backend() {
  static const ReferenceBackend instance;
  return instance;
}

}  // namespace parallax::reference
