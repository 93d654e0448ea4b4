// Patterns of tokenizer.json files in PCRE2's language.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace parallax::text {

/// The PCRE2 pattern (for PCRE2_UTF | PCRE2_UCP and newline LF) that matches what Oniguruma, the
/// engine of the `tokenizers` package, matches with `pattern`. Constructs that mean the same pass
/// through, those that differ are rewritten (\s, \d, \v, \u, {,n}, scripts), and everything else is
/// an Error that names the construct: a pattern is never matched differently in silence.
/// The engines may carry different Unicode versions: characters newer than PCRE2's (14 in PCRE2
/// 10.42) have no letter, digit or mark property here and then split differently.
std::string oniguruma_to_pcre2(std::string_view pattern);

}  // namespace parallax::text
