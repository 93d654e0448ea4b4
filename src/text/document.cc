// See document.h.
// SPDX-License-Identifier: Apache-2.0
#include "text/document.h"

#include <algorithm>

#include "io/atomic_file.h"

namespace parallax::text {

std::string DocumentText::read(int64_t begin, int64_t count) const {
  if (file_.empty())
    return text_.substr(static_cast<size_t>(begin_ + begin), static_cast<size_t>(count));
  return io::read_part(file_, begin_ + begin, count);
}

DocumentText DocumentText::part(int64_t begin, int64_t end) const {
  if (file_.empty()) return {read(begin, end - begin)};
  DocumentText result = *this;
  result.begin_ = begin_ + begin;
  result.end_ = begin_ + end;
  return result;
}

std::string PieceReader::next() {
  // What no cut is found in is read again with as much after it, so that the work stays linear.
  for (int64_t count = piece_bytes_;; count *= 2) {
    const int64_t rest = text_.size() - position_;
    std::string piece = text_.read(position_, std::min(count, rest));
    if (count < rest) {
      const size_t cut = tokenizer_.last_cut(piece);
      if (cut == 0) continue;
      piece.resize(cut);
    }
    position_ += std::ssize(piece);
    return piece;
  }
}

std::vector<int32_t> encode(const DocumentText& text, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (PieceReader pieces(text, tokenizer); !pieces.at_end();) {
    const std::vector<int32_t> more = tokenizer.encode(pieces.next(), /*parse_special=*/false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

}  // namespace parallax::text
