// From a corpus to a folder of token shards.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "io/token_manifest.h"
#include "text/bpe_learner.h"
#include "text/corpus.h"
#include "text/tokenizer.h"

namespace parallax::text {

struct PrepareOptions {
  CorpusOptions corpus;
  std::filesystem::path output;
  double validation_fraction = 0.05;
  uint64_t seed = 0;
  int64_t shard_tokens = int64_t{1} << 27;
  int num_threads = 1;
  /// The special token that ends documents; the tokenizer's eos_id() if empty.
  std::string end_token = {};
};

struct PrepareResult {
  io::TokenManifest manifest;
  CorpusCounts counts;
  bool has_json_lines = false;  // whether the field option mattered
  bool has_folders = false;     // whether the include option did
};

/// Called with the documents and bytes of text that are written so far.
using PrepareProgress = std::function<void(int64_t num_documents, int64_t num_bytes)>;

/// Reads, divides (Splitter) and tokenises the corpus and writes it to `output`, which appears only
/// when all of it is written; tokens prepared there earlier are replaced. Special tokens that stand
/// in the text are ordinary text. Same input, same bytes, for any number of threads. `progress` is
/// called after every few megabytes. Memory: that of CorpusReader and PieceReader, and 4 MB of text
/// with its tokens per thread.
///
/// Errors: those of CorpusReader; a tokenizer without end-of-document token; an output folder that
/// holds anything else than prepared tokens, or lies in a folder that is read.
PrepareResult prepare_tokens(const PrepareOptions& options, const Tokenizer& tokenizer,
                             const PrepareProgress& progress = {});

/// Gives the learner the documents of the train split that prepare_tokens() writes with the same
/// options, so that nothing held out shapes the tokenizer. Errors: those of CorpusReader and of the
/// output folder above; an input that is no file or folder (a pipe), as it will be read again.
void add_train_split(BpeLearner& learner, const PrepareOptions& options,
                     const PrepareProgress& progress = {});

}  // namespace parallax::text
