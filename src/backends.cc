// THE list of backends, the choice among them, and the public functions: check, choose, run.
// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <string>

#include "core/env.h"
#include "core/log.h"
#include "core/validate.h"
#include "cpu/backend.h"
#include "parallax/backend.h"
#include "reference/backend.h"

namespace parallax {
namespace {

/// What PLX_LOG=dispatch and errors say about a call.
std::string describe(std::string_view function, const ConstTensorView& q,
                     const ConstTensorView& k) {
  std::string text{function};
  const auto append_shape = [&text](std::string_view label, const ConstTensorView& view) {
    text.append(" ").append(label).append("[");
    for (int dim = 0; dim < view.rank; ++dim)
      text.append(dim > 0 ? ", " : "").append(std::to_string(view.size(dim)));
    text.append("]");
  };
  append_shape("q", q);
  append_shape("k", k);
  return text.append(" ").append(name(q.dtype));
}

std::string describe(const ForwardArgs& args) {
  return describe("attention_forward", args.q, args.k);
}
std::string describe(const BackwardArgs& args) {
  return describe("attention_backward", args.q, args.k);
}
std::string describe(const DecodeArgs& args) { return describe("decode", args.q, args.k_cache); }
std::string describe(const MergeArgs& args) {
  return describe("merge_states", args.out, args.partials.front().out);
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
