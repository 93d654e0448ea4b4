// plx train: one run of a recipe.
// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "common.h"
#include "core/grouped.h"
#include "parallax/error.h"
#include "train/device.h"
#include "train/distributed.h"
#include "train/launcher.h"
#include "train/trainer.h"

namespace parallax::plx {
namespace {

namespace fs = std::filesystem;

struct TrainArguments {
  std::string recipe, output, data;
  std::vector<std::string> settings;
  int64_t steps = 0, stop_at = 0, processes = 1;
  std::string profile;
  bool resume = false, overwrite = false, quiet = false;
};

constexpr const char* kExamples = R"(
Examples:
  plx train recipes/demo_recall_parallax.toml
  plx train recipes/demo_text_parallax.toml --data runs/tokens --output runs/text
  plx train recipes/demo_text_parallax.toml --output runs/text --resume
  plx train recipes/demo_recall_softmax.toml --set optimizer.lr=0.01 --steps 50
  plx train recipes/demo_text_softmax.toml --processes 2

The output folder gets metrics.jsonl (one JSON object per line) and checkpoints, which are Hugging
Face folders: `plx generate OUTPUT/latest` and `plx eval OUTPUT/latest` read them. Ctrl-C finishes
the step, saves and stops; --resume goes on from there, bit for bit as if nothing had happened.)";

/// The longest ones, per step.
void print_kernels(const std::vector<train::KernelTime>& kernels) {
  constexpr size_t kMaxRows = 25, kMaxName = 80;
  if (kernels.empty()) return;
  double total_ms = 0;
  for (const train::KernelTime& kernel : kernels) total_ms += kernel.ms;
  constexpr auto kSteps = static_cast<double>(train::StepProfile::kSteps);
  std::cout << "\nms per step  share  calls per step  kernel\n" << std::fixed;
  for (size_t idx = 0; idx < std::min(kMaxRows, kernels.size()); ++idx) {
    const train::KernelTime& kernel = kernels[idx];
    std::cout << std::right << std::setprecision(3) << std::setw(11) << kernel.ms / kSteps
              << std::setprecision(1) << std::setw(6) << 100 * kernel.ms / total_ms << '%'
              << std::setw(16) << static_cast<double>(kernel.num_calls) / kSteps << "  "
              << kernel.name.substr(0, kMaxName) << '\n';
  }
  std::cout << std::setprecision(3) << std::setw(11) << total_ms / kSteps << "  in all"
            << std::endl;
}

void print_summary(const train::Trainer& trainer, const train::RunSummary& summary) {
  const auto row = [](const char* name) -> std::ostream& {
    return std::cout << std::left << std::setw(22) << name;
  };
  row("steps") << summary.state.step << " of " << trainer.recipe().train.steps << '\n';
  row("tokens") << core::grouped(summary.state.num_tokens) << '\n';
  if (summary.state.seconds > 0)
    row("tokens/s") << core::grouped(std::llround(static_cast<double>(summary.state.num_tokens) /
                                                  summary.state.seconds))
                    << '\n';
  if (summary.last_loss) row("loss of the last step") << *summary.last_loss << '\n';
  if (const auto& evaluation = summary.evaluation) {
    row("validation loss") << evaluation->loss << '\n';
    row("validation perplexity") << std::exp(evaluation->loss) << '\n';
    if (evaluation->bits_per_byte) row("bits per byte") << *evaluation->bits_per_byte << '\n';
    if (evaluation->accuracy) row("accuracy") << *evaluation->accuracy << '\n';
  }
  if (const auto share = summary.speed.find("model_flops_utilization");
      share != summary.speed.end())
    row("model FLOPs of peak") << 100 * share->get<double>() << " %\n";
  row("peak memory") << core::grouped(summary.peak_memory_bytes >> 20) << " MiB\n";
  row("checkpoint") << summary.checkpoint.string() << std::endl;
  print_kernels(summary.kernels);
}

/// Trains as one of the processes of a run; mostly the only one.
int train_with(const std::shared_ptr<optim::Ranks>& ranks, const train::Recipe& recipe,
               train::RunOptions options) {
  options.ranks = ranks;
  const fs::path output = options.output;
  train::Trainer trainer(recipe, std::move(options));
  if (ranks->is_first()) {
    for (const auto& warning : trainer.warnings()) std::cerr << "plx: warning: " << warning << '\n';
    for (const auto& line : trainer.description()) std::cout << line << '\n';
    std::cout << "output     " << output.string() << "\n" << std::endl;
  }
  const train::RunSummary summary = trainer.run();
  if (ranks->is_first()) print_summary(trainer, summary);
  if (summary.signal == 0) return 0;
  if (ranks->is_first())
    std::cerr << "plx: stopped by " << (summary.signal == SIGINT ? "SIGINT" : "SIGTERM")
              << " after step " << summary.state.step << ", which is saved; --resume continues\n";
  return 128 + summary.signal;
}

/// Ends one of several processes after an error; only one that has something to say says it. What
/// runs at a normal end does not: threads of c10d may still wait for a rank that is lost.
[[noreturn]] void end_rank(const train::RankPlace& place, const std::exception& error) {
  const bool is_lost = dynamic_cast<const train::LostRank*>(&error) != nullptr;
  const bool is_told = dynamic_cast<const optim::OtherRankTells*>(&error) != nullptr;
  if (is_lost && place.rank == 0)
    std::cerr << "plx: " << text_of(error) << std::endl;
  else if (!is_lost && !is_told)
    std::cerr << "plx: rank " << place.rank << ": " << text_of(error) << std::endl;
  std::cout.flush();
  std::_Exit(1);
}

int run_rank(const train::Recipe& recipe, const train::RankPlace& place,
             train::RunOptions options) {
  train::end_with_launcher();
  options.local_rank = place.local_rank;
  const auto train_as_rank = [&] {
    const auto device = train::choose_device(recipe.train.device, place.local_rank);
    const std::chrono::seconds timeout(recipe.train.timeout_seconds);
    return train_with(train::join_ranks(place, device, timeout), recipe, options);
  };
  if (place.size == 1) return train_as_rank();
  try {
    return train_as_rank();
  } catch (const std::exception& error) {
    end_rank(place, error);
  }
}

/// This process's command line without --processes.
std::vector<std::string> command_of_a_rank() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) {
    if (word == "--processes")
      std::getline(file, word, '\0');  // its number
    else if (!word.starts_with("--processes="))
      words.push_back(word);
  }
  PLX_CHECK(words.size() > 1, "cannot read this program's command line in /proc/self/cmdline");
  words[0] = fs::read_symlink("/proc/self/exe").string();
  return words;
}

