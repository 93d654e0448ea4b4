// attention_bench: attention forward, backward and decode on the CPU, beside PyTorch's
// scaled_dot_product_attention in the same process with as many threads.
// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "machine.h"
#include "parallax/backend.h"
#include "peaks.h"
#include "timing.h"

namespace parallax::bench {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::vector<std::string> calls{"forward", "backward", "decode"};
  std::vector<std::string> dtypes{"bfloat16", "float32"};
  std::vector<int64_t> tokens{}, head_dims{};
  std::string output{}, commit{"unknown"};
  TimingOptions timing{};
  int num_threads = 0;
  bool only_ours = false;
};

bool contains(const auto& list, const auto& value) {
  return std::ranges::find(list, value) != list.end();
}

/// The shapes whose times are quoted (docs/kernels/cpu.md).
std::vector<AttentionCase> standard_cases() {
  std::vector<AttentionCase> cases;
  for (const Call call : {Call::kForward, Call::kBackward}) {
    for (const int64_t tokens : {1024, 2048, 4096, 8192})
      cases.push_back({.call = call, .tokens = tokens});
    cases.push_back({.call = call, .heads = 16, .tokens = 2048, .head_dim = 64});
  }
  cases.push_back({.call = Call::kDecode, .tokens = 4096});
  cases.push_back({.call = Call::kDecode, .heads = 16, .tokens = 16384});
  cases.push_back({.call = Call::kDecode, .batch = 4, .heads = 16, .tokens = 4096});
  return cases;
}

