// What several subcommands share.
// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <iostream>
#include <map>

namespace parallax::plx {

void add_checkpoint_argument(CLI::App& command, std::filesystem::path& folder) {
  command
      .add_option("CHECKPOINT", folder,
                  "Folder with config.json, model.safetensors and tokenizer.json, as `plx train` "
                  "or Hugging Face's save_pretrained() writes it")
      ->option_text("(required)")
      ->required();
}

void add_dtype_option(CLI::App& command, torch::ScalarType& dtype) {
  static const std::map<std::string, torch::ScalarType> kNames = {{"float32", torch::kFloat32},
                                                                  {"bfloat16", torch::kBFloat16}};
  command
      .add_option_function<std::string>(
          "--dtype", [&dtype](const std::string& name) { dtype = kNames.at(name); },
          "Precision of parameters and computation: float32 (default) or bfloat16 (half the "
          "memory)")
      ->option_text("NAME")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
}

void print_json(const nlohmann::ordered_json& value) {
  std::cout << value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n'
            << std::flush;
}

}  // namespace parallax::plx
