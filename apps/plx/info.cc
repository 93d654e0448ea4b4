// plx info: the machine, the backends, what each of them supports and why not.
// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <array>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "commands.h"
#include "common.h"
#include "core/env.h"
#include "machine.h"
#include "parallax/backend.h"
#include "parallax/version.h"
#include "train/distributed.h"

namespace parallax::plx {
namespace {

using nlohmann::ordered_json;

constexpr std::array kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                DType::kFloat64};
constexpr int64_t kMaxHeadDim = 256;  // the library's limit: more is refused before any backend
constexpr std::array kOperations = {"forward", "backward", "decode"};

/// The arguments of a small causal call: one sequence of two tokens, one head. They are said to lie
/// where the backend computes, and are never read.
class ProbeCall {
 public:
  ProbeCall(DeviceType device, DType dtype, int64_t head_dim)
      : tensor_(view(device, dtype, {1, kNumTokens, 1, head_dim})),
        stats_(
            view(device, dtype == DType::kFloat64 ? dtype : DType::kFloat32, {1, 1, kNumTokens})) {}

  Support ask(const Backend& backend, std::string_view operation) const {
    const TensorView x = tensor_;
    if (operation == "forward") {
      return backend.supports(ForwardArgs{.q = x, .r = x, .k = x, .v = x, .out = x});
    }
    if (operation == "backward") {
      return backend.supports(BackwardArgs{.d_out = x,
                                           .q = x,
                                           .r = x,
                                           .k = x,
                                           .v = x,
                                           .out = x,
                                           .out_softmax = x,
                                           .lse = stats_,
                                           .t_mean = stats_,
                                           .dq = x,
                                           .dr = x,
                                           .dk = x,
                                           .dv = x});
    }
    return backend.supports(DecodeArgs{.q = x, .r = x, .k_cache = x, .v_cache = x, .out = x});
  }

 private:
  static constexpr int64_t kNumTokens = 2;

  TensorView view(DeviceType device, DType dtype, std::initializer_list<int64_t> sizes) {
    TensorView result = make_view(memory_.data(), sizes);
    result.device.type = device;
    result.dtype = dtype;
    return result;
  }

