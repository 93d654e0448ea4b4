// Every check of the public arguments, once for all backends. The rules are those that
// include/parallax/attention.h states; a message says what was wrong, what was given and what is
// allowed. Values inside cu_seqlens, cache_seqlens, cache_starts and page_table are checked where
// the CPU can read them; for tensors on another device the caller answers for them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallax/attention.h"

namespace parallax::core {

/// Each throws parallax::Error at the first fault, and reads no tensor before its shape, strides
/// and device have passed.
void validate(const ForwardArgs& args);
void validate(const BackwardArgs& args);
void validate(const DecodeArgs& args);
void validate(const MergeArgs& args);

}  // namespace parallax::core
