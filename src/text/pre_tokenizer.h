// Cuts text into the pieces that BPE then works on one by one: the "pre_tokenizer" of
// tokenizer.json.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace parallax::text {

/// Supported: ByteLevel, Split (Regex or String pattern; Isolated or Removed, inverted or not),
/// Digits, and a Sequence of these that ends in ByteLevel. The mapping of bytes to symbols that
/// ByteLevel stands for is left out: BPE works on bytes here.
class PreTokenizer {
 public:
  using Emit = std::function<void(std::string_view)>;
  /// What one run at a time writes.
  using Scratch = std::vector<Regex::Scratch>;

  /// Throws Error for a kind, behaviour or pattern that is not supported, naming it.
  explicit PreTokenizer(const nlohmann::json& description);

  Scratch make_scratch() const;
  /// Calls `emit` with each piece of valid UTF-8 in order; no piece is empty. A piece may lie
  /// outside `text` (add_prefix_space) and lives until `emit` returns.
  void split(std::string_view text, Scratch& scratch, const Emit& emit) const;

  /// Places inside `text`, ascending, that split() cuts at in any text that goes on from it, and
  /// after which it goes on as at the beginning of a text. Found for steps that neither look behind
  /// nor add a space; a piece that may still grow is cut only by steps after the one it is left by.
  std::vector<size_t> settled_cuts(std::string_view text, Scratch& scratch) const;

 private:
  struct Step {
    bool prefix_space = false;                  // put a space before a piece that has none
    std::optional<Regex> regex = std::nullopt;  // where to cut
    bool keep_matches = true, keep_gaps = true;
  };
  void add_steps(const nlohmann::json& description);
  void add_byte_level(const nlohmann::json& description);
  void add_split(const nlohmann::json& description);
  void split_from(size_t step_idx, std::string_view text, Scratch& scratch, const Emit& emit) const;
  void cut(size_t step_idx, std::string_view text, Scratch& scratch, const Emit& emit) const;
  void add_settled_cuts(size_t step_idx, std::string_view text, size_t begin, Scratch& scratch,
                        std::vector<size_t>& cuts) const;

  std::vector<Step> steps_;
  bool has_byte_level_ = false;
};

}  // namespace parallax::text
