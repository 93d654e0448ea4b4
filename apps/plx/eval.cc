// plx eval: perplexity and bits per byte of a model on text or on prepared tokens.
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "common.h"
#include "evaluate/perplexity.h"
#include "io/token_shards.h"
#include "parallax/error.h"
#include "text/corpus.h"

namespace parallax::plx {
namespace {

struct EvalOptions {
  std::filesystem::path checkpoint, data;
  std::string field = "text", split = "validation";
  int64_t context = 0, stride = 0, batch_size = 0;
  torch::ScalarType dtype = torch::kFloat32;
  bool json = false;
};

/// One line on stderr: rewritten in place on a terminal, every ten seconds elsewhere.
class Progress {
 public:
  void update(int64_t num_tokens) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < (is_terminal_ ? std::chrono::seconds(1) : std::chrono::seconds(10))) return;
    last_ = now;
    is_shown_ = true;
    std::fprintf(stderr, "%seval: %lld tokens, %.0f tokens/s%s", is_terminal_ ? "\r" : "",
                 static_cast<long long>(num_tokens), static_cast<double>(num_tokens) / seconds(),
                 is_terminal_ ? "  " : "\n");
  }
  void finish() const {
    if (is_terminal_ && is_shown_) std::fputc('\n', stderr);
  }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_ = start_;
  bool is_shown_ = false;
};

void add_text(const CLI::App& command, const EvalOptions& options, const text::Tokenizer& tokenizer,
              evaluate::PerplexityMeter& meter, Progress& progress) {
  text::CorpusReader reader({.inputs = {options.data}, .field = options.field});
  if (!reader.has_json_lines()) warn_without_effect(command, {"--field"}, kNoJsonLines);
  while (const std::optional<text::Document> document = reader.next()) {
    meter.add_document(text::encode(document->text, tokenizer), document->text.size());
    progress.update(meter.num_scored());
  }
}

/// Prepared tokens are documents, each ended by the end-of-document token, which is not scored: the
/// result is that of the documents as text.
void add_shards(const EvalOptions& options, const text::Tokenizer& tokenizer,
                evaluate::PerplexityMeter& meter, Progress& progress) {
  constexpr int64_t kReadTokens = int64_t{1} << 16;
  const io::Split split = options.split == "train" ? io::Split::kTrain : io::Split::kValidation;
  const io::TokenDataset dataset(options.data, split, tokenizer.vocab_size());
  const io::TokenManifest& manifest = dataset.manifest();
  PLX_CHECK(manifest.tokenizer_fingerprint == tokenizer.fingerprint(), "the tokens in ",
            options.data, " were made by another tokenizer than the checkpoint's: fingerprints ",
            manifest.tokenizer_fingerprint, " and ", tokenizer.fingerprint());
  const io::Split other = split == io::Split::kTrain ? io::Split::kValidation : io::Split::kTrain;
  PLX_CHECK(dataset.num_tokens() > 0, "nothing to evaluate: split ", io::split_name(split), " of ",
            options.data.string(), " holds no tokens; --split ", io::split_name(other), " has ",
            manifest.split(other).num_tokens);
  std::vector<int64_t> read;
  std::vector<int32_t> document;
  int64_t num_bytes = dataset.info().num_text_bytes;  // counted with the first document
  const auto end_document = [&] {
    meter.add_document(document, std::exchange(num_bytes, 0));
    document.clear();
    progress.update(meter.num_scored());
  };
  for (int64_t start = 0; start < dataset.num_tokens(); start += kReadTokens) {
    read.resize(static_cast<size_t>(std::min(kReadTokens, dataset.num_tokens() - start)));
    dataset.read(start, read);
    for (const int64_t token : read) {
      if (token != manifest.eos_id) {
        document.push_back(static_cast<int32_t>(token));
      } else {
        end_document();
      }
    }
  }
  if (!document.empty()) end_document();
}

