// The tiles of the Hopper forward kernel: every query of every head is in one tile, and the steps
// of its tile cover the keys that it sees. Runs on the host.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "cuda/sm90/forward/tiles.cuh"
#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {
namespace {

constexpr int kQueries = 64, kKeys = 128;

struct Lengths {
  int num_queries, num_keys;
};

/// A call of some heads, dense or packed, whose lengths lie in `starts`.
struct Case {
  std::vector<Lengths> sequences;
  bool packed;
  bool causal = true;
  int64_t window = int64_t{1} << 40;
  int heads = 4, group = 2;
  std::vector<int32_t> starts_q{0}, starts_k{0};

  AttentionCall call() {
    AttentionCall call{};
    for (const auto& [num_queries, num_keys] : sequences) {
      starts_q.push_back(starts_q.back() + num_queries);
      starts_k.push_back(starts_k.back() + num_keys);
    }
    SequenceTable& table = call.sequences;
    table.num_sequences = static_cast<int64_t>(sequences.size());
    table.num_queries = packed ? starts_q.back() : sequences[0].num_queries;
    table.num_keys = packed ? starts_k.back() : sequences[0].num_keys;
    table.cu_seqlens_q = packed ? starts_q.data() : nullptr;
    table.cu_seqlens_k = packed ? starts_k.data() : nullptr;
    call.num_heads_q = heads;
    call.group = group;
    call.num_heads_kv = heads / group;
    call.head_dim = 128;
    call.causal = causal;
    call.window = window;
    return call;
  }
};

/// The tiles of a call, each checked by itself, counted per query: [sequence][head][query].
void check_tiles(Case c, int64_t l2_bytes) {
  const AttentionCall call = c.call();
  ForwardParams params{};
  params.call.attention = call;
  params.schedule = make_schedule(call, TileRows::kQueries, kQueries, l2_bytes);
  const int num_sequences = static_cast<int>(c.sequences.size());
  std::vector<std::vector<int>> counts(static_cast<size_t>(num_sequences * c.heads));
  for (int idx = 0; idx < num_sequences * c.heads; ++idx)
    counts[idx].resize(c.sequences[idx / c.heads].num_queries);
  for (int number = 0; number < params.schedule.num_tiles; ++number) {
    Tile tile{};
    if (!find_tile<TileRows::kQueries>(call, params.schedule, kQueries, number, tile)) continue;
    ASSERT_EQ(tile.number, number);
    int sequence = tile.batch;
    if (c.packed)
      while (c.starts_q[sequence + 1] <= tile.query_row || c.sequences[sequence].num_queries == 0)
        ++sequence;
    ASSERT_EQ(tile.num_queries, c.sequences[sequence].num_queries);
    ASSERT_EQ(tile.num_keys, c.sequences[sequence].num_keys);
    ASSERT_EQ(tile.query_row, c.packed ? c.starts_q[sequence] : 0);
    ASSERT_EQ(tile.key_row, c.packed ? c.starts_k[sequence] : 0);
    ASSERT_EQ(tile.first_row % kQueries, 0);
    const TileSteps steps = tile_steps<kQueries, kKeys>(params, tile);
    ASSERT_GE(steps.count, 1);
    int first_seen = tile.num_keys, end_seen = 0;
    for (int query = tile.first_row; query < std::min(tile.first_row + kQueries, tile.num_queries);
         ++query) {
      ++counts[sequence * c.heads + tile.head][query];
      const KeySpan keys = visible_keys(params, tile, query);
      if (keys.begin >= keys.end) continue;
      first_seen = std::min(first_seen, keys.begin);
      end_seen = std::max(end_seen, keys.end);
    }
    if (end_seen == 0) continue;  // nothing is visible; one step is taken all the same
    ASSERT_EQ(steps.end, end_seen);
    ASSERT_LE(steps.end - steps.count * kKeys, first_seen);
    ASSERT_GT(steps.end - (steps.count - 1) * kKeys, first_seen);
  }
  for (const std::vector<int>& row : counts)
    for (const int count : row) ASSERT_EQ(count, 1);
}

std::vector<std::vector<Lengths>> packed_lengths() {
  return {{{64, 64}},
          {{63, 63}, {65, 65}, {1, 1}},
          {{0, 0}, {0, 0}, {130, 130}, {0, 0}},
          {{5, 700}, {700, 5}, {0, 9}, {64, 128}, {1, 1}, {0, 0}},
          {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {400, 1000}, {1, 1}}};
}

TEST(ForwardSchedule, PackedTilesCoverEveryQueryOnce) {
  for (const auto& lengths : packed_lengths())
    for (const bool causal : {true, false})
      for (const int64_t l2_bytes : {0, 50 << 20})
        check_tiles({.sequences = lengths, .packed = true, .causal = causal}, l2_bytes);
}

TEST(ForwardSchedule, DenseTilesCoverEveryQueryOnce) {
  for (const Lengths lengths : {Lengths{64, 64}, {1, 500}, {500, 1}, {300, 300}, {129, 1000}})
    for (const int64_t window : {int64_t{1}, int64_t{100}, int64_t{1} << 40})
      for (const int heads : {2, 6})
        check_tiles({.sequences = {lengths, lengths, lengths},
                     .packed = false,
                     .window = window,
                     .heads = heads},
                    50 << 20);
}

TEST(ForwardSchedule, LastQueriesComeFirstWithinABundle) {
  Case c{.sequences = {{1024, 1024}}, .packed = false};
  const AttentionCall call = c.call();
  ForwardParams params{};
  params.call.attention = call;
  params.schedule = make_schedule(call, TileRows::kQueries, kQueries, int64_t{50} << 20);
  ASSERT_EQ(params.schedule.bundle, 4);
  int previous = 1024;
  for (int number = 0; number < params.schedule.num_tiles; ++number) {
    Tile tile{};
    ASSERT_TRUE(find_tile<TileRows::kQueries>(call, params.schedule, kQueries, number, tile));
    EXPECT_LE(tile.first_row, previous);
    EXPECT_EQ(tile.head, number % 4);
    previous = tile.first_row;
  }
}

}  // namespace
}  // namespace parallax::cuda::sm90
