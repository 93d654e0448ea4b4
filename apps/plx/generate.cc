// plx generate: continue prompts with a trained model.
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "commands.h"
#include "common.h"
#include "generate/engine.h"
#include "io/atomic_file.h"
#include "parallax/error.h"

namespace parallax::plx {
namespace {

struct GenerateOptions {
  std::filesystem::path checkpoint;
  std::vector<std::string> prompts;
  std::vector<std::filesystem::path> prompt_files;
  generate::Request request;  // what all prompts share
  int64_t num_samples = 1;
  torch::ScalarType dtype = torch::kFloat32;
  std::optional<bool> stream;
  bool echo = false, json = false;
};

/// Every prompt, num_samples times with one seed after the other.
std::vector<generate::Request> make_requests(const GenerateOptions& options) {
  std::vector<std::string> prompts = options.prompts;
  for (const auto& path : options.prompt_files) prompts.push_back(io::read_file(path));
  if (prompts.empty()) {
    if (isatty(STDIN_FILENO) != 0) std::cerr << "Type the prompt, then Ctrl-D.\n";
    prompts.emplace_back(std::istreambuf_iterator<char>(std::cin),
                         std::istreambuf_iterator<char>());
  }
  std::vector<generate::Request> requests;
  for (const std::string& prompt : prompts) {
    for (int64_t sample = 0; sample < options.num_samples; ++sample) {
      requests.push_back(options.request);
      requests.back().prompt = prompt;
      requests.back().sampling.seed += static_cast<uint64_t>(sample);
    }
  }
  return requests;
}

nlohmann::ordered_json to_json(const generate::Request& request,
                               const generate::Completion& completion,
                               const generate::Timing& timing) {
  nlohmann::ordered_json json = {{"prompt", request.prompt},
                                 {"text", completion.text},
                                 {"finish_reason", generate::name(completion.finish_reason)},
                                 {"seed", request.sampling.seed},
                                 {"num_prompt_tokens", completion.num_prompt_tokens},
                                 {"tokens", completion.tokens}};
  if (request.log_probabilities) json["log_probabilities"] = completion.log_probabilities;
  json["prefill_tokens_per_second"] = timing.prefill_tokens_per_second();
  json["decode_tokens_per_second"] = timing.decode_tokens_per_second();
  return json;
}

void print_results(const GenerateOptions& options, const std::vector<generate::Request>& requests,
                   const generate::GenerationResult& result) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const generate::Completion& completion = result.completions[i];
    if (options.json) {
      print_json(to_json(requests[i], completion, result.timing));
      continue;
    }
    if (requests.size() > 1) std::cout << (i > 0 ? "\n" : "") << "==> " << i + 1 << " <==\n";
    std::cout << (options.echo ? requests[i].prompt : "") << completion.text << '\n';
  }
  std::cout.flush();
}

void print_timing(const generate::Timing& timing) {
  std::fprintf(stderr, "prefill %lld tokens, %.1f tokens/s; decode %lld tokens, %.1f tokens/s\n",
               static_cast<long long>(timing.prefill_tokens), timing.prefill_tokens_per_second(),
               static_cast<long long>(timing.decode_tokens), timing.decode_tokens_per_second());
}

void run_generate(const GenerateOptions& options) {
  const std::vector<generate::Request> requests = make_requests(options);
  const bool can_stream = requests.size() == 1 && !options.json;
  PLX_CHECK(
      can_stream || !options.stream.value_or(false),
      "--stream prints one text as it grows: it needs a single prompt, one sample, no --json");
  generate::Pretrained loaded = load_checkpoint(options.checkpoint, options.dtype);
  generate::Engine engine(loaded.model, loaded.tokenizer,
                          {.start_token = loaded.start_token, .eos_tokens = loaded.eos_tokens});

  if (!can_stream || !options.stream.value_or(true)) {
    const generate::GenerationResult result = engine.generate(requests);
    print_results(options, requests, result);
    print_timing(result.timing);
    return;
  }
  bool echo = options.echo;
  const auto print_piece = [&](size_t, std::string_view piece) {
    if (std::exchange(echo, false)) std::cout << requests[0].prompt;
    std::cout << piece << std::flush;
  };
  const generate::GenerationResult result = engine.generate(requests, print_piece);
  if (echo) std::cout << requests[0].prompt;
  std::cout << std::endl;
  print_timing(result.timing);
}

constexpr const char* kGreedy = "without --temperature the most probable token is always taken";