void print_result(const EvalOptions& options, const evaluate::PerplexityResult& result,
                  double seconds) {
  const evaluate::Score& score = result.score;
  const double rate = static_cast<double>(score.num_targets) / seconds;
  if (options.json) {
    print_json({{"checkpoint", options.checkpoint.string()},
                {"data", options.data.string()},
                {"context", options.context},
                {"stride", options.stride},
                {"documents", result.num_documents},
                {"tokens", score.num_targets},
                {"bytes", result.num_bytes},
                {"loss", score.loss()},
                {"perplexity", score.perplexity()},
                {"bits_per_byte", result.bits_per_byte()},
                {"accuracy", score.accuracy()},
                {"seconds", seconds},
                {"tokens_per_second", rate}});
    return;
  }
  std::printf("documents            %12lld\n", static_cast<long long>(result.num_documents));
  std::printf("tokens               %12lld\n", static_cast<long long>(score.num_targets));
  std::printf("bytes                %12lld\n", static_cast<long long>(result.num_bytes));
  std::printf("context, stride      %12lld, %lld tokens\n", static_cast<long long>(options.context),
              static_cast<long long>(options.stride));
  std::printf("loss                 %12.4f nats/token\n", score.loss());
  std::printf("perplexity           %12.4f per token\n", score.perplexity());
  std::printf("bits per byte        %12.4f\n", result.bits_per_byte());
  std::printf("next-token accuracy  %12.4f\n", score.accuracy());
  std::printf("time                 %12.1f s, %.0f tokens/s\n", seconds, rate);
}

void run_eval(const CLI::App& command, EvalOptions options) {
  const generate::Pretrained loaded = load_checkpoint(options.checkpoint, options.dtype);
  const int64_t max_positions = loaded.model->config().max_position_embeddings;
  if (options.context == 0) options.context = std::min<int64_t>(max_positions, 1024);
  if (options.stride == 0) options.stride = options.context;
  if (options.batch_size == 0) {
    options.batch_size = std::max<int64_t>(1, 4096 / options.context);
  }
  evaluate::PerplexityMeter meter(loaded.model, {.context = options.context,
                                                 .stride = options.stride,
                                                 .batch_size = options.batch_size,
                                                 .start_token = loaded.start_token});
  Progress progress;
  if (std::filesystem::exists(options.data / io::kManifestFile)) {
    warn_without_effect(command, {"--field"}, "prepared tokens have no fields");
    add_shards(options, *loaded.tokenizer, meter, progress);
  } else {
    warn_without_effect(command, {"--split"}, "only prepared tokens are split");
    add_text(command, options, *loaded.tokenizer, meter, progress);
  }
  const evaluate::PerplexityResult result = meter.finish();
  progress.finish();
  PLX_CHECK(result.score.num_targets > 0, "nothing to evaluate: ", options.data,
            " holds no tokens");
  print_result(options, result, progress.seconds());
}

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("eval", "Measure a model's perplexity and bits per byte on text");
  const auto options = std::make_shared<EvalOptions>();
  add_checkpoint_argument(*command, options->checkpoint);
  command
      ->add_option("--data", options->data,
                   "Text file, folder, JSON lines (.jsonl), or a folder that `plx prepare` made")
      ->option_text("PATH")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("--field", options->field, "JSON lines: the field with the text")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--split", options->split, "Prepared tokens: train or validation (default)")
      ->option_text("NAME")
      ->check(CLI::IsMember({"train", "validation"}));
  const CLI::Validator positive = whole_number(1, int64_t{1} << 31);
  command
      ->add_option("--context", options->context,
                   "Tokens per window (default: 1024, or what the model has positions for)")
      ->option_text("N")
      ->check(positive);
  command
      ->add_option("--stride", options->stride,
                   "Tokens a window moves on (default: the context); less gives every token more "
                   "text before it, and takes longer")
      ->option_text("N")
      ->check(positive);
  command->add_option("--batch-size", options->batch_size, "Windows computed at a time")
      ->option_text("N")
      ->check(positive);
  add_dtype_option(*command, options->dtype);
  command->add_flag("--json", options->json, "As one JSON object");
  command->footer(
      "Each document is scored on its own, its first token after the start-of-text token. Bits "
      "per\n"
      "byte count the bytes of the original text, so models with different tokenizers compare.\n"
      "Results go to standard output, progress to standard error.\n\n"
      "Example:\n"
      "  plx eval runs/demo/text_parallax/latest --data runs/demo/corpus");
  command->callback([command, options] { run_eval(*command, *options); });
}

}  // namespace parallax::plx
