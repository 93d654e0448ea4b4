// In-context recall of the MAD benchmark: pairs of key and value, a value fixed for each key within
// a sequence, and the question what follows a key seen before.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace parallax::mad {

struct InContextRecallOptions {
  /// Even; ids below half are keys, the others values.
  int64_t vocab_size = 16;
  /// Tokens of a sequence, even, 4 or more: length / 2 pairs.
  int64_t length = 128;
  uint64_t seed = 0;
};

struct RecallSequence {
  /// key value key value ...; the last pair's key is one of the earlier ones.
  std::vector<int64_t> tokens;
  /// Per position: the token is a key that occurred before, so its value can be known.
  std::vector<bool> is_recall;
};

/// Sequence number `sequence_idx` of the endless stream that the options name; depends on nothing
/// else. Keys are uniform, each key's value uniform at first sight, the last key uniform over the
/// keys seen. Throws if an option is out of range.
RecallSequence in_context_recall(const InContextRecallOptions& options, uint64_t sequence_idx);

}  // namespace parallax::mad
