// THE list of backends, the choice among them, and the public functions: check, choose, run.
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <vector>

#include "core/check_tensor.h"
#include "core/env.h"
#include "core/log.h"
#include "core/validate.h"
#include "cpu/backend.h"
#ifdef PLX_CUDA
#include "cuda/backend.h"
#endif
#include "parallax/backend.h"
#include "reference/backend.h"

namespace parallax {
namespace {

constexpr uintptr_t kWorkspaceAlignment = 256;

/// What PLX_LOG=dispatch and errors say about a call: "decode q[2, 1, 8, 64] k_cache[...] float32".
std::string describe(std::string_view function, const core::Argument& queries,
                     const core::Argument& keys) {
  std::string text{function};
  for (const core::Argument& argument : {queries, keys})
    text.append(" ").append(argument.name).append(core::shape_text(argument.view));
  return text.append(" ").append(name(queries.view.dtype));
}

std::string describe(const ForwardArgs& args) {
  return describe("attention_forward", {"q", args.q}, {"k", args.k});
}
std::string describe(const BackwardArgs& args) {
  return describe("attention_backward", {"q", args.q}, {"k", args.k});
}
std::string describe(const DecodeArgs& args) {
  return describe("decode", {"q", args.q}, {"k_cache", args.k_cache});
}
std::string describe(const MergeArgs& args) {
  return "merge_states of " + std::to_string(args.partials.size()) + " out" +
         core::shape_text(args.out) + " " + std::string(name(args.out.dtype));
}

/// `wanted`, the value of PLX_BACKEND, names this backend or the family it belongs to. Empty: any.
bool is_candidate(const Backend& backend, std::string_view wanted) {
  const std::string_view name = backend.name();
  return wanted.empty() || name == wanted ||
         (name.starts_with(wanted) && name.substr(wanted.size()).starts_with('_'));
}

std::string backend_names() {
  std::string names;
  for (const Backend* backend : backends()) names.append(" ").append(backend->name());
  return names;
}

/// `refusals` receives one line for every candidate that came before the choice.
template <typename Args>
const Backend& first_backend(const Args& args, std::string_view wanted, std::string& refusals) {
  int num_refusals = 0;
  for (const Backend* backend : backends()) {
    if (!is_candidate(*backend, wanted)) continue;
    const Support support = backend->supports(args);
    if (support.ok) return *backend;
    refusals.append("\n  ").append(support.reason);
    ++num_refusals;
  }
  PLX_CHECK(num_refusals > 0, core::env_name(core::Env::kBackend), " names the backend '", wanted,
            "', which this build does not have; backends:", backend_names());
  PLX_CHECK(wanted.empty(), describe(args), ": ", core::env_name(core::Env::kBackend),
            " forces the backend '", wanted,
            "', which cannot run it:", num_refusals == 1 ? " " + refusals.substr(3) : refusals);
  PLX_FAIL(describe(args), ": no backend supports this call:", refusals);
}

template <typename Args>
const Backend& choose(const Args& args) {
  core::validate(args);
  const std::string wanted = core::env_value(core::Env::kBackend);
  std::string refusals;
  const Backend& chosen = first_backend(args, wanted, refusals);
  if (core::log_enabled(core::LogTopic::kDispatch)) {
    const std::string why = wanted.empty() ? "" : " (forced)";
    core::log_line(core::LogTopic::kDispatch,
                   describe(args) + " -> " + std::string(chosen.name()) + why + refusals);
  }
  return chosen;
}

/// The backend for a call, whose workspace is large enough.
template <typename Args>
const Backend& choose_to_run(const Args& args) {
  const Backend& backend = choose(args);
  const int64_t needed = backend.workspace_bytes(args);
  const Execution& execution = args.execution;
  PLX_CHECK(execution.workspace_bytes >= needed && (needed == 0 || execution.workspace != nullptr),
            describe(args), ": execution.workspace has ",
            execution.workspace == nullptr ? 0 : execution.workspace_bytes, " bytes; the backend ",
            backend.name(), " needs ", needed, " (workspace_bytes())");
  PLX_CHECK(reinterpret_cast<uintptr_t>(execution.workspace) % kWorkspaceAlignment == 0,
            describe(args), ": execution.workspace is not aligned to ", kWorkspaceAlignment,
            " bytes");
  return backend;
}

}  // namespace

std::span<const Backend* const> backends() {
  static const std::vector<const Backend*> list = {
#ifdef PLX_CUDA
      &cuda::sm90_backend(),
      &cuda::portable_backend(),
#endif
      &cpu::backend(),
      &reference::backend(),
  };
  return list;
}

const Backend& find_backend(const ForwardArgs& args) { return choose(args); }
const Backend& find_backend(const BackwardArgs& args) { return choose(args); }
const Backend& find_backend(const DecodeArgs& args) { return choose(args); }
const Backend& find_backend(const MergeArgs& args) { return choose(args); }

int64_t workspace_bytes(const ForwardArgs& args) { return choose(args).workspace_bytes(args); }
int64_t workspace_bytes(const BackwardArgs& args) { return choose(args).workspace_bytes(args); }
int64_t workspace_bytes(const DecodeArgs& args) { return choose(args).workspace_bytes(args); }

void attention_forward(const ForwardArgs& args) { choose_to_run(args).forward(args); }
void attention_backward(const BackwardArgs& args) { choose_to_run(args).backward(args); }
void decode(const DecodeArgs& args) { choose_to_run(args).decode(args); }
void merge_states(const MergeArgs& args) { find_backend(args).merge(args); }

}  // namespace parallax
