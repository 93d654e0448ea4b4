// Each step cuts every piece of the step before; the pieces of the last step are emitted.
// SPDX-License-Identifier: Apache-2.0
#include "text/pre_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "parallax/error.h"
#include "text/oniguruma.h"

namespace parallax::text {
namespace {

using nlohmann::json;

// The pattern that ByteLevel's use_regex stands for.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string literal_pattern(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (std::string_view("\\^$.[]|()?*+{}-#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

Regex compile(std::string_view pattern) { return Regex(oniguruma_to_pcre2(pattern)); }

}  // namespace

PreTokenizer::PreTokenizer(const json& description) {
  if (!description.is_null()) add_steps(description);
  PLX_CHECK(has_byte_level_,
            "pre_tokenizer: there is no ByteLevel step; only byte-level BPE is supported");
}

void PreTokenizer::add_steps(const json& description) {
  const std::string type = description.at("type");
  PLX_CHECK(!has_byte_level_, "pre_tokenizer: '", type, "' after ByteLevel is not supported");
  if (type == "Sequence") {
    for (const json& step : description.at("pretokenizers")) add_steps(step);
  } else if (type == "ByteLevel") {
    add_byte_level(description);
  } else if (type == "Split") {
    add_split(description);
  } else if (type == "Digits") {
    const bool individual = description.at("individual_digits");
    steps_.push_back({.regex = compile(individual ? "\\p{N}" : "\\p{N}+")});
  } else {
    PLX_FAIL("pre_tokenizer: type '", type,
             "' is not supported (supported: ByteLevel, Split, Digits, Sequence)");
  }
}

void PreTokenizer::add_byte_level(const json& description) {
  has_byte_level_ = true;
  Step step{.prefix_space = description.at("add_prefix_space").get<bool>()};
  if (description.value("use_regex", true)) step.regex = compile(kGpt2Pattern);
  steps_.push_back(std::move(step));
}

void PreTokenizer::add_split(const json& description) {
  const json& pattern = description.at("pattern");
  const std::string behavior = description.at("behavior");
  const bool invert = description.at("invert");
  PLX_CHECK(behavior == "Isolated" || behavior == "Removed", "pre_tokenizer: Split behavior '",
            behavior, "' is not supported (supported: Isolated, Removed)");
  Step step;
  if (pattern.contains("Regex")) {
    step.regex = compile(pattern.at("Regex").get<std::string>());
  } else {
    const std::string literal = pattern.at("String");
    PLX_CHECK(!literal.empty(), "pre_tokenizer: Split with an empty String pattern");
    step.regex = Regex(literal_pattern(literal));
  }
  if (behavior == "Removed") (invert ? step.keep_gaps : step.keep_matches) = false;
  steps_.push_back(std::move(step));
}

PreTokenizer::Scratch PreTokenizer::make_scratch() const {
  Scratch scratch;
  for (const Step& step : steps_) {
    scratch.push_back(step.regex ? Regex::Scratch(*step.regex) : Regex::Scratch());
  }
  return scratch;
}

void PreTokenizer::split(std::string_view text, Scratch& scratch, const Emit& emit) const {
  split_from(0, text, scratch, emit);
}

std::vector<size_t> PreTokenizer::settled_cuts(std::string_view text, Scratch& scratch) const {
  std::vector<size_t> cuts;
  add_settled_cuts(0, text, 0, scratch, cuts);
  std::erase_if(cuts, [&](size_t cut) { return cut == 0 || cut >= text.size(); });
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

// The cuts of text.substr(begin), which a step gets as one piece that may grow at its end.
void PreTokenizer::add_settled_cuts(size_t step_idx, std::string_view text, size_t begin,
                                    Scratch& scratch, std::vector<size_t>& cuts) const {
  if (step_idx == steps_.size() || begin == text.size()) return;
  const Step& step = steps_[step_idx];
  if (step.prefix_space || (step.regex && step.regex->looks_behind())) return;
  size_t end = text.size();
  while (step.regex) {
    const auto found = step.regex->find_settled(text, begin, scratch[step_idx]);
    end = found.no_match_before;
    if (!found.match) break;
    cuts.push_back(found.match->begin);
    cuts.push_back(found.match->end);
    begin = found.match->end;
  }
  add_settled_cuts(step_idx + 1, text.substr(0, end), begin, scratch, cuts);
}

void PreTokenizer::split_from(size_t step_idx, std::string_view text, Scratch& scratch,
                              const Emit& emit) const {
  if (text.empty()) return;
  if (step_idx == steps_.size()) {
    emit(text);
  } else if (steps_[step_idx].prefix_space && !text.starts_with(' ')) {
    cut(step_idx, " " + std::string(text), scratch, emit);
  } else {
    cut(step_idx, text, scratch, emit);
  }
}

void PreTokenizer::cut(size_t step_idx, std::string_view text, Scratch& scratch,
                       const Emit& emit) const {
  const Step& step = steps_[step_idx];
  const auto pass_on = [&](size_t begin, size_t end) {
    split_from(step_idx + 1, text.substr(begin, end - begin), scratch, emit);
  };
  if (!step.regex) return pass_on(0, text.size());
  size_t done = 0;
  while (const auto match = step.regex->find(text, done, scratch[step_idx])) {
    if (step.keep_gaps) pass_on(done, match->begin);
    if (step.keep_matches) pass_on(match->begin, match->end);
    done = match->end;
    if (done == text.size()) break;
  }
  if (step.keep_gaps) pass_on(done, text.size());
}

}  // namespace parallax::text
