// Documents are read and written by one thread, in order; their pieces are tokenised by many, a
// batch at a time.
// SPDX-License-Identifier: Apache-2.0
#include "text/prepare.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "io/token_shards.h"
#include "parallax/error.h"

namespace parallax::text {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatchBytesPerThread = 4 << 20;

// Refuses a folder that holds anything but what prepare wrote there: replacing it would delete
// that.
void check_replaceable(const fs::path& output, const std::string& given) {
  PLX_CHECK(fs::exists(output / io::kManifestFile), given,
            ": this folder holds other things than prepared tokens and would be replaced; name "
            "a new folder");
  const io::TokenManifest manifest = io::read_manifest(output);
  std::unordered_set<std::string> own = {io::kManifestFile, io::kTokenizerFile};
  for (const io::Split split : {io::Split::kTrain, io::Split::kValidation}) {
    for (const io::ShardInfo& shard : manifest.split(split).shards) own.insert(shard.file);
  }
  for (const auto& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename().string();
    PLX_CHECK(own.contains(name), given, ": this folder holds ", name, " beside prepared tokens, ",
              "and all of it would be replaced; move ", name, " away or name a new folder");
  }
}

// Refuses to replace a folder that is not ours, and to read what is being written.
void check_output(const PrepareOptions& options) {
  std::error_code unknown;
  const fs::path output = fs::weakly_canonical(options.output, unknown);
  if (fs::is_directory(output, unknown) && !fs::is_empty(output, unknown)) {
    check_replaceable(output, options.output.string());
  }
  for (const fs::path& input : options.corpus.inputs) {
    const fs::path folder = fs::weakly_canonical(input, unknown);
    const auto [end, rest] =
        std::mismatch(folder.begin(), folder.end(), output.begin(), output.end());
    PLX_CHECK(end != folder.end() || !fs::is_directory(folder, unknown), options.output.string(),
              ": the output must not lie in the input folder ", input.string());
  }
}

int32_t find_end_token(const PrepareOptions& options, const Tokenizer& tokenizer) {
  if (!options.end_token.empty()) {
    const auto found = tokenizer.find_special(options.end_token);
    PLX_CHECK(found, "the tokenizer has no special token ", options.end_token,
              " to end documents with");
    return *found;
  }
  std::string names;
  for (const char* name : kEndTokens) names += (names.empty() ? "" : ", ") + std::string(name);
  PLX_CHECK(tokenizer.eos_id(), "the tokenizer has no end-of-document token: none of ", names,
            " is a special token of it; --end-token names another");
  return *tokenizer.eos_id();
}

// A document, or a part of one.
struct Piece {
  io::Split split;
  std::string text;
  std::optional<int64_t> document_bytes;  // with the last part of a document: its length
};

// encode() of every piece, spread over threads; the first exception of any is thrown on.
std::vector<std::vector<int32_t>> encode_all(const std::vector<Piece>& pieces,
                                             const Tokenizer& tokenizer, int num_threads) {
  std::vector<std::vector<int32_t>> tokens(pieces.size());
  std::atomic<size_t> next_idx{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (size_t idx = next_idx++; idx < pieces.size(); idx = next_idx++) {
        tokens[idx] = tokenizer.encode(pieces[idx].text, /*parse_special=*/false);
      }
    } catch (...) {
      const std::scoped_lock lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next_idx = pieces.size();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int idx = 1; idx < num_threads; ++idx) threads.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  return tokens;
}

// Collects pieces of documents, and tokenises and writes them a batch at a time.
class BatchWriter {
 public:
  BatchWriter(const PrepareOptions& options, const Tokenizer& tokenizer, int32_t end_token,
              PrepareProgress progress)
      : tokenizer_(tokenizer),
        num_threads_(options.num_threads),
        piece_bytes_(options.corpus.largest_in_memory),
        progress_(std::move(progress)),
        writer_(options.output, {.vocab_size = tokenizer.vocab_size(),
                                 .eos_id = end_token,
                                 .tokenizer_json = tokenizer.serialized(),
                                 .tokenizer_fingerprint = tokenizer.fingerprint(),
                                 .shard_tokens = options.shard_tokens}) {}

  void add(const Splitter::Item& item) {
    PieceReader pieces(item.text, tokenizer_, piece_bytes_);
    while (!pieces.at_end()) {
      Piece piece{item.split, pieces.next(), {}};
      if (pieces.at_end()) piece.document_bytes = item.text.size();
      batch_bytes_ += std::ssize(piece.text);
      batch_.push_back(std::move(piece));
      if (batch_bytes_ >= kBatchBytesPerThread * num_threads_) write_batch();
    }
  }

  io::TokenManifest commit() {
    write_batch();
    return writer_.commit();
  }

 private:
  void write_batch() {
    const auto tokens = encode_all(batch_, tokenizer_, num_threads_);
    for (size_t idx = 0; idx < batch_.size(); ++idx) {
      const Piece& piece = batch_[idx];
      writer_.append_part(piece.split, tokens[idx]);
      if (!piece.document_bytes) continue;
      writer_.end_document(piece.split, *piece.document_bytes);
      ++num_documents_;
    }
    num_bytes_ += std::exchange(batch_bytes_, 0);
    batch_.clear();
    if (progress_) progress_(num_documents_, num_bytes_);
  }

  const Tokenizer& tokenizer_;
  int num_threads_;
  int64_t piece_bytes_;
  PrepareProgress progress_;
  io::TokenDatasetWriter writer_;
  std::vector<Piece> batch_;
  int64_t batch_bytes_ = 0, num_documents_ = 0, num_bytes_ = 0;
};

// Calls `take` with every document or part of one, and the split that it belongs to.
template <typename Take>
void divide(CorpusReader& reader, const PrepareOptions& options, Take&& take) {
  Splitter splitter(options.validation_fraction, options.seed);
  while (std::optional<Document> document = reader.next()) {
    if (const auto item = splitter.add(std::move(*document))) take(*item);
  }
  for (const Splitter::Item& item : splitter.finish()) take(item);
}

}  // namespace

PrepareResult prepare_tokens(const PrepareOptions& options, const Tokenizer& tokenizer,
                             const PrepareProgress& progress) {
  PLX_CHECK(options.num_threads >= 1, "at least 1 thread is needed, given ", options.num_threads);
  const int32_t end_token = find_end_token(options, tokenizer);
  check_output(options);
  CorpusReader reader(options.corpus);
  BatchWriter writer(options, tokenizer, end_token, progress);
  divide(reader, options, [&](const Splitter::Item& item) { writer.add(item); });
  return {writer.commit(), reader.counts(), reader.has_json_lines(), reader.has_folders()};
}

void add_train_split(BpeLearner& learner, const PrepareOptions& options,
                     const PrepareProgress& progress) {
  check_output(options);
  for (const fs::path& input : options.corpus.inputs) {
    std::error_code unknown;
    PLX_CHECK(!fs::exists(input, unknown) || fs::is_regular_file(input, unknown) ||
                  fs::is_directory(input, unknown),
              input.string(), ": neither a file nor a folder; it can be read once only, and a ",
              "tokenizer that is learnt reads its text twice");
  }
  CorpusReader reader(options.corpus);
  divide(reader, options, [&](const Splitter::Item& item) {
    if (item.split == io::Split::kTrain) learner.add(item.text);
    if (progress) progress(reader.counts().num_documents, reader.counts().num_text_bytes);
  });
}

}  // namespace parallax::text
