// A compiled PCRE2 pattern over valid UTF-8.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace parallax::text {

/// Immutable after construction: any number of threads may search with one Regex, each with its own
/// Scratch.
class Regex {
 public:
  struct Match {
    size_t begin, end;
  };
  /// What one search at a time writes.
  class Scratch {
   public:
    Scratch() = default;  // for no regex
    explicit Scratch(const Regex& regex);

   private:
    friend class Regex;
    std::shared_ptr<pcre2_real_match_data_8> data_;
  };

  /// `pattern` in PCRE2's language with UTF and UCP on and newline LF, compiled to machine code
  /// where PCRE2 can. An Error if it is malformed or can match the empty string.
  explicit Regex(const std::string& pattern);

  /// The first match that begins at or after `start`. `text` must be valid UTF-8 and `start` the
  /// beginning of a character; lookbehind sees the text before `start`.
  std::optional<Match> find(std::string_view text, size_t start, Scratch& scratch) const;

  /// What find() gives in any text that goes on from `text`, as far as `text` alone decides it.
  struct Settled {
    std::optional<Match> match;  // nothing: what comes after `text` has a say
    size_t no_match_before;      // the match, if there is one at all, begins here or later
  };
  Settled find_settled(std::string_view text, size_t start, Scratch& scratch) const;
  /// Whether a match may depend on what stands before the place where the search starts.
  bool looks_behind() const;

 private:
  int search(std::string_view text, size_t start, Scratch& scratch, uint32_t options) const;

  std::shared_ptr<pcre2_real_code_8> code_;
};

}  // namespace parallax::text