  alignas(256) std::array<double, kNumTokens * kMaxHeadDim> memory_{};
  TensorView tensor_, stats_;
};

/// The reason for a range of head sizes: without the one that it names.
std::string reason_of_range(std::string reason, int64_t head_dim) {
  const std::string own = "head_dim " + std::to_string(head_dim) + " ";
  if (const size_t at = reason.find(own); at != std::string::npos)
    reason.replace(at, own.size(), "the head size ");
  return reason;
}

/// One row for each run of head sizes with the same answer.
void add_cases(const Backend& backend, std::string_view operation, DType dtype,
               ordered_json& cases) {
  std::optional<Support> previous;
  for (int64_t head_dim = 1; head_dim <= kMaxHeadDim; ++head_dim) {
    Support support = ProbeCall(backend.device_type(), dtype, head_dim).ask(backend, operation);
    support.reason = reason_of_range(std::move(support.reason), head_dim);
    if (previous && previous->ok == support.ok && previous->reason == support.reason) {
      cases.back()["head_dims"][1] = head_dim;
      continue;
    }
    cases.push_back({{"operation", operation},
                     {"dtype", name(dtype)},
                     {"head_dims", {head_dim, head_dim}},
                     {"supported", support.ok}});
    if (!support.ok) cases.back()["reason"] = support.reason;
    previous = std::move(support);
  }
}

ordered_json describe(const Backend& backend) {
  ordered_json cases = ordered_json::array();
  for (const DType dtype : kDTypes) {
    for (const std::string_view operation : kOperations) {
      add_cases(backend, operation, dtype, cases);
    }
  }
  return {{"name", backend.name()}, {"description", backend.description()}, {"cases", cases}};
}

/// Settings that make every call fail.
ordered_json find_problems() {
  ordered_json problems = ordered_json::array();
  const std::string wanted = core::env_value(core::Env::kBackend);
  std::string names;
  for (const Backend* backend : backends()) {
    if (wanted.empty() || backend->name() == wanted) return problems;
    names.append(names.empty() ? "" : ", ").append(backend->name());
  }
  problems.push_back("PLX_BACKEND forces the backend '" + wanted +
                     "', which does not exist; there are: " + names);
  return problems;
}

ordered_json collect() {
  const Machine machine = read_machine();
  ordered_json info = {{"version", PLX_VERSION},
                       {"machine",
                        {{"cpu", machine.cpu_model},
                         {"cores", machine.num_cores},
                         {"instruction_sets", machine.instruction_sets},
                         {"memory_bytes", machine.memory_bytes},
                         {"available_memory_bytes", machine.available_memory_bytes}}},
                       {"torch",
                        {{"version", TORCH_VERSION},
                         {"threads", at::get_num_threads()},
                         {"processes", train::describe_rank_backends()}}}};
  info["backends"] = ordered_json::array();
  for (const Backend* backend : backends()) info["backends"].push_back(describe(*backend));
  info["problems"] = find_problems();
  info["environment"] = ordered_json::array();
  for (const core::EnvVariable& variable : core::env_variables()) {
    info["environment"].push_back({{"name", variable.name},
                                   {"value", core::env_value(variable.id)},
                                   {"description", variable.description}});
  }
  return info;
}

/// "64", or "1 to 256".
std::string range_text(const ordered_json& head_dims) {
  const auto first = head_dims[0].get<int64_t>(), last = head_dims[1].get<int64_t>();
  return first == last ? std::to_string(first)
                       : std::to_string(first) + " to " + std::to_string(last);
}

/// "1 to 256", "64, 96 to 128", or "-" where nothing is supported.
std::string supported_head_dims(const ordered_json& cases, std::string_view dtype,
                                std::string_view operation) {
  std::string dims;
  for (const ordered_json& row : cases) {
    if (row["dtype"] == dtype && row["operation"] == operation && row["supported"]) {
      dims.append(dims.empty() ? "" : ", ").append(range_text(row["head_dims"]));
    }
  }
  return dims.empty() ? "-" : dims;
}

/// Each reason once, with the cases that it holds for. Backends begin a reason with their name and
/// the operation; both stand in the list of cases.
void print_reasons(const ordered_json& backend) {
  std::map<std::string, std::string> cases_of_reason;
  for (const ordered_json& row : backend["cases"]) {
    if (row["supported"]) continue;
    const auto operation = row["operation"].get<std::string>();
    auto reason = row["reason"].get<std::string>();
    const std::string prefix = backend["name"].get<std::string>() + ' ' + operation + ": ";
    if (reason.starts_with(prefix)) reason.erase(0, prefix.size());
    std::string& cases = cases_of_reason[reason];
    cases += (cases.empty() ? "" : ", ") + row["dtype"].get<std::string>() + ' ' + operation;
    if (row["head_dims"] != ordered_json{1, kMaxHeadDim})
      cases += ' ' + range_text(row["head_dims"]);
  }
  for (const auto& [reason, cases] : cases_of_reason) {
    std::cout << "  not " << cases << ": " << reason << '\n';
  }
}

void print_backend(const ordered_json& backend) {
  std::cout << "\nbackend " << backend["name"].get<std::string>() << ": "
            << backend["description"].get<std::string>() << "\n  head size " << std::left;
  for (const std::string_view operation : kOperations) std::cout << std::setw(16) << operation;
  std::cout << '\n';
  for (const DType dtype : kDTypes) {
    std::cout << "  " << std::setw(10) << name(dtype);
    for (const std::string_view operation : kOperations) {
      std::cout << std::setw(16) << supported_head_dims(backend["cases"], name(dtype), operation);
    }
    std::cout << '\n';
  }
  print_reasons(backend);
}

void print_text(const ordered_json& info) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  const ordered_json& machine = info["machine"];
  std::cout << "plx " << PLX_VERSION << ", LibTorch " << TORCH_VERSION << " with "
            << info["torch"]["threads"] << " threads\n\nmachine\n  cpu      "
            << machine["cpu"].get<std::string>() << "\n  cores    " << machine["cores"]
            << "\n  has     ";
  for (const ordered_json& flag : machine["instruction_sets"]) {
    std::cout << ' ' << flag.get<std::string>();
  }
  std::cout << "\n  memory   " << std::fixed << std::setprecision(1)
            << machine["memory_bytes"].get<double>() / kGiB << " GiB, "
            << machine["available_memory_bytes"].get<double>() / kGiB
            << " GiB available\n\nprocesses that train together are joined by\n  "
            << info["torch"]["processes"].get<std::string>() << '\n';
  for (const ordered_json& backend : info["backends"]) print_backend(backend);
  for (const ordered_json& problem : info["problems"]) {
    std::cout << "\nproblem: " << problem.get<std::string>() << '\n';
  }
  std::cout << "\nenvironment\n";
  for (const ordered_json& variable : info["environment"]) {
    const auto value = variable["value"].get<std::string>();
    std::cout << "  " << std::left << std::setw(28) << variable["name"].get<std::string>()
              << (value.empty() ? "(not set)" : value) << "\n      "
              << variable["description"].get<std::string>() << '\n';
  }
}

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("info", "Show the machine, the backends, what each supports, and why not");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "As one JSON object");
  command->footer(
      "Backends are listed in the order in which they are tried; PLX_BACKEND forces one.\n\n"
      "Example:\n"
      "  plx info --json | python3 -m json.tool");
  command->callback([json] {
    const ordered_json info = collect();
    *json ? print_json(info) : print_text(info);
  });
}

}  // namespace parallax::plx
