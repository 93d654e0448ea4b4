// The text of a document: in memory, or on disk and read in pieces that tokenise as the whole does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "text/tokenizer.h"

namespace parallax::text {

/// Texts that are longer stay on disk; about this much of them is read and tokenised at a time.
inline constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// Immutable bytes. The file behind them must not change while the document is in use: one that has
/// become shorter is an Error.
class DocumentText {
 public:
  DocumentText(std::string text) : text_(std::move(text)), end_(std::ssize(text_)) {}
  /// The first num_bytes of a file, which is opened for each read only.
  DocumentText(std::filesystem::path file, int64_t num_bytes)
      : file_(std::move(file)), end_(num_bytes) {}

  int64_t size() const { return end_ - begin_; }
  /// Bytes [begin, begin + count).
  std::string read(int64_t begin, int64_t count) const;
  std::string read_all() const { return read(0, size()); }
  /// The text [begin, end); of a file nothing is read.
  DocumentText part(int64_t begin, int64_t end) const;

 private:
  std::string text_;
  std::filesystem::path file_;  // empty: the bytes are in text_
  int64_t begin_ = 0, end_ = 0;
};

/// Cuts a text where Tokenizer::last_cut allows it: the ids of the pieces, joined, are the ids of
/// the whole without parse_special. Memory: a few pieces, and the longest stretch of the text that
/// the tokenizer cannot cut (with byte-level BPE, text without line ends may be one).
class PieceReader {
 public:
  PieceReader(const DocumentText& text, const Tokenizer& tokenizer,
              int64_t piece_bytes = kPieceBytes)
      : text_(text), tokenizer_(tokenizer), piece_bytes_(piece_bytes) {}

  bool at_end() const { return position_ == text_.size(); }
  /// The next piece; not at the end.
  std::string next();

 private:
  const DocumentText& text_;
  const Tokenizer& tokenizer_;
  int64_t piece_bytes_;
  int64_t position_ = 0;  // where the next piece begins
};

/// The ids of a text without parse_special, read in pieces.
std::vector<int32_t> encode(const DocumentText& text, const Tokenizer& tokenizer);

}  // namespace parallax::text
