// SPDX-License-Identifier: Apache-2.0
#include "support/decode_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <sstream>

#include "support/placement.h"

namespace parallax::testing {
namespace {

std::vector<int64_t> query_sizes(const DecodeInputs& inputs) {
  const DecodeCase& c = inputs.description;
  if (c.ragged()) return {inputs.problem.total_queries(), c.Hq, c.D};
  return {static_cast<int64_t>(c.sequences.size()), c.sequences.front().num_queries, c.Hq, c.D};
}

std::vector<int64_t> stat_sizes(const DecodeInputs& inputs) {
  const DecodeCase& c = inputs.description;
  if (c.ragged()) return {c.Hq, inputs.problem.total_queries()};
  return {static_cast<int64_t>(c.sequences.size()), c.Hq, c.sequences.front().num_queries};
}

HostTensor field(const std::vector<CachedSequence>& sequences, int64_t CachedSequence::* member) {
  std::vector<int32_t> values;
  for (const CachedSequence& sequence : sequences)
    values.push_back(static_cast<int32_t>(sequence.*member));
  const auto count = static_cast<int64_t>(values.size());
  return HostTensor::ints(values, {count});
}

}  // namespace

bool DecodeCase::ragged() const {
  return std::any_of(sequences.begin(), sequences.end(), [&](const CachedSequence& sequence) {
    return sequence.num_queries != sequences.front().num_queries;
  });
}

std::string DecodeCase::name() const {
  AttentionCase same{.Hq = Hq,
                     .Hkv = Hkv,
                     .D = D,
                     .dtype = dtype,
                     .window = window,
                     .softmax_scale = softmax_scale,
                     .regime = regime,
                     .layout = layout};
  std::ostringstream text;
  text << "decode";
  for (const auto& [num_queries, length, start] : sequences) {
    text << "_" << num_queries << "x" << length;
    if (start > 0) text << "from" << start;
  }
  const std::string rest = same.name();
  text << rest.substr(rest.find("_Hq"));
  if (page_size > 0) text << "_page" << page_size;
  return text.str();
}

DecodeInputs::DecodeInputs(const DecodeCase& decode_case, uint64_t seed)
    : description(decode_case) {
  const DecodeCase& c = description;
  problem = {
      .num_heads_q = c.Hq,
      .num_heads_kv = c.Hkv,
      .head_dim = c.D,
      .options = {.softmax_scale = c.softmax_scale, .mask = Mask::kCausal, .window = c.window}};
  for (const auto& [num_queries, length, start] : c.sequences)
    problem.sequences.push_back({num_queries, length - start});
  std::mt19937_64 random(seed);
  const int64_t q_count = problem.total_queries() * c.Hq * c.D;
  problem.q = normal_values(q_count, random);
  problem.r = normal_values(q_count, random);
  const int64_t k_count = problem.total_keys() * c.Hkv * c.D;
  problem.k = normal_values(k_count, random);
  problem.v = normal_values(k_count, random);
  apply_regime(c.regime, problem);
  q = HostTensor::of(c.dtype, query_sizes(*this), problem.q, c.layout);
  r = HostTensor::of(c.dtype, query_sizes(*this), problem.r, c.layout);
  problem.q = q.values();
  problem.r = r.values();
  cache_starts = field(c.sequences, &CachedSequence::start);
  cache_seqlens = field(c.sequences, &CachedSequence::length);
  if (c.ragged()) {
    std::vector<int32_t> starts{0};
    for (const CachedSequence& sequence : c.sequences)
      starts.push_back(starts.back() + static_cast<int32_t>(sequence.num_queries));
    const auto count = static_cast<int64_t>(starts.size());
    cu_seqlens_q = HostTensor::ints(starts, {count});
  }
  place_caches(random);
}

/// The problem's keys and values at their places; pages in random order, with spare pages and
/// unused table entries at -1. Everything else stays NaN. The problem keeps what the caches could
/// store.
void DecodeInputs::place_caches(std::mt19937_64& random) {
  const DecodeCase& c = description;
  const auto batch = static_cast<int64_t>(c.sequences.size());
  int64_t longest = 1;
  for (const CachedSequence& sequence : c.sequences) longest = std::max(longest, sequence.length);
  const int64_t slots = c.page_size > 0 ? c.page_size : longest + 3;
  const int64_t max_pages = c.page_size > 0 ? longest / c.page_size + 2 : 1;
  const int64_t blocks = c.page_size > 0 ? batch * max_pages + 2 : batch;
  k_cache = HostTensor(c.dtype, {blocks, slots, c.Hkv, c.D}, c.layout);
  v_cache = HostTensor(c.dtype, {blocks, slots, c.Hkv, c.D}, c.layout);
  std::vector<int32_t> free_pages(static_cast<size_t>(blocks));
  std::iota(free_pages.begin(), free_pages.end(), 0);
  std::shuffle(free_pages.begin(), free_pages.end(), random);
  std::vector<int32_t> table(static_cast<size_t>(batch * max_pages), -1);
  const int64_t row_floats = c.Hkv * c.D;
  size_t source = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const CachedSequence& sequence = c.sequences[static_cast<size_t>(b)];
    for (int64_t j = 0; c.page_size > 0 && j < sequence.length; j += c.page_size) {
      table[static_cast<size_t>(b * max_pages + j / c.page_size)] = free_pages.back();
      free_pages.pop_back();
    }
    for (int64_t j = sequence.start; j < sequence.length; ++j) {
      int64_t block = b, slot = j;
      if (c.page_size > 0) {
        block = table[static_cast<size_t>(b * max_pages + j / c.page_size)];
        slot = j % c.page_size;
      }
      const int64_t first = (block * slots + slot) * row_floats;
      for (int64_t idx = first; idx < first + row_floats; ++idx, ++source) {
        k_cache.set(idx, problem.k[source]);
        v_cache.set(idx, problem.v[source]);
        problem.k[source] = k_cache.get(idx);
        problem.v[source] = v_cache.get(idx);
      }
    }
  }
  if (c.page_size > 0) page_table = HostTensor::ints(table, {batch, max_pages});
}

