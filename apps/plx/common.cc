// What several subcommands share.
// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <c10/util/Exception.h>
#include <sys/resource.h>

#include <charconv>
#include <iomanip>
#include <iostream>
#include <map>
#include <new>
#include <sstream>
#include <string_view>
#include <utility>

namespace parallax::plx {
namespace {

/// The number that all of `text` is, in *value; false if it is none.
template <typename T>
bool parse_all(std::string_view text, T* value) {
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, *value);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

std::string refusal(const std::string& given, const std::string& allowed) {
  return "given " + (given.empty() ? "nothing" : given) + ", " + allowed + " is needed";
}

}  // namespace

void add_checkpoint_argument(CLI::App& command, std::filesystem::path& folder) {
  command
      .add_option("CHECKPOINT", folder,
                  "Folder with config.json, model.safetensors and tokenizer.json, as `plx train` "
                  "or Hugging Face's save_pretrained() writes it; without a tokenizer.json, ids "
                  "are bytes if there are 257")
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

generate::Pretrained load_checkpoint(const std::filesystem::path& folder, torch::ScalarType dtype) {
  generate::Pretrained loaded = generate::load_pretrained(folder, dtype);
  if (loaded.has_assumed_tokenizer) {
    std::cerr << "plx: note: no tokenizer.json in " << folder.string()
              << "; as the model has 257 ids, they are taken as bytes\n";
  }
  return loaded;
}

CLI::Validator whole_number(int64_t smallest, int64_t largest) {
  std::string allowed = "a whole number ";
  if (largest == std::numeric_limits<int64_t>::max()) {
    allowed += "of at least " + std::to_string(smallest);
  } else {
    allowed += "from " + std::to_string(smallest) + " to " + std::to_string(largest);
  }
  const auto check = [=](const std::string& given) -> std::string {
    int64_t value = 0;
    // Leading zeros are refused: CLI11 would read the rest as octal.
    const bool is_number = parse_all(given, &value) && std::to_string(value) == given;
    if (is_number && value >= smallest && value <= largest) return "";
    return refusal(given, allowed);
  };
  return {check, /*validator_desc=*/""};
}

CLI::Validator number(const NumberRange& range) {
  std::ostringstream allowed;
  allowed << std::setprecision(12) << "a number ";
  if (range.is_open_below) {
    allowed << "above " << range.smallest << " and at most " << range.largest;
  } else {
    allowed << "from " << range.smallest << " to " << range.largest;
  }
  const auto check = [range, text = allowed.str()](const std::string& given) -> std::string {
    double value = 0.0;
    const bool is_inside =
        parse_all(given, &value) && value >= range.smallest && value <= range.largest;
    if (is_inside && !(range.is_open_below && value == range.smallest)) return "";
    return refusal(given, text);
  };
  return {check, /*validator_desc=*/""};
}

void warn_without_effect(const CLI::App& command, std::initializer_list<const char*> options,
                         const char* reason) {
  for (const char* option : options) {
    if (command.count(option) == 0) continue;
    std::cerr << "plx: warning: " << option << " has no effect: " << reason << '\n';
  }
}

void print_json(const nlohmann::ordered_json& value) {
  std::cout << value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n'
            << std::flush;
}

std::string text_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return "out of memory: the system gave no more, after " +
           std::to_string(usage.ru_maxrss / 1024) + " MiB";
  }
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  if (from_torch == nullptr) return error.what();
  const std::string text = from_torch->what_without_backtrace();
  const std::string line = text.substr(0, text.find('\n'));
  const size_t refused = line.find("you tried to allocate ");
  return refused == std::string::npos ? line : "out of memory: " + line.substr(refused);
}

}  // namespace parallax::plx
