// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_backends.h"

#ifdef PLX_CUDA
#include "cuda/backend.h"
#include "cuda/device_info.h"
#endif

namespace parallax::testing {

#ifdef PLX_CUDA

namespace {

/// The first of two backends that supports a call.
class EitherBackend final : public Backend {
 public:
  EitherBackend(const Backend& first, const Backend& second) : first_(first), second_(second) {}

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return "the faster CUDA backend of each call"; }
  DeviceType device_type() const override { return DeviceType::kCuda; }

  Support supports(const ForwardArgs& args) const override { return of(args).supports(args); }
  Support supports(const BackwardArgs& args) const override { return of(args).supports(args); }
  Support supports(const DecodeArgs& args) const override { return of(args).supports(args); }
  Support supports(const MergeArgs& args) const override { return of(args).supports(args); }

  int64_t workspace_bytes(const ForwardArgs& args) const override {
    return of(args).workspace_bytes(args);
  }
  int64_t workspace_bytes(const BackwardArgs& args) const override {
    return of(args).workspace_bytes(args);
  }
  int64_t workspace_bytes(const DecodeArgs& args) const override {
    return of(args).workspace_bytes(args);
  }

  void forward(const ForwardArgs& args) const override { of(args).forward(args); }
  void backward(const BackwardArgs& args) const override { of(args).backward(args); }
  void decode(const DecodeArgs& args) const override { of(args).decode(args); }
  void merge(const MergeArgs& args) const override { of(args).merge(args); }

 private:
  template <typename Args>
  const Backend& of(const Args& args) const {
    return first_.supports(args).ok ? first_ : second_;
  }

  const Backend& first_;
  const Backend& second_;
};

}  // namespace

const std::vector<TestedBackend>& cuda_backends() {
  static const EitherBackend either(cuda::sm90_backend(), cuda::portable_backend());
  static const std::vector<TestedBackend> list = [] {
    std::vector<TestedBackend> result;
    if (cuda::num_devices() == 0) return result;
    result.push_back({"cuda_portable", &cuda::portable_backend()});
    result.push_back({"cuda", &either});
    return result;
  }();
  return list;
}

#else

const std::vector<TestedBackend>& cuda_backends() {
  static const std::vector<TestedBackend> none;
  return none;
}

#endif

const std::vector<TestedRowOps>& cuda_row_ops() {
  static const auto list = cuda_backends().empty() ? std::vector<TestedRowOps>{}
                                                   : std::vector<TestedRowOps>{{"cuda", nullptr}};
  return list;
}

}  // namespace parallax::testing
