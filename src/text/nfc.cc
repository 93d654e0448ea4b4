// Decomposition and composition are utf8proc's, the canonical ordering between them is done here:
// utf8proc sorts runs of combining marks by exchanging neighbours, which is quadratic on long runs.
// SPDX-License-Identifier: Apache-2.0
#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallax/error.h"
#include "text/utf8.h"

namespace parallax::text {
namespace {

constexpr auto kCanonical = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
constexpr auto kCompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

void order_canonically(std::vector<utf8proc_int32_t>& code_points) {
  auto run = code_points.begin();
  while (run != code_points.end()) {
    if (combining_class(*run) == 0) {
      ++run;
      continue;
    }
    const auto run_end =
        std::find_if(run, code_points.end(), [](auto mark) { return combining_class(mark) == 0; });
    std::stable_sort(run, run_end, [](auto first, auto second) {
      return combining_class(first) < combining_class(second);
    });
    run = run_end;
  }
}

}  // namespace

bool is_surely_nfc(std::string_view text) {
  // U+0300, the first character that form C can change, is CC 80.
  return std::none_of(text.begin(), text.end(),
                      [](char byte) { return static_cast<unsigned char>(byte) >= 0xCC; });
}

std::string to_nfc(std::string_view text) {
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  while (!text.empty()) {
    const char32_t code_point = first_code_point(text);
    utf8proc_int32_t decomposed[8];  // the longest canonical decomposition has four
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point),
                                               decomposed, 8, kCanonical, nullptr);
    PLX_CHECK(count >= 0 && count <= 8, "cannot decompose U+", std::hex,
              static_cast<uint32_t>(code_point));
    code_points.insert(code_points.end(), decomposed, decomposed + count);
    text.remove_prefix(next_utf8(text).num_bytes);
  }
  order_canonically(code_points);
  const auto composed = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kCompose);
  PLX_CHECK(composed >= 0, "cannot compose text: ", utf8proc_errmsg(composed));
  std::string normalized;
  normalized.reserve(code_points.size());
  for (size_t idx = 0; std::cmp_less(idx, composed); ++idx) {
    append_utf8(normalized, static_cast<char32_t>(code_points[idx]));
  }
  return normalized;
}

}  // namespace parallax::text
