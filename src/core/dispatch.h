// Run-time values to compile-time tags.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>
#include <utility>

#include "parallax/dtype.h"
#include "parallax/error.h"
#include "parallax/tensor.h"

namespace parallax::core {

/// Calls body(std::type_identity<T>{}) for the one T of `Types` whose DType is `dtype`:
///
///   dispatch_dtype<float, BFloat16>(q.dtype, [&](auto tag) {
///     using T = typename decltype(tag)::type;
///     ...
///   });
///
/// Throws Error if `dtype` is not among them.
template <typename... Types, typename Body>
void dispatch_dtype(DType dtype, Body&& body) {
  const bool found =
      ((internal::dtype_of<Types>() == dtype ? (body(std::type_identity<Types>{}), true) : false) ||
       ...);
  PLX_CHECK(found, "dtype ", name(dtype), " is not supported here");
}

/// dispatch_dtype over every floating point type of the public API.
template <typename Body>
void dispatch_float(DType dtype, Body&& body) {
  dispatch_dtype<float, double, Float16, BFloat16>(dtype, std::forward<Body>(body));
}

}  // namespace parallax::core
