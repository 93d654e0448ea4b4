// The choice of a backend: the list, PLX_BACKEND and PLX_LOG.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <stdlib.h>

#include <array>
#include <optional>

#include "core/env.h"
#include "core/log.h"
#include "parallax/parallax.h"

namespace parallax {
namespace {

/// Sets a variable for one test.
class ScopedEnv {
 public:
  ScopedEnv(core::Env variable, const char* value) : name_(core::env_name(variable)) {
    if (const char* old = ::getenv(name_)) old_ = old;
    ::setenv(name_, value, 1);
  }
  ~ScopedEnv() {
    if (old_)
      ::setenv(name_, old_->c_str(), 1);
    else
      ::unsetenv(name_);
  }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

/// One query, one key.
struct TinyCall {
  std::array<float, 2> q{1, 2}, r{3, 4}, k{5, 6}, v{7, 8}, out{};
  ForwardArgs args{.q = make_view(q.data(), {1, 1, 1, 2}),
                   .r = make_view(r.data(), {1, 1, 1, 2}),
                   .k = make_view(k.data(), {1, 1, 1, 2}),
                   .v = make_view(v.data(), {1, 1, 1, 2}),
                   .out = make_view(out.data(), {1, 1, 1, 2})};
};

template <typename Function>
std::string error_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Backends, ReferenceIsTheLast) {
  ASSERT_FALSE(backends().empty());
  EXPECT_EQ(backends().back()->name(), "reference");
  EXPECT_FALSE(backends().back()->description().empty());
}

TEST(Backends, DefaultIsTheFirstThatSupportsTheCall) {
  const ScopedEnv env(core::Env::kBackend, "");
  TinyCall call;
  const Backend* expected = nullptr;
  for (const Backend* backend : backends())
    if (expected == nullptr && backend->supports(call.args)) expected = backend;
  EXPECT_EQ(&find_backend(call.args), expected);
}

TEST(Backends, EnvironmentForcesOne) {
  const ScopedEnv env(core::Env::kBackend, "reference");
  TinyCall call;
  EXPECT_EQ(find_backend(call.args).name(), "reference");
  attention_forward(call.args);
  EXPECT_EQ(call.out, call.v);
}

TEST(Backends, UnknownNameIsRefusedWithTheList) {
  const ScopedEnv env(core::Env::kBackend, "abacus");
  TinyCall call;
  const std::string error = error_of([&] { attention_forward(call.args); });
  EXPECT_NE(error.find("PLX_BACKEND names the backend 'abacus'"), std::string::npos) << error;
  EXPECT_NE(error.find("reference"), std::string::npos) << error;
}

TEST(Backends, ForcedBackendThatCannotSaysWhy) {
  const ScopedEnv env(core::Env::kBackend, "reference");
  TinyCall call;
  for (ConstTensorView* view : {&call.args.q, &call.args.r, &call.args.k, &call.args.v})
    view->device.type = DeviceType::kCuda;
  call.args.out.device.type = DeviceType::kCuda;
  const std::string error = error_of([&] { attention_forward(call.args); });
  EXPECT_NE(error.find("forces the backend 'reference', which cannot run it: "), std::string::npos)
      << error;
  EXPECT_NE(error.find("CPU memory only"), std::string::npos) << error;
}

TEST(Backends, NoBackendListsEveryReason) {
  const ScopedEnv env(core::Env::kBackend, "");
  TinyCall call;
  for (ConstTensorView* view : {&call.args.q, &call.args.r, &call.args.k, &call.args.v})
    view->device.type = DeviceType::kCuda;
  call.args.out.device.type = DeviceType::kCuda;
  const std::string error = error_of([&] { attention_forward(call.args); });
  EXPECT_NE(error.find("no backend supports this call"), std::string::npos) << error;
  EXPECT_NE(error.find("reference: "), std::string::npos) << error;
}

TEST(Backends, BadArgumentsAreRefusedBeforeAnyOutputIsTouched) {
  TinyCall call;
  call.args.v.sizes[3] = 1;
  EXPECT_THROW(attention_forward(call.args), Error);
  EXPECT_EQ(call.out, (std::array<float, 2>{}));
}

TEST(Backends, DispatchLogNamesCallAndChoice) {
  const ScopedEnv backend(core::Env::kBackend, "reference");
  const ScopedEnv log(core::Env::kLog, "dispatch");
  TinyCall call;
  ::testing::internal::CaptureStderr();
  attention_forward(call.args);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "parallax [dispatch]: attention_forward q[1, 1, 1, 2] k[1, 1, 1, 2] float32 -> "
            "reference (forced)\n");
}

TEST(Backends, DispatchLogOfAMergeNamesItsOutput) {
  const ScopedEnv backend(core::Env::kBackend, "reference");
  const ScopedEnv log(core::Env::kLog, "dispatch");
  std::array<float, 2> part{1, 2}, out{};
  std::array<float, 1> zero{0};
  const PartialState partial{.out = make_view(part.data(), {1, 1, 1, 2}),
                             .out_softmax = make_view(part.data(), {1, 1, 1, 2}),
                             .lse = make_view(zero.data(), {1, 1, 1}),
                             .t_mean = make_view(zero.data(), {1, 1, 1})};
  ::testing::internal::CaptureStderr();
  merge_states({.partials = {&partial, 1}, .out = make_view(out.data(), {1, 1, 1, 2})});
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "parallax [dispatch]: merge_states of 1 out[1, 1, 1, 2] float32 -> reference "
            "(forced)\n");
}

TEST(Backends, NothingIsLoggedByDefault) {
  const ScopedEnv log(core::Env::kLog, "");
  TinyCall call;
  ::testing::internal::CaptureStderr();
  attention_forward(call.args);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(Log, UnknownTopicIsRefusedWithTheList) {
  const ScopedEnv log(core::Env::kLog, "dispatch,colours");
  EXPECT_EQ(error_of([] { core::log_enabled(core::LogTopic::kDispatch); }),
            "PLX_LOG names the topic 'colours', which does not exist; topics: dispatch");
}

TEST(Env, EveryVariableHasADescriptionAndOurPrefixUnlessItIsTorchruns) {
  ASSERT_FALSE(core::env_variables().empty());
  for (const core::EnvVariable& variable : core::env_variables()) {
    EXPECT_NE(std::string(variable.name).starts_with("PLX_"),
              variable.description.starts_with("set by torchrun"));
    EXPECT_FALSE(variable.description.empty());
    EXPECT_STREQ(core::env_name(variable.id), variable.name);
  }
}

}  // namespace
}  // namespace parallax
