// plx_optimizer_tool INPUT OUTPUT: runs an optimizer over given gradients and writes the parameters
// after every step, for comparison with PyTorch's optimizers.
//
// INPUT is a safetensors file with "parameter/NAME" and "gradient/STEP/NAME", its metadata the
// options; OUTPUT gets "STEP/NAME".
// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <iostream>
#include <map>
#include <string>

#include "io/safetensors.h"
#include "optim/param_groups.h"
#include "optim/state_file.h"

namespace {

using namespace parallax;

optim::OptimizerOptions options_of(const std::map<std::string, std::string>& text) {
  const auto number = [&](const char* key) { return std::stod(text.at(key)); };
  return {.algorithm = optim::parse_algorithm(text.at("algorithm")),
          .lr = number("lr"),
          .weight_decay = number("weight_decay"),
          .muon = {.momentum = number("momentum"),
                   .nesterov = text.at("nesterov") == "true",
                   .scaling = optim::parse_muon_scaling(text.at("scaling")),
                   .newton_schulz = {.dtype = text.at("dtype") == "bfloat16" ? torch::kBFloat16
                                                                             : torch::kFloat32}},
          .adamw = {.beta1 = number("beta1"), .beta2 = number("beta2"), .eps = number("eps")}};
}

void run(const std::string& input, const std::string& output) {
  const auto tensors = optim::load_tensors(input);
  const auto options = options_of(io::SafetensorsFile(input).metadata());
  const std::string prefix = "parameter/";
  optim::NamedTensors parameters;
  for (const auto& [name, tensor] : tensors)
    if (name.starts_with(prefix)) parameters.emplace_back(name.substr(prefix.size()), tensor);

  const auto optimizer =
      optim::make_optimizer(optim::plan_parameters(parameters, options), options);
  std::map<std::string, torch::Tensor> results;
  for (int step = 0;; ++step) {
    const std::string number = std::to_string(step) + "/";
    if (!tensors.contains("gradient/" + number + parameters[0].first)) break;
    for (auto& [name, tensor] : parameters)
      tensor.mutable_grad() = tensors.at("gradient/" + number + name);
    optimizer->step({});
    for (const auto& [name, tensor] : parameters) results[number + name] = tensor.detach().clone();
  }
  optim::save_tensors(output, results);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: plx_optimizer_tool INPUT OUTPUT\n";
    return 2;
  }
  try {
    run(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
