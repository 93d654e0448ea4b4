// plx prepare: text to token shards.
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "commands.h"
#include "common.h"
#include "core/thread_pool.h"
#include "text/prepare.h"
#include "text/tokenizer.h"

namespace parallax::plx {
namespace {

constexpr const char* kFooter = R"(Inputs are text files (one document each), folders (searched
recursively; files that are not text are left out with a warning) and .jsonl files (one JSON object
per line, one document each; read as a stream, so they may be larger than memory). Documents with
the same bytes are kept once. Each document goes to train or validation by a hash of its text; when
there are so few that validation would stay empty, the tail of the largest one becomes validation.

--train-bpe learns a byte-level BPE from the train documents first, with the Python package
tokenizers, and writes it beside the tokens as tokenizer.json; --tokenizer reads it from there.

The output folder appears when everything is written; tokens prepared there before are replaced.

Examples:
  plx prepare --output data/python --python-sources
  plx prepare --output data/books books/ more.txt
  plx prepare --output data/web --tokenizer models/Qwen3-0.6B --field content web.jsonl
  plx prepare --output data/code --train-bpe 16384 --include '*.py' --include '*.pyi' src/)";

struct Arguments {
  text::PrepareOptions options;
  std::string tokenizer = "bytes";
  int64_t train_bpe = 0;  // ids of the tokenizer to learn; 0: `tokenizer` is used
};

// One line on stderr, rewritten in place on a terminal, once a second otherwise.
class ProgressLine {
 public:
  explicit ProgressLine(const char* what) : what_(what) {}
  void update(int64_t num_documents, int64_t num_bytes) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::seconds(1)) return;
    last_ = now;
    const double megabytes = static_cast<double>(num_bytes) * 1e-6;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    std::fprintf(stderr, "%s%s: %lld documents, %.1f MB, %.1f MB/s%s", is_terminal_ ? "\r" : "",
                 what_, static_cast<long long>(num_documents), megabytes, megabytes / seconds,
                 is_terminal_ ? "  " : "\n");
    is_shown_ = true;
  }
  void finish() const {
    if (is_terminal_ && is_shown_) std::fputc('\n', stderr);
  }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const char* what_;
  const bool is_terminal_ = ::isatty(STDERR_FILENO) == 1;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_ = start_;
  bool is_shown_ = false;
};

void print_left_out(const std::vector<std::string>& files, const char* reason) {
  constexpr size_t kMostShown = 5;
  for (size_t idx = 0; idx < files.size() && idx < kMostShown; ++idx) {
    std::fprintf(stderr, "plx: warning: left out, %s: %s\n", reason, files[idx].c_str());
  }
  if (files.size() > kMostShown) {
    std::fprintf(stderr, "plx: warning: left out, %s: %zu more files\n", reason,
                 files.size() - kMostShown);
  }
}

void print_split(io::Split which, const io::SplitInfo& split) {
  const double bytes_per_token = split.num_tokens == 0 ? 0.0
                                                       : static_cast<double>(split.num_text_bytes) /
                                                             static_cast<double>(split.num_tokens);
  std::printf("%-12s %12lld %15lld %15lld %12.3f %8zu\n", split_name(which),
              static_cast<long long>(split.num_documents), static_cast<long long>(split.num_tokens),
              static_cast<long long>(split.num_text_bytes), bytes_per_token, split.shards.size());
}

void print_summary(const text::PrepareOptions& options, const text::PrepareResult& result,
                   double seconds) {
  std::printf("%-12s %12s %15s %15s %12s %8s\n", "split", "documents", "tokens", "text bytes",
              "bytes/token", "shards");
  print_split(io::Split::kTrain, result.manifest.train);
  print_split(io::Split::kValidation, result.manifest.validation);
  std::printf("left out: %lld duplicates, %lld empty, %zu not text",
              static_cast<long long>(result.counts.num_duplicates),
              static_cast<long long>(result.counts.num_empty), result.counts.not_text.size());
  if (options.corpus.utf8_only) std::printf(", %zu not UTF-8", result.counts.not_utf8.size());
  std::printf("\n");
  std::printf("vocabulary %lld, %.1f s, written to %s\n",
              static_cast<long long>(result.manifest.vocab_size), seconds,
              options.output.string().c_str());
}

