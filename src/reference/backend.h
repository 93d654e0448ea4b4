// The executable definition of Parallax attention: plain loops in double precision. Every other
// backend is tested against it. Slow, on the CPU, O(Tk) scratch per thread.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallax/backend.h"

namespace parallax::reference {

/// Supports every call whose tensors are in CPU memory.
const Backend& backend();

}  // namespace parallax::reference