void warn_of_idle_options(const CLI::App& command, const GenerateOptions& options) {
  if (options.request.sampling.temperature == 0.0) {
    warn_without_effect(command, {"--top-k", "--top-p", "--min-p", "--seed"}, kGreedy);
    if (options.num_samples > 1)
      std::cerr << "plx: warning: --samples " << options.num_samples
                << " gives equal texts: " << kGreedy << '\n';
  }
  if (options.json) {
    warn_without_effect(command, {"--echo"}, "the JSON has the prompt anyway");
  } else {
    warn_without_effect(command, {"--log-probabilities"}, "they are printed with --json only");
  }
}

void add_prompt_options(CLI::App& command, GenerateOptions& options) {
  command.add_option("--prompt", options.prompts, "Text to continue; repeat for a batch")
      ->option_text("TEXT")
      ->allow_extra_args(false);
  command.add_option("--prompt-file", options.prompt_files, "File with a text to continue")
      ->option_text("PATH")
      ->allow_extra_args(false)
      ->check(CLI::ExistingFile);
  command.add_flag("--start-token", options.request.add_start_token,
                   "Put the model's start-of-text token before each prompt (Llama 3 wants it); an "
                   "empty prompt gets it anyway");
  command
      .add_option("--samples", options.num_samples,
                  "Texts per prompt, with seeds SEED, SEED + 1, ... (default 1)")
      ->option_text("N")
      ->check(whole_number(1, 4096));
}

void add_sampling_options(CLI::App& command, generate::SamplingOptions& sampling) {
  command
      .add_option("--temperature", sampling.temperature,
                  "Divides the logits; 0 (default) always takes the most probable token")
      ->option_text("X")
      ->check(number({.smallest = 0.0, .largest = 1e6}));
  command
      .add_option("--top-k", sampling.top_k, "Keep the N most probable tokens; 0 (default): all")
      ->option_text("N")
      ->check(whole_number(0, int64_t{1} << 31));
  command
      .add_option("--top-p", sampling.top_p,
                  "Keep the fewest tokens whose probabilities sum to X, 0 < X <= 1 (default 1)")
      ->option_text("X")
      ->check(number({.smallest = 0.0, .largest = 1.0, .is_open_below = true}));
  command
      .add_option("--min-p", sampling.min_p,
                  "Keep tokens at least X times as probable as the best one (default 0)")
      ->option_text("X")
      ->check(number({.smallest = 0.0, .largest = 1.0}));
  command.add_option("--seed", sampling.seed, "Of the random choices (default 0)")
      ->option_text("N")
      ->check(whole_number(0));
}

void add_ending_options(CLI::App& command, generate::Request& request) {
  command
      .add_option("--max-tokens", request.max_tokens,
                  "New tokens at most (default 256, or what the model's context has room for)")
      ->option_text("N")
      ->check(whole_number(1, int64_t{1} << 31));
  command
      .add_option("--stop", request.stop,
                  "End before this text; repeat for several ($'\\n' is a newline in bash)")
      ->option_text("TEXT")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", request.ignore_eos, "Go on after an end-of-text token");
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue prompts with a trained model");
  const auto options = std::make_shared<GenerateOptions>();
  add_checkpoint_argument(*command, options->checkpoint);
  add_prompt_options(*command, *options);
  add_ending_options(*command, options->request);
  add_sampling_options(*command, options->request.sampling);
  add_dtype_option(*command, options->dtype);
  command->add_flag_callback(
      "--stream", [options] { options->stream = true; },
      "Print the text as it grows (default for a single text)");
  command->add_flag_callback(
      "--no-stream", [options] { options->stream = false; }, "Print texts when all are done");
  command->add_flag("--echo", options->echo, "Print the prompt before its continuation");
  command->add_flag("--json", options->json,
                    "One JSON object per text: text, tokens, finish_reason, speed, ...");
  command->add_flag("--log-probabilities", options->request.log_probabilities,
                    "Add each token's log-probability to the JSON");
  command->footer(
      "The prompt comes from --prompt, --prompt-file or standard input. Texts go to standard\n"
      "output, speed to standard error. Filters apply in the order temperature, top-k, top-p, "
      "min-p;\nwithout --temperature they and the seed do nothing.\n\n"
      "Example:\n"
      "  plx generate runs/demo/text_parallax/latest --prompt 'def ' --max-tokens 200 \\\n"
      "      --temperature 0.8 --top-p 0.95 --seed 1");
  command->callback([command, options] {
    warn_of_idle_options(*command, *options);
    run_generate(*options);
  });
}

}  // namespace parallax::plx
