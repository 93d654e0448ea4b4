// The token mixers by name.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "nn/config.h"
#include "nn/mixer.h"

namespace parallax::nn {

struct MixerOptions {
  const ModelConfig& config;
  int64_t layer_idx = 0;
  torch::Device device = torch::kCPU;
};

/// The names that ModelConfig::mixers may hold.
std::vector<std::string> mixer_names();
/// Throws parallax::Error with all names unless there is a mixer of this name.
void check_mixer_name(const std::string& name);
/// The mixer of one layer, its parameters not yet initialised.
std::shared_ptr<TokenMixer> make_mixer(const MixerOptions& options);

}  // namespace parallax::nn
