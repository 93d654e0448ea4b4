// What the row ops refuse on every device, by name.
// SPDX-License-Identifier: Apache-2.0
#include "core/row_ops.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "row_backends.h"

namespace parallax::core {
namespace {

/// The message with which the call is refused.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "not refused";
}

TEST(RowOps, BadArgumentsAreRefusedByName) {
  std::vector<float> memory(4096), out(4096);
  float* const in = memory.data();
  const auto x = make_view(in, {2, 3, 4, 6});
  const auto y = make_view(out.data(), {2, 3, 4, 6});
  const auto gain = make_view(in, {6}), table = make_view(in, {3, 3});
  const auto norm = [&](const NormRopeArgs& args) { return refusal([&] { validate(args); }); };
  const auto expect = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  expect(norm({.x = x, .y = y}), "neither a gain nor cos and sin");
  expect(norm({.gain = gain, .y = y}), "x is missing");
  expect(norm({.x = x, .gain = gain}), "y is missing");
  expect(norm({.x = x, .gain = make_view(in, {5}), .y = y}), "gain has shape [5]");
  expect(norm({.x = x, .gain = gain, .y = make_view(out.data(), {2, 3, 4, 5})}), "y has shape");
  expect(norm({.x = x, .cos = table, .y = y}), "sin is missing");
  expect(norm({.x = x, .cos = table, .sin = make_view(in, {2, 3}), .y = y}),
         "sin has shape [2, 3]; it must be [3, 3]");
  expect(norm({.x = make_view(in, {2, 6}), .cos = table, .sin = table, .y = y}), "[.., N, H, D]");
  expect(norm({.x = make_view(in, {2, 3, 4, 5}), .cos = table, .sin = table, .y = y}), "even D");
  expect(norm({.x = x, .gain = gain, .eps = -1.0, .y = y}), "eps is -1");
  expect(norm({.x = make_view(in, {2, 0}), .gain = gain, .y = y}), "must not be empty");
  expect(norm({.x = make_view(in, {6, 6}, {1, 6}), .gain = gain, .y = y}), "x has stride 6");
  expect(norm({.x = x, .gain = gain, .y = make_view(in, {2, 3, 4, 6})}), "y and x share memory");
  expect(norm({.x = x, .gain = gain, .y = make_view(out.data(), {2, 3, 4, 6}, {0, 24, 6, 1})}),
         "y is written");
  std::vector<double> doubles(6);
  expect(norm({.x = x, .gain = make_view(doubles.data(), {6}), .y = y}), "gain is float64");
  TensorView elsewhere = y;
  elsewhere.device.type = DeviceType::kCuda;
  expect(norm({.x = x, .gain = gain, .y = elsewhere}),
         "y is on cuda:0 and x on cpu; all tensors must be on one device");
  const auto other = make_view(in, {2, 3, 4, 8});
  expect(refusal([&] { validate(SwigluArgs{.gate = x, .up = other, .y = y}); }),
         "up has shape [2, 3, 4, 8]; it must be [2, 3, 4, 6] (the shape of gate)");
  expect(refusal([&] { validate(SwigluBackwardArgs{.dy = x, .gate = x, .up = x}); }),
         "d_gate is missing");
  expect(refusal([&] { validate(NormRopeBackwardArgs{.dy = x, .x = x, .gain = gain, .dx = y}); }),
         "d_gain is missing");
}

TEST(RowOps, ADeviceThatIsNotThereIsRefused) {
  std::vector<float> memory(64);
  TensorView x = make_view(memory.data(), {2, 8}), y = make_view(memory.data() + 32, {2, 8});
  x.device = y.device = {DeviceType::kCuda, 77};
  const std::string message = refusal([&] { swiglu({.gate = x, .up = x, .y = y}); });
  EXPECT_TRUE(message.find("norm_rope and swiglu: ") != std::string::npos ||
              message.find("CUDA device 77 does not exist") != std::string::npos)
      << message;
}

}  // namespace
}  // namespace parallax::core
