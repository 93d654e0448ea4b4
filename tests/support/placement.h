// Where the tensors of a call lie: in the test's own memory, or copied to a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "parallax/backend.h"
#include "support/host_tensor.h"

namespace parallax::testing {

/// The tensors of one call, where a backend computes. Guard bytes and poison go along.
class Placement {
 public:
  explicit Placement(DeviceType device);
  explicit Placement(const Backend& backend) : Placement(backend.device_type()) {}
  ~Placement();

  /// Views for the call; the tensor must outlive finish().
  ConstTensorView input(const HostTensor& tensor);
  TensorView output(HostTensor& tensor);
  /// A poisoned workspace of that many bytes, and the default stream.
  Execution execution(int64_t workspace_bytes);
  /// Waits for the call and brings the outputs back.
  void finish();

 private:
  class DeviceTensors;
  std::unique_ptr<DeviceTensors> device_;  // null on the CPU
};

/// Validates, checks supports(), and runs a call of placed tensors; its outputs are then back.
/// Fails the test if the backend refuses.
void run_placed(const Backend& backend, ForwardArgs args, Placement& placement);
void run_placed(const Backend& backend, BackwardArgs args, Placement& placement);
void run_placed(const Backend& backend, DecodeArgs args, Placement& placement);

}  // namespace parallax::testing
