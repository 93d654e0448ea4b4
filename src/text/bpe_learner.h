// Learns a byte-level BPE tokenizer from text, with the Python package `tokenizers`.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "io/child_process.h"
#include "text/document.h"
#include "text/tokenizer.h"

namespace parallax::text {

/// A running Python program (train_bpe.py) that counts the words of the texts it is given and then
/// learns the merges. The tokenizer cuts text as Qwen's does, changes nothing in it (no
/// normalisation) and has one special token, <|endoftext|>. The same texts give the same tokenizer,
/// whatever their order and however many threads run. Memory: here a piece of text; there the
/// distinct words (0.6 GB for 290 MB of source code).
class BpeLearner {
 public:
  /// The ids without a merge: one per byte, and <|endoftext|>.
  static constexpr int64_t kSmallestVocab = 257;

  /// Starts the first of python_programs() that has the package. Errors: none has it (says what
  /// each answers); a vocabulary below kSmallestVocab.
  explicit BpeLearner(int64_t vocab_size);

  /// Adds a text. Invalid UTF-8 counts as U+FFFD, as encode() takes it.
  void add(const DocumentText& text);
  /// The tokenizer of all texts, once. It has fewer than vocab_size ids if the texts have no pair
  /// left to merge. An Error if the program has ended on its own.
  std::unique_ptr<Tokenizer> learn();

 private:
  void send(std::string_view bytes);
  [[noreturn]] void fail();

  int64_t vocab_size_;
  std::unique_ptr<io::ChildProcess> process_;
  std::unique_ptr<Tokenizer> untrained_;  // knows where a text may be cut
};

}  // namespace parallax::text
