// In-context recall, multi-query form.
// SPDX-License-Identifier: Apache-2.0
#include "mad/in_context_recall.h"

#include "mad/random.h"
#include "parallax/error.h"

namespace parallax::mad {

RecallSequence in_context_recall(const InContextRecallOptions& options, uint64_t sequence_idx) {
  PLX_CHECK(options.vocab_size >= 2 && options.vocab_size % 2 == 0,
            "in-context recall has half keys and half values; the vocabulary size is ",
            options.vocab_size, ", it must be even and 2 or more");
  PLX_CHECK(options.length >= 4 && options.length % 2 == 0,
            "in-context recall is made of pairs; the length is ", options.length,
            ", it must be even and 4 or more");
  const auto num_keys = static_cast<uint64_t>(options.vocab_size / 2);
  const int64_t num_pairs = options.length / 2;
  constexpr int64_t kUnseen = -1;
  std::vector<int64_t> value_of(num_keys, kUnseen), seen_keys;
  Random random(options.seed, sequence_idx);
  RecallSequence sequence;
  for (int64_t pair_idx = 0; pair_idx < num_pairs; ++pair_idx) {
    const bool is_probe = pair_idx + 1 == num_pairs;
    const int64_t key = is_probe ? seen_keys[random.below(seen_keys.size())]
                                 : static_cast<int64_t>(random.below(num_keys));
    int64_t& value = value_of[static_cast<size_t>(key)];
    const bool is_known = value != kUnseen;
    if (!is_known) {
      value = static_cast<int64_t>(num_keys + random.below(num_keys));
      seen_keys.push_back(key);
    }
    sequence.tokens.insert(sequence.tokens.end(), {key, value});
    sequence.is_recall.insert(sequence.is_recall.end(), {is_known, false});
  }
  return sequence;
}

}  // namespace parallax::mad