ForwardTensors run_decode(const Backend& backend, const DecodeInputs& inputs) {
  ForwardTensors result = poisoned_outputs(inputs.description.dtype, inputs.description.layout,
                                           query_sizes(inputs), stat_sizes(inputs));
  Placement placement(backend);
  const DecodeArgs args{.q = placement.input(inputs.q),
                        .r = placement.input(inputs.r),
                        .k_cache = placement.input(inputs.k_cache),
                        .v_cache = placement.input(inputs.v_cache),
                        .cache_starts = placement.input(inputs.cache_starts),
                        .cache_seqlens = placement.input(inputs.cache_seqlens),
                        .cu_seqlens_q = placement.input(inputs.cu_seqlens_q),
                        .page_table = placement.input(inputs.page_table),
                        .options = inputs.problem.options,
                        .out = placement.output(result.out),
                        .out_softmax = placement.output(result.out_softmax),
                        .lse = placement.output(result.lse),
                        .t_mean = placement.output(result.t_mean)};
  run_placed(backend, args, placement);
  expect_guards_intact(result);
  return result;
}

void expect_decode_conforms(const DecodeCase& decode_case, uint64_t seed) {
  const DecodeInputs inputs(decode_case, seed);
  const ForwardValues truth = true_forward(inputs.problem);
  expect_right([&](int num_orders) {
    const ForwardErrors plain = plain_errors(inputs.problem, truth, decode_case.dtype, num_orders);
    std::vector<Verdict> verdicts;
    for (const auto& [label, backend] : tested_backends()) {
      const std::string context =
          decode_case.name() + ", PLX_TEST_SEED=" + std::to_string(seed) + ", " + label;
      SCOPED_TRACE(context);
      judge_forward(decode_case.dtype, values_of(run_decode(*backend, inputs)), truth, plain,
                    context, verdicts);
    }
    return verdicts;
  });
}

}  // namespace parallax::testing