int run_train(const TrainArguments& arguments) {
  const train::RankPlace place = train::rank_place();
  auto settings = arguments.settings;
  if (!arguments.data.empty()) settings.push_back("data.path=" + arguments.data);
  if (arguments.steps > 0) settings.push_back("train.steps=" + std::to_string(arguments.steps));
  const fs::path recipe_path = arguments.recipe;
  const fs::path output =
      arguments.output.empty() ? "runs" / recipe_path.stem() : fs::path(arguments.output);
  std::optional<fs::path> resumed;
  if (arguments.resume) resumed = train::CheckpointStore(output).latest();
  const train::Recipe recipe = train::load_recipe(recipe_path, settings, resumed);
  const bool speaks = place.rank == 0 && arguments.processes == 1;
  for (const auto& warning : speaks ? train::warnings(recipe) : std::vector<std::string>())
    std::cerr << "plx: warning: " << recipe_path.string() << ": " << warning << '\n';
  if (speaks && arguments.stop_at > recipe.train.steps)
    std::cerr << "plx: warning: --stop-at " << arguments.stop_at
              << " has no effect: train.steps is " << recipe.train.steps << '\n';

  if (arguments.processes > 1) {
    PLX_CHECK(place.size == 1, "--processes ", arguments.processes,
              " starts processes of its own, and this one was started as one of ", place.size,
              " (WORLD_SIZE): leave --processes out under torchrun");
    return train::launch(
        {.num_processes = static_cast<int>(arguments.processes), .command = command_of_a_rank()});
  }
  return run_rank(recipe, place,
                  {.output = output,
                   .resume = arguments.resume,
                   .overwrite = arguments.overwrite,
                   .stop_at = arguments.stop_at,
                   .show_progress = !arguments.quiet,
                   .profile = arguments.profile});
}

}  // namespace

void add_train(CLI::App& app) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a recipe says");
  command->footer(kExamples);
  command
      ->add_option("RECIPE", arguments->recipe, "TOML file: model, data, optimizer, schedule, ...")
      ->option_text("(required)")
      ->required();
  command
      ->add_option("-o,--output", arguments->output,
                   "Folder for checkpoints and metrics.jsonl (default: runs/<recipe's name>)")
      ->type_name("PATH");
  command
      ->add_option("--data", arguments->data,
                   "Token folder made by `plx prepare`; short for --set data.path=...")
      ->type_name("PATH");
  command
      ->add_option("--set", arguments->settings,
                   "Override a setting of the recipe, section.key=value; repeatable")
      ->option_text("SETTING");
  command->add_option("--steps", arguments->steps, "Short for --set train.steps=...")
      ->type_name("N")
      ->check(whole_number(1));
  command
      ->add_option("--stop-at", arguments->stop_at,
                   "Save and stop after this step; the schedule stays that of all steps")
      ->type_name("N")
      ->check(whole_number(1));
  command
      ->add_option("--processes", arguments->processes,
                   "Train with this many processes on this machine, each with its GPU where there "
                   "are GPUs; together they train as one does")
      ->type_name("N")
      ->check(whole_number(1, 1024));
  auto* resume = command->add_flag("--resume", arguments->resume,
                                   "Continue from the newest checkpoint in the output folder, or "
                                   "start if there is none");
  command
      ->add_option("--profile", arguments->profile,
                   "Record steps 11 to 13 of this call: a file in Chrome's trace format (Perfetto "
                   "shows it), and on a GPU a table of its kernels")
      ->type_name("FILE");
  command->add_flag("--overwrite", arguments->overwrite, "Delete an older run in the output folder")
      ->excludes(resume);
  command->add_flag("-q,--quiet", arguments->quiet, "No progress on stderr");
  command
      ->add_flag_callback(
          "--list-settings",
          [] {
            std::cout << train::describe_settings();
            throw CLI::Success();
          },
          "Print every setting of a recipe with its default, and stop")
      ->trigger_on_parse();  // before the recipe is found to be missing
  command->callback([arguments] {
    if (const int status = run_train(*arguments); status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace parallax::plx
