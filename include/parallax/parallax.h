// The whole public C++ API. Plain C++20: no Torch, no CUDA header.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallax/attention.h"  // IWYU pragma: export
#include "parallax/backend.h"    // IWYU pragma: export
#include "parallax/dtype.h"      // IWYU pragma: export
#include "parallax/error.h"      // IWYU pragma: export
#include "parallax/parallel.h"   // IWYU pragma: export
#include "parallax/tensor.h"     // IWYU pragma: export
#include "parallax/version.h"    // IWYU pragma: export
