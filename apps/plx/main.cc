// plx: train, evaluate and run language models with Parallax attention.
// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "commands.h"
#include "common.h"
#include "core/nearest_name.h"
#include "core/thread_pool.h"
#include "parallax/version.h"

namespace {

/// `plx help [COMMAND]` is `plx [COMMAND] --help`.
std::vector<const char*> spell_out_help(int argc, char** argv) {
  std::vector<const char*> words(argv, argv + argc);
  if (words.size() > 1 && std::string(words[1]) == "help") {
    words.erase(words.begin() + 1);
    words.resize(words.size() > 1 ? 2 : 1);
    words.push_back("--help");
  }
  return words;
}

/// What is wrong with a word that stands where a command belongs; empty if nothing is.
std::string unknown_command(const CLI::App& app, const std::string& word) {
  if (word.starts_with('-')) return "";
  std::vector<std::string> commands;
  std::string list;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (command->get_name() == word) return "";
    commands.push_back(command->get_name());
    list += (list.empty() ? "" : ", ") + commands.back();
  }
  const std::string nearest = parallax::nearest_name(word, commands);
  return "no command '" + word + "'" +
         (nearest.empty() ? "" : ", the nearest is '" + nearest + "'") + " (commands: " + list +
         "; plx help shows what they do)";
}

/// PLX_NUM_THREADS is the library's; Torch's threads, which run it here, follow.
void apply_num_threads() {
  if (const auto limit = parallax::core::thread_limit()) at::set_num_threads(*limit);
}

/// Every step of training allocates and frees the same large tensors. glibc would hand that memory
/// back and have the system clear it anew: 12 % (recall) to 23 % (text) of the time of the demo's
/// steps.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

/// Whether all that was printed has arrived; if not, it says why on stderr.
bool flush_output() {
  errno = 0;
  std::cout.flush();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout.good()) return true;
  std::cerr << "plx: cannot write to standard output: "
            << (errno != 0 ? std::strerror(errno) : "an earlier part was lost") << '\n';
  return false;
}

int run(CLI::App& app, const std::vector<const char*>& words) {
  try {
    app.parse(static_cast<int>(words.size()), words.data());
    return 0;
  } catch (const CLI::RuntimeError& error) {  // a command's own exit status
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "plx: " << parallax::plx::text_of(error) << '\n';
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  CLI::App app{"plx: train, evaluate and run language models with Parallax attention"};
  app.set_version_flag("--version", PLX_VERSION);
  app.require_subcommand(1);
  parallax::plx::add_prepare(app);
  parallax::plx::add_train(app);
  parallax::plx::add_generate(app);
  parallax::plx::add_eval(app);
  parallax::plx::add_info(app);
  app.parse_complete_callback(apply_num_threads);  // before the command's own
  const std::vector<const char*> words = spell_out_help(argc, argv);
  const std::string fault = words.size() > 1 ? unknown_command(app, words[1]) : "";
  if (!fault.empty()) {
    std::cerr << "plx: " << fault << '\n';
    return 2;
  }
  const int status = run(app, words);
  return flush_output() || status != 0 ? status : 1;
}
