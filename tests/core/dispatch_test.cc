// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"

#include <gtest/gtest.h>

#include <vector>

namespace parallax::core {
namespace {

TEST(Dispatch, CallsTheBodyOnceWithTheMatchingType) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    std::vector<DType> called;
    dispatch_float(dtype, [&](auto tag) {
      called.push_back(internal::dtype_of<typename decltype(tag)::type>());
    });
    EXPECT_EQ(called, std::vector<DType>{dtype});
  }
}

TEST(Dispatch, RefusesATypeThatIsNotListed) {
  try {
    dispatch_dtype<float, BFloat16>(DType::kFloat64, [](auto) { ADD_FAILURE(); });
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "dtype float64 is not supported here");
  }
}

}  // namespace
}  // namespace parallax::core
