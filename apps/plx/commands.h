// The subcommands of plx: each add_* registers one, in a file of the same name.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace parallax::plx {

void add_prepare(CLI::App& app);
void add_train(CLI::App& app);
void add_generate(CLI::App& app);
void add_eval(CLI::App& app);
void add_info(CLI::App& app);

}  // namespace parallax::plx
