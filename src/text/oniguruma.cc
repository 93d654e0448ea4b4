// One pass over the pattern, construct by construct, against a list of what is known to be equal.
// What differs between the engines, and why a construct is rewritten or refused:
//   \s      PCRE2 adds U+180E; White_Space is Oniguruma's set    \v  VT, not "any vertical space"
//   {n,m}+  possessive in PCRE2, a repeat in Oniguruma           ^ $ always multi-line in Oniguruma
//   (?i:)   Oniguruma also folds one letter to two (ss, fi, ...), so such pairs are refused
// SPDX-License-Identifier: Apache-2.0
#include "text/oniguruma.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "parallax/error.h"

namespace parallax::text {
namespace {

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

constexpr std::array<std::string_view, 38> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
    "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co", "Cs", "Any"};
constexpr std::array<std::string_view, 12> kScripts = {
    "Han",    "Hiragana", "Katakana", "Hangul", "Latin",      "Greek",
    "Common", "Cyrillic", "Arabic",   "Hebrew", "Devanagari", "Thai"};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (pos_ < pattern_.size()) step();
    if (!caseless_.empty()) refuse("a group that is not closed");
    return out_;
  }

 private:
  enum class Place { kOutside, kInClass };

  [[noreturn]] void refuse(std::string_view construct) const {
    PLX_FAIL("pattern '", pattern_, "': ", construct, " near offset ", pos_, " is not supported");
  }
  bool at(std::string_view text) const { return pattern_.substr(pos_).starts_with(text); }
  bool in_caseless() const { return !caseless_.empty() && caseless_.back(); }

  void copy(size_t num_chars) {
    out_.append(pattern_.substr(pos_, num_chars));
    pos_ += num_chars;
  }

  void step() {
    const char c = pattern_[pos_];
    const char previous_letter = std::exchange(last_letter_, '\0');
    bool can_repeat = true;
    if (c == '\\') {
      escape(Place::kOutside);
    } else if (c == '[') {
      character_class();
    } else if (c == '(') {
      open_group();
      can_repeat = false;
    } else if (c == ')') {
      if (caseless_.empty()) refuse("an unmatched ')'");
      caseless_.pop_back();
      copy(1);
    } else if (c == '*' || c == '+' || c == '?' || c == '{') {
      if (!can_repeat_) refuse("a quantifier without an operand or after a quantifier");
      quantifier();
      can_repeat = false;
    } else if (c == '^' || c == '$') {
      refuse("an anchor");
    } else if (c == '|') {
      copy(1);
      can_repeat = false;
    } else {
      literal(previous_letter);
    }
    can_repeat_ = can_repeat;
  }

  void literal(char previous_letter) {
    const char c = pattern_[pos_];
    if (in_caseless()) {
      if (static_cast<unsigned char>(c) >= 0x80) refuse("a non-ASCII character within (?i:)");
      const char pair[] = {previous_letter, to_lower(c)};
      constexpr std::array<std::string_view, 5> folded = {"ss", "ff", "fi", "fl", "st"};
      if (std::ranges::find(folded, std::string_view(pair, 2)) != folded.end()) {
        refuse("a letter pair that folds to one character within (?i:)");
      }
      last_letter_ = to_lower(c);
    }
    copy(1);
  }

  void open_group() {
    bool caseless = in_caseless();
    if (!at("(?")) {
      copy(1);
    } else if (at("(?i:")) {
      caseless = true;
      copy(4);
    } else if (at("(?<=") || at("(?<!")) {
      copy(4);
    } else if (at("(?:") || at("(?=") || at("(?!") || at("(?>")) {
      copy(3);
    } else {
      refuse("this kind of group");
    }
    caseless_.push_back(caseless);
  }

  std::string_view digits() {
    const size_t begin = pos_;
    while (pos_ < pattern_.size() && is_ascii_digit(pattern_[pos_])) ++pos_;
    return pattern_.substr(begin, pos_ - begin);
  }

  void quantifier() {
    if (pattern_[pos_] != '{') {
      copy(1);
      if (at("?") || at("+")) copy(1);  // lazy or possessive, in both engines
      return;
    }
    ++pos_;
    const std::string_view low = digits();
    const bool has_comma = at(",");
    if (has_comma) ++pos_;
    const std::string_view high = has_comma ? digits() : low;
    if (!at("}") || (low.empty() && high.empty())) refuse("a '{' that is no repeat count");
    ++pos_;
    out_.append("{").append(low.empty() ? "0" : low);
    if (has_comma) out_.append(",").append(high);
    out_.append("}");
    if (at("+")) refuse("'+' after a repeat count");
    if (at("?")) {
      if (!has_comma) refuse("'?' after an exact repeat count");
      copy(1);
    }
  }

  void character_class() {
    copy(1);
    if (at("^")) copy(1);
    if (at("]")) refuse("']' as the first character of a class");
    while (pos_ < pattern_.size() && !at("]")) {
      if (at("[")) refuse("'[' within a class");
      if (at("&&")) refuse("'&&' within a class");
      if (at("\\")) {
        escape(Place::kInClass);
      } else {
        if (in_caseless() && static_cast<unsigned char>(pattern_[pos_]) >= 0x80) {
          refuse("a non-ASCII character within (?i:)");
        }
        copy(1);
      }
    }
    if (pos_ == pattern_.size()) refuse("a class that is not closed");
    copy(1);
  }

  void escape(Place place) {
    if (pos_ + 1 == pattern_.size()) refuse("a '\\' at the end");
    const char c = pattern_[pos_ + 1];
    const auto replace = [&](std::string_view by) {
      out_.append(by);
      pos_ += 2;
    };
    switch (c) {
      case 's':
        return replace("\\p{White_Space}");
      case 'S':
        return replace("\\P{White_Space}");
      case 'd':
        return replace("\\p{Nd}");
      case 'D':
        return replace("\\P{Nd}");
      case 'v':
        return replace("\\x{0b}");
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        return copy(2);
      case 'p':
      case 'P':
        return property();
      case 'x':
      case 'u':
        return code_point();
      default:
        break;
    }
    if (is_ascii_letter(c) || is_ascii_digit(c) || static_cast<unsigned char>(c) >= 0x80) {
      refuse(std::string("the escape \\") + c +
             (place == Place::kInClass ? " within a class" : ""));
    }
    copy(2);
  }

  void property() {
    const size_t end = pattern_.find('}', pos_);
    if (pos_ + 2 >= pattern_.size() || pattern_[pos_ + 2] != '{' || end == std::string_view::npos) {
      refuse("a property without braces");
    }
    if (in_caseless()) refuse("a property within (?i:)");
    std::string_view name = pattern_.substr(pos_ + 3, end - pos_ - 3);
    bool negated = pattern_[pos_ + 1] == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool is_script = std::ranges::find(kScripts, name) != kScripts.end();
    if (!is_script && std::ranges::find(kCategories, name) == kCategories.end()) {
      refuse("the property '" + std::string(name) + "'");
    }
    out_.append(negated ? "\\P{" : "\\p{").append(is_script ? "sc:" : "").append(name).append("}");
    pos_ = end + 1;
  }

  void code_point() {
    const bool braces = pattern_[pos_ + 1] == 'x' && pattern_.substr(pos_ + 2).starts_with('{');
    const size_t begin = pos_ + (braces ? 3 : 2);
    const size_t width = pattern_[pos_ + 1] == 'u' ? 4 : 2;
    const size_t end = braces ? pattern_.find('}', begin) : begin + width;
    if (end == std::string_view::npos || end > pattern_.size()) refuse("a truncated code point");
    const std::string_view hex = pattern_.substr(begin, end - begin);
    if (hex.empty() || hex.size() > 6 ||
        hex.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("a code point that is not hexadecimal");
    }
    // \xHH is a byte of the UTF-8 form in Oniguruma and a code point in PCRE2: equal below 80 only.
    if (width == 2 && !braces && hex.front() >= '8') refuse("\\x80 and above without braces");
    if (in_caseless()) refuse("a code point within (?i:)");
    out_.append("\\x{").append(hex).append("}");
    pos_ = end + (braces ? 1 : 0);
  }

  std::string_view pattern_;
  size_t pos_ = 0;
  std::string out_;
  std::vector<bool> caseless_;  // one entry per open group
  char last_letter_ = '\0';     // the literal just before, within (?i:)
  bool can_repeat_ = false;     // a quantifier may follow
};

}  // namespace

std::string oniguruma_to_pcre2(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace parallax::text
