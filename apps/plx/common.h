// What several subcommands share: common options, checks of what is typed, output.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "generate/pretrained.h"

namespace parallax::plx {

/// The checkpoint folder as the first positional argument, required.
void add_checkpoint_argument(CLI::App& command, std::filesystem::path& folder);
/// --dtype float32|bfloat16 for the parameters and the computation.
void add_dtype_option(CLI::App& command, torch::ScalarType& dtype);
/// generate::load_pretrained(), with a note on stderr when the byte tokenizer is assumed.
generate::Pretrained load_checkpoint(const std::filesystem::path& folder, torch::ScalarType dtype);

/// Accepts the decimal whole numbers from `smallest` to `largest`; what it refuses, it names with
/// what is allowed. (CLI11's own checks print bounds of 300 digits, read 010 as 8, and add their
/// bounds to the type in the help.)
CLI::Validator whole_number(int64_t smallest,
                            int64_t largest = std::numeric_limits<int64_t>::max());

struct NumberRange {
  double smallest = 0.0, largest = 1.0;
  bool is_open_below = false;  ///< `smallest` itself is refused
};
/// The same for numbers with a fraction; NaN is refused.
CLI::Validator number(const NumberRange& range);

/// Why --field does nothing.
inline constexpr const char* kNoJsonLines = "no input is a .jsonl or .ndjson file";
/// A warning on stderr for each of `options` that is given, with the reason why it does nothing.
void warn_without_effect(const CLI::App& command, std::initializer_list<const char*> options,
                         const char* reason);

/// One line for any failure: Torch's messages without the frames of its stack.
std::string text_of(const std::exception& error);

/// One line of JSON on stdout; bytes that are not UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& value);

}  // namespace parallax::plx
