// Restoring the state of an optimizer.
// SPDX-License-Identifier: Apache-2.0
#include "optim/state_map.h"

#include "parallax/error.h"

namespace parallax::optim {

void copy_state(const std::map<std::string, torch::Tensor>& source,
                const std::map<std::string, torch::Tensor>& target) {
  torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : source)
    PLX_CHECK(target.contains(name), "optimizer state '", name,
              "' belongs to no parameter of this model");
  for (const auto& [name, tensor] : target) {
    const auto found = source.find(name);
    PLX_CHECK(found != source.end(), "optimizer state '", name, "' is missing");
    PLX_CHECK(found->second.sizes() == tensor.sizes() && found->second.dtype() == tensor.dtype(),
              "optimizer state '", name, "' is ", found->second.dtype(), " ", found->second.sizes(),
              ", expected ", tensor.dtype(), " ", tensor.sizes());
  }
  for (const auto& [name, tensor] : target) tensor.copy_(source.at(name));
}

}  // namespace parallax::optim
