// THE list of backends, the choice among them, and the public functions: check, choose, run.
// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <string>

#include "core/check_tensor.h"
#include "core/env.h"
#include "core/log.h"
#include "core/validate.h"
#include "cpu/backend.h"
#include "parallax/backend.h"
#include "reference/backend.h"

namespace parallax {
namespace {

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

const Backend& backend_named(std::string_view wanted) {
  std::string names;
  for (const Backend* backend : backends()) {
    if (backend->name() == wanted) return *backend;
    names.append(" ").append(backend->name());
  }
  PLX_FAIL(core::env_name(core::Env::kBackend), " names the backend '", wanted,
           "', which this build does not have; backends:", names);
}

template <typename Args>
const Backend& forced_backend(const Args& args, std::string_view wanted) {
  const Backend& backend = backend_named(wanted);
  const Support support = backend.supports(args);
  PLX_CHECK(support.ok, describe(args), ": ", core::env_name(core::Env::kBackend),
            " forces the backend '", wanted, "', which cannot run it: ", support.reason);
  return backend;
}

/// `refusals` receives one line for every backend that came before the choice.
template <typename Args>
const Backend& first_backend(const Args& args, std::string& refusals) {
  for (const Backend* backend : backends()) {
    const Support support = backend->supports(args);
    if (support.ok) return *backend;
    refusals.append("\n  ").append(support.reason);
  }
  PLX_FAIL(describe(args), ": no backend supports this call:", refusals);
}

template <typename Args>
const Backend& choose(const Args& args) {
  core::validate(args);
  const std::string wanted = core::env_value(core::Env::kBackend);
  std::string refusals;
  const Backend& chosen =
      wanted.empty() ? first_backend(args, refusals) : forced_backend(args, wanted);
  if (core::log_enabled(core::LogTopic::kDispatch)) {
    const std::string why = wanted.empty() ? "" : " (forced)";
    core::log_line(core::LogTopic::kDispatch,
                   describe(args) + " -> " + std::string(chosen.name()) + why + refusals);
  }
  return chosen;
}

}  // namespace

std::span<const Backend* const> backends() {
  static const std::array<const Backend*, 2> list = {
      &cpu::backend(),
      &reference::backend(),
  };
  return list;
}

const Backend& find_backend(const ForwardArgs& args) { return choose(args); }
const Backend& find_backend(const BackwardArgs& args) { return choose(args); }
const Backend& find_backend(const DecodeArgs& args) { return choose(args); }
const Backend& find_backend(const MergeArgs& args) { return choose(args); }

void attention_forward(const ForwardArgs& args) { find_backend(args).forward(args); }
void attention_backward(const BackwardArgs& args) { find_backend(args).backward(args); }
void decode(const DecodeArgs& args) { find_backend(args).decode(args); }
void merge_states(const MergeArgs& args) { find_backend(args).merge(args); }

}  // namespace parallax
