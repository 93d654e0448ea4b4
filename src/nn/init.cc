// Random initialisation.
// SPDX-License-Identifier: Apache-2.0
#include "nn/init.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace parallax::nn {
namespace {

/// FNV-1a: a hash that is the same on every platform.
uint64_t hash_name(std::string_view name, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

void initialize(torch::nn::Module& model, const ModelConfig& config) {
  const torch::NoGradGuard no_grad;
  const auto seed =
      static_cast<uint64_t>(torch::randint(INT64_MAX, {1}, torch::kInt64).item<int64_t>());
  for (auto& item : model.named_parameters()) {
    const std::string& name = item.key();
    torch::Tensor& parameter = item.value();
    if (name.ends_with(".bias")) {
      parameter.zero_();
    } else if (parameter.dim() == 1) {
      parameter.fill_(name.ends_with("r_norm.weight") ? config.r_norm_init : 1.0);
    } else if (!parameter.is_meta()) {
      // Drawn on the CPU, so that the values do not depend on the device.
      auto generator = at::detail::createCPUGenerator(hash_name(name, seed));
      parameter.copy_(torch::empty(parameter.sizes(), torch::kFloat32)
                          .normal_(0.0, config.initializer_range, generator));
    }
  }
}

}  // namespace parallax::nn
