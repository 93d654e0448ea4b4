// The ops of libparallax_torch.so as typed C++ callables.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

#include "torch/ops.h"

namespace parallax::nn {

/// The op parallax::name. `Signature` must be its schema's, as Torch's dispatcher checks.
template <typename Signature>
auto find_op(const char* name) {
  const std::string full_name = std::string(parallax_torch_ops) + "::" + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(full_name.c_str(), "").typed<Signature>();
}

}  // namespace parallax::nn
