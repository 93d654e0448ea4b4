// PCRE2 with its just-in-time compiler. The UTF check is off: callers pass valid UTF-8, and a check
// of the rest of the text at each match would make a scan quadratic.
// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include <cstdint>

#include "parallax/error.h"

namespace parallax::text {
namespace {

using CompileContext =
    std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)>;
using MatchContext = std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)>;

std::string message_of(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

pcre2_match_context* match_context() {
  // The default limits would refuse long runs of spaces; time stays linear without them, since a
  // pattern's scans end where its match ends.
  static const MatchContext context = [] {
    MatchContext made(pcre2_match_context_create(nullptr), &pcre2_match_context_free);
    pcre2_set_match_limit(made.get(), UINT32_MAX);
    pcre2_set_depth_limit(made.get(), UINT32_MAX);
    pcre2_set_heap_limit(made.get(), UINT32_MAX);
    return made;
  }();
  return context.get();
}

}  // namespace

Regex::Scratch::Scratch(const Regex& regex)
    : data_(pcre2_match_data_create_from_pattern(regex.code_.get(), nullptr),
            &pcre2_match_data_free) {}

Regex::Regex(const std::string& pattern) {
  const CompileContext context(pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                            context.get()),
              &pcre2_code_free);
  PLX_CHECK(code_, "pattern '", pattern, "', offset ", offset, ": ", message_of(error));
  uint32_t can_be_empty = 0;
  pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &can_be_empty);
  PLX_CHECK(can_be_empty == 0, "pattern '", pattern, "' can match the empty string");
  // Where there is no such compiler, PCRE2 interprets.
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
}

int Regex::search(std::string_view text, size_t start, Scratch& scratch, uint32_t options) const {
  const auto match = [&](uint32_t more_options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                       PCRE2_NO_UTF_CHECK | options | more_options, scratch.data_.get(),
                       match_context());
  };
  int result = match(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  PLX_CHECK(result > 0 || result == PCRE2_ERROR_NOMATCH || result == PCRE2_ERROR_PARTIAL,
            "matching failed: ", message_of(result));
  return result;
}

std::optional<Regex::Match> Regex::find(std::string_view text, size_t start,
                                        Scratch& scratch) const {
  if (search(text, start, scratch, 0) == PCRE2_ERROR_NOMATCH) return std::nullopt;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.data_.get());
  return Match{bounds[0], bounds[1]};
}

// A hard partial match: PCRE2 reports the first attempt that would look beyond the end of the text.
Regex::Settled Regex::find_settled(std::string_view text, size_t start, Scratch& scratch) const {
  const int result = search(text, start, scratch, PCRE2_PARTIAL_HARD);
  if (result == PCRE2_ERROR_NOMATCH) return {std::nullopt, text.size()};
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.data_.get());
  if (result == PCRE2_ERROR_PARTIAL) return {std::nullopt, bounds[0]};
  return {Match{bounds[0], bounds[1]}, bounds[0]};
}

bool Regex::looks_behind() const {
  uint32_t num_characters = 0;
  pcre2_pattern_info(code_.get(), PCRE2_INFO_MAXLOOKBEHIND, &num_characters);
  return num_characters > 0;
}

}  // namespace parallax::text