std::vector<AttentionCase> select_cases(const Options& options) {
  std::vector<AttentionCase> shapes = standard_cases(), cases;
  if (!options.tokens.empty() || !options.head_dims.empty()) {  // a sweep instead
    shapes.clear();
    for (const Call call : {Call::kForward, Call::kBackward, Call::kDecode})
      for (const int64_t t : options.tokens.empty() ? std::vector<int64_t>{2048} : options.tokens)
        for (const int64_t d :
             options.head_dims.empty() ? std::vector<int64_t>{128} : options.head_dims)
          shapes.push_back({.call = call, .tokens = t, .head_dim = d});
  }
  for (const auto dtype : {torch::kBFloat16, torch::kFloat16, torch::kFloat32})
    for (AttentionCase shape : shapes) {
      shape.dtype = dtype;
      if (contains(options.calls, shape.call_name()) &&
          contains(options.dtypes, shape.dtype_name()))
        cases.push_back(shape);
    }
  return cases;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

/// The fastest of those that compute where the cases' tensors are.
const Backend& cpu_backend() {
  return **std::ranges::find(backends(), DeviceType::kCpu, &Backend::device_type);
}

/// What every line of a result file says about where it comes from.
ordered_json describe_run(const Options& options, const Limits& limits) {
  const plx::Machine machine = plx::read_machine();
  ordered_json run = {{"date", today()},
                      {"commit", options.commit},
                      {"cpu", machine.cpu_model},
                      {"instruction_sets", machine.instruction_sets},
                      {"threads", at::get_num_threads()},
                      {"backend", std::string(cpu_backend().description())},
                      {"torch", TORCH_VERSION},
                      {"fma_gflops", limits.fma_gflops},
                      {"read_gbytes", limits.read_gbytes}};
  if (limits.amx_gflops) run["amx_gflops"] = *limits.amx_gflops;
  if (limits.bf16_dot_gflops) run["bf16_dot_gflops"] = *limits.bf16_dot_gflops;
  return run;
}

ordered_json run_case(const AttentionCase& which, const Options& options, const Limits& limits) {
  const AttentionTask task(which);
  const double error = task.check();
  std::vector<Candidate> candidates = task.candidates();
  if (options.only_ours) candidates.resize(1);
  std::vector<std::function<void()>> calls;
  for (const Candidate& candidate : candidates) calls.push_back(candidate.run);
  const std::vector<Timing> timings = time_in_turn(calls, options.timing);

  ordered_json result = {
      {"call", which.call_name()},  {"dtype", which.dtype_name()},
      {"shape", which.shape()},     {"relative_error", error},
      {"ms", timings[0].median_ms}, {"quartiles_ms", {timings[0].low_ms, timings[0].high_ms}},
      {"rounds", timings[0].count}};
  const double seconds = 1e-3 * timings[0].median_ms;
  const bool decodes = which.call == Call::kDecode;
  const double rate = 1e-9 * (decodes ? which.bytes() : which.flops()) / seconds;
  const double unit_limit =
      which.dtype == torch::kBFloat16 ? limits.bf16_gflops() : limits.fma_gflops;
  result[decodes ? "gbytes_per_s" : "gflops"] = rate;
  result["share_of_limit"] = rate / (decodes ? limits.read_gbytes : unit_limit);
  for (size_t idx = 1; idx < timings.size(); ++idx)
    result["peers_ms"][candidates[idx].name] = timings[idx].median_ms;
  if (timings.size() > 1) {
    double best = timings[1].median_ms;
    for (size_t idx = 2; idx < timings.size(); ++idx) best = std::min(best, timings[idx].median_ms);
    result["ratio"] = timings[0].median_ms / best;
  }
  return result;
}

void print_header(const ordered_json& run) {
  std::printf("%s, %d threads, torch %s\n%s\nlimits: fp32 FMA %.0f GFLOP/s",
              run["cpu"].get<std::string>().c_str(), run["threads"].get<int>(),
              run["torch"].get<std::string>().c_str(), run["backend"].get<std::string>().c_str(),
              run["fma_gflops"].get<double>());
  if (run.contains("amx_gflops"))
    std::printf(", AMX bf16 %.0f GFLOP/s", run["amx_gflops"].get<double>());
  if (run.contains("bf16_dot_gflops"))
    std::printf(", bf16 dot products %.0f GFLOP/s", run["bf16_dot_gflops"].get<double>());
  std::printf(", read %.1f GB/s\n\n%-9s %-9s %-20s %10s %10s %6s %9s %6s %9s\n",
              run["read_gbytes"].get<double>(), "call", "dtype", "(B,Hq,Hkv,T,D)", "ms", "sdpa ms",
              "ratio", "rate", "limit", "error");
}

void print_row(const ordered_json& row) {
  const bool decodes = row.contains("gbytes_per_s");
  const bool has_peer = row.contains("ratio");
  const double ms = row["ms"].get<double>();
  const double ratio = has_peer ? row["ratio"].get<double>() : 0.0;
  std::printf("%-9s %-9s %-20s %10.3f %10.3f %6.2f %5.0f %s %5.0f%% %9.1e\n",
              row["call"].get<std::string>().c_str(), row["dtype"].get<std::string>().c_str(),
              row["shape"].get<std::string>().c_str(), ms, has_peer ? ms / ratio : 0.0, ratio,
              row[decodes ? "gbytes_per_s" : "gflops"].get<double>(), decodes ? "GB/" : "GF/",
              100 * row["share_of_limit"].get<double>(), row["relative_error"].get<double>());
  std::fflush(stdout);
}

void run(const Options& options) {
  if (options.num_threads > 0) at::set_num_threads(options.num_threads);
  const Limits limits = measure_limits(at::get_num_threads());
  const ordered_json about = describe_run(options, limits);
  std::ofstream file;
  if (!options.output.empty()) {
    file.open(options.output, std::ios::app);
    PLX_CHECK(file.good(), "cannot write ", options.output);
  }
  print_header(about);
  for (const AttentionCase& which : select_cases(options)) {
    ordered_json row = run_case(which, options, limits);
    print_row(row);
    row.update(about);
    if (file.is_open()) file << row.dump() << std::endl;
  }
}

int main_checked(int argc, char** argv) {
  CLI::App app{"Times attention on the CPU beside PyTorch's scaled_dot_product_attention"};
  Options options;
  app.add_option("--calls", options.calls, "forward, backward, decode (default: all)")
      ->delimiter(',');
  app.add_option("--dtypes", options.dtypes, "bfloat16, float16, float32 (default: first and last)")
      ->delimiter(',');
  app.add_option("--tokens", options.tokens, "Lengths to sweep, instead of the standard shapes")
      ->delimiter(',');
  app.add_option("--head-dims", options.head_dims, "Head sizes to sweep, likewise")->delimiter(',');
  app.add_option("--threads", options.num_threads, "Threads of both sides (default: Torch's)");
  app.add_option("--seconds", options.timing.seconds, "Time for each case");
  app.add_flag("--only-ours", options.only_ours, "Leave the peer out");
  app.add_option("--output", options.output, "Append one JSON object per case to this file");
  app.add_option("--commit", options.commit, "For the JSON: what was built");
  app.footer(
      "Each result is first compared with the float64 reference. ms: median; ratio: our time over\n"
      "the best of the peer's layouts; limit: share of the FMA or bf16 rate (decode: of the read\n"
      "bandwidth) that the same run measured.\n\n"
      "Example:\n"
      "  attention_bench --calls forward --tokens 512,1024,2048 --head-dims 64,128 --threads 2");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  run(options);
  return 0;
}

}  // namespace
}  // namespace parallax::bench

int main(int argc, char** argv) {
  try {
    return parallax::bench::main_checked(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "attention_bench: " << error.what() << '\n';
    return 1;
  }
}
