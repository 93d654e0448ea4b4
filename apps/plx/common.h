// What several subcommands share: common options and output.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace parallax::plx {

/// The checkpoint folder as the first positional argument, required.
void add_checkpoint_argument(CLI::App& command, std::filesystem::path& folder);
/// --dtype float32|bfloat16 for the parameters and the computation.
void add_dtype_option(CLI::App& command, torch::ScalarType& dtype);
/// One line of JSON on stdout; bytes that are not UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& value);

}  // namespace parallax::plx