std::unique_ptr<text::Tokenizer> learn_tokenizer(const Arguments& arguments) {
  text::BpeLearner learner(arguments.train_bpe);  // before the corpus is read: it may not start
  ProgressLine line("tokenizer");
  text::add_train_split(learner, arguments.options, [&](int64_t num_documents, int64_t num_bytes) {
    line.update(num_documents, num_bytes);
  });
  line.finish();
  std::fprintf(stderr, "tokenizer: learning up to %lld tokens\n",
               static_cast<long long>(arguments.train_bpe));
  auto tokenizer = learner.learn();
  if (tokenizer->vocab_size() < arguments.train_bpe) {
    std::fprintf(stderr, "plx: warning: the text has no more pairs to merge: %d tokens, not %lld\n",
                 tokenizer->vocab_size(), static_cast<long long>(arguments.train_bpe));
  }
  return tokenizer;
}

std::unique_ptr<text::Tokenizer> make_tokenizer(const Arguments& arguments) {
  if (arguments.train_bpe > 0) return learn_tokenizer(arguments);
  if (arguments.tokenizer == "bytes") return text::make_byte_tokenizer();
  return text::load_tokenizer(arguments.tokenizer);
}

void prepare(const CLI::App& command, Arguments& arguments) {
  if (arguments.options.num_threads == 0) arguments.options.num_threads = core::num_threads();
  const auto tokenizer = make_tokenizer(arguments);
  ProgressLine line("prepare");
  const text::PrepareResult result = text::prepare_tokens(
      arguments.options, *tokenizer,
      [&](int64_t num_documents, int64_t num_bytes) { line.update(num_documents, num_bytes); });
  line.finish();
  if (!result.has_json_lines) warn_without_effect(command, {"--field"}, kNoJsonLines);
  if (!result.has_folders) warn_without_effect(command, {"--include"}, "no input is a folder");
  if (arguments.options.validation_fraction == 0.0) {
    warn_without_effect(command, {"--seed"}, "nothing is held out");
  }
  print_left_out(result.counts.not_text, "not text");
  print_left_out(result.counts.not_utf8, "not UTF-8");
  print_summary(arguments.options, result, line.seconds());
}

}  // namespace

void add_prepare(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("prepare", "Turn text into the token files that training reads");
  command->footer(kFooter);
  const auto arguments = std::make_shared<Arguments>();
  text::PrepareOptions& options = arguments->options;
  options.num_threads = 0;
  command->add_option("INPUT", options.corpus.inputs, "Text files, folders, .jsonl files")
      ->type_name("PATH");
  command->add_option("-o,--output", options.output, "Folder to write")
      ->type_name("PATH")
      ->required();
  command->add_flag("--python-sources", options.corpus.python_sources,
                    "Add the source files of the Python standard library found on this machine");
  command
      ->add_option("--include", options.corpus.include,
                   "Read only those files of folders whose names match, such as '*.py'; repeatable")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command->add_flag("--utf8-only", options.corpus.utf8_only,
                    "Leave out text files of folders that are not valid UTF-8");
  auto* tokenizer =
      command
          ->add_option(
              "--tokenizer", arguments->tokenizer,
              "A tokenizer.json or the folder that holds one; or bytes: one token per byte")
          ->type_name("PATH")
          ->capture_default_str();
  auto* train_bpe =
      command
          ->add_option("--train-bpe", arguments->train_bpe,
                       "Learn a BPE tokenizer of so many tokens from the text, and use it")
          ->type_name("VOCAB")
          ->check(whole_number(text::BpeLearner::kSmallestVocab, int64_t{1} << 20))
          ->excludes(tokenizer);
  command
      ->add_option("--end-token", options.end_token,
                   "The special token that ends documents, where it is none of <|endoftext|>, "
                   "<|end_of_text|>, </s>, <eos>")
      ->type_name("TEXT")
      ->excludes(train_bpe);
  command
      ->add_option("--validation-fraction", options.validation_fraction,
                   "Share of the documents held out for validation, 0 for none")
      ->type_name("X")
      ->check(number({.smallest = 0.0, .largest = 0.999}))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "Which documents are held out")
      ->type_name("N")
      ->check(whole_number(0))
      ->capture_default_str();
  command
      ->add_option("--field", options.corpus.field,
                   "The field of .jsonl objects that holds the text")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--shard-tokens", options.shard_tokens, "Tokens per output file")
      ->type_name("N")
      ->check(whole_number(1))
      ->capture_default_str();
  command
      ->add_option("--threads", options.num_threads,
                   "Threads that tokenise (default: PLX_NUM_THREADS, or the cores)")
      ->type_name("N")
      ->check(whole_number(1, 4096));
  command->callback([command, arguments] { prepare(*command, *arguments); });
}

}  // namespace parallax::plx
