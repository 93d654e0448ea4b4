// Byte pair encoding of one piece of text: the "model" of tokenizer.json.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace parallax::text {

/// From each pair of tokens that merge to the rank of the merge and the token it gives.
class MergeTable {
 public:
  struct Merge {
    int32_t rank = -1;
    int32_t merged_id = -1;
  };

  explicit MergeTable(size_t num_merges);
  /// Later insertions of one pair win.
  void insert(int32_t left, int32_t right, Merge merge);
  /// Rank -1 if the pair does not merge.
  Merge find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot_of(uint64_t key) const;

  std::vector<Slot> slots_;  // open addressing, at most half full, a power of two
};

/// Repeatedly merges the pair of lowest rank, leftmost first, until none is left. A byte that the
/// vocabulary lacks is dropped, as `tokenizers` does when there is no unknown token.
class BpeModel {
 public:
  /// What one run at a time writes.
  struct Scratch {
    struct Symbol {
      int32_t id, previous, next;
    };
    struct Candidate {
      int32_t rank, position, left, right, merged_id;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// Throws Error for another model type, for settings that would change the result and are not
  /// supported (dropout, prefixes, suffixes, an unknown token in use), and for a vocabulary or
  /// merges that contradict themselves.
  explicit BpeModel(const nlohmann::json& description);

  /// Appends the ids of a piece of bytes, in O(n log n).
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }
  size_t num_tokens() const { return num_tokens_; }
  bool has(int32_t id) const;
  std::string_view token_bytes(int32_t id) const { return token_bytes_[static_cast<size_t>(id)]; }
  /// The id of an entry as the file spells it, or -1.
  int32_t find(std::string_view spelling) const;

 private:
  void read_vocab(const nlohmann::json& vocab);
  void read_merges(const nlohmann::json& merges);
  void check_settings(const nlohmann::json& description) const;
  void collect_whole_words(bool ignore_merges);
  void merge(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  void push_candidate(Scratch& scratch, int32_t position) const;

  std::unordered_map<std::string, int32_t> id_of_spelling_;
  std::vector<std::string> token_bytes_;  // by id
  std::vector<bool> is_entry_;            // by id: false for ids that the vocabulary skips
  size_t num_tokens_ = 0;
  std::array<int32_t, 256> byte_ids_{};  // -1 if the byte has no entry
  MergeTable merges_{0};
  // Pieces that are one token: those that merge to exactly it, or all with ignore_merges. Most
  // words of a text are such pieces, and a look-up costs less than merging.
  std::unordered_map<std::string_view, int32_t> whole_words_;
};

}  // namespace parallax::text
