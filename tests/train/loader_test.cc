// Batches from token shards: what an epoch visits, in which order, and resumption.
// SPDX-License-Identifier: Apache-2.0
#include "train/loader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "support/temp_folder.h"

namespace parallax::train {
namespace {

using io::Split;
using test::expect_error;
using test::TempFolder;
using Order = LoaderOptions::Order;
using Rows = std::vector<std::vector<int64_t>>;

constexpr int32_t kEos = 59'999;

// `count` tokens in all, each its own position, the last one end-of-document; shards of 7 tokens.
std::shared_ptr<const io::TokenDataset> counting_dataset(const std::filesystem::path& path,
                                                         int32_t count) {
  io::TokenDatasetWriter writer(path, {.vocab_size = kEos + 1,
                                       .eos_id = kEos,
                                       .tokenizer_json = "{}",
                                       .tokenizer_fingerprint = "f00d",
                                       .shard_tokens = 7});
  std::vector<int32_t> tokens(static_cast<size_t>(count) - 1);
  std::iota(tokens.begin(), tokens.end(), 0);
  writer.append(Split::kTrain, tokens, count);
  writer.append(Split::kValidation, std::vector<int32_t>{1, 2}, 2);
  writer.commit();
  return std::make_shared<io::TokenDataset>(path, Split::kTrain);
}

Rows rows_of(const torch::Tensor& tensor) {
  Rows rows;
  for (int64_t row = 0; row < tensor.size(0); ++row) {
    const int64_t* data = tensor[row].const_data_ptr<int64_t>();
    rows.emplace_back(data, data + tensor.size(1));
  }
  return rows;
}

void append(Rows& rows, const torch::Tensor& tensor) {
  for (auto& row : rows_of(tensor)) rows.push_back(std::move(row));
}

TEST(Permutation, IsABijectionForEverySize) {
  for (int64_t size = 1; size <= 300; ++size) {
    const Permutation permutation(size, 17);
    std::set<int64_t> seen;
    for (int64_t idx = 0; idx < size; ++idx) {
      const int64_t value = permutation(idx);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, size);
      ASSERT_TRUE(seen.insert(value).second) << "size " << size << " repeats " << value;
    }
  }
}

TEST(Permutation, EveryPlaceIsEquallyLikelyOverKeys) {
  constexpr int64_t kSize = 5;
  constexpr int kKeys = 20'000;
  std::map<std::pair<int64_t, int64_t>, int> counts;
  for (uint64_t key = 0; key < kKeys; ++key) {
    const Permutation permutation(kSize, key);
    for (int64_t idx = 0; idx < kSize; ++idx) ++counts[{idx, permutation(idx)}];
  }
  const double expected = kKeys / 5.0, deviation = std::sqrt(kKeys * 0.2 * 0.8);
  for (int64_t idx = 0; idx < kSize; ++idx) {
    for (int64_t value = 0; value < kSize; ++value) {
      EXPECT_NEAR((counts[{idx, value}]), expected, 5 * deviation) << idx << " -> " << value;
    }
  }
}

TEST(Permutation, HandlesLargeSizesAndRefusesNone) {
  const Permutation permutation(int64_t{1} << 62, 3);
  EXPECT_NE(permutation(0), permutation(1));
  expect_error([] { Permutation(0, 0); }, {"1 to 2^62", "0"});
}

TEST(TokenLoader, TargetsAreTheNextTokens) {
  const TempFolder folder;
  TokenLoader loader(counting_dataset(folder / "tokens", 100), {.context_length = 8, .seed = 1});
  for (int step = 0; step < 20; ++step) {
    const Batch batch = loader.next(3);
    ASSERT_EQ(batch.tokens_BT.sizes(), (torch::IntArrayRef{3, 8}));
    ASSERT_EQ(batch.tokens_BT.scalar_type(), torch::kInt64);
    const Rows tokens = rows_of(batch.tokens_BT), targets = rows_of(batch.targets_BT);
    for (size_t row = 0; row < tokens.size(); ++row) {
      for (size_t idx = 0; idx < tokens[row].size(); ++idx) {
        const int64_t next = tokens[row][idx] + 1;
        EXPECT_EQ(targets[row][idx], next == 99 ? kEos : next);
      }
    }
  }
}

TEST(TokenLoader, EpochVisitsEachWindowOnceAndTheNextEpochOthers) {
  const TempFolder folder;
  TokenLoader loader(counting_dataset(folder / "tokens", 1000), {.context_length = 9, .seed = 5});
  std::vector<std::vector<int64_t>> orders;
  std::set<int64_t> offsets;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<int64_t> starts;
    const int64_t num_windows = loader.num_windows();
    for (int64_t idx = 0; idx < num_windows; ++idx) {
      starts.push_back(rows_of(loader.next(1).tokens_BT)[0][0]);
      EXPECT_EQ(loader.epoch(), epoch);
    }
    std::set<int64_t> sorted(starts.begin(), starts.end());
    ASSERT_EQ(sorted.size(), starts.size());
    const int64_t offset = *sorted.begin();
    EXPECT_LT(offset, 9);
    EXPECT_EQ(num_windows, (999 - offset) / 9);
    int64_t expected = offset;
    for (const int64_t start : sorted) {
      EXPECT_EQ(start, expected);
      expected += 9;
    }
    EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
    offsets.insert(offset);
    orders.push_back(starts);
    loader.next(1);  // steps into the next epoch ...
    loader.load_state({{"order", "shuffled"},
                       {"data", loader.state()["data"]},
                       {"seed", 5},
                       {"context_length", 9},
                       {"epoch", epoch + 1},
                       {"position", 0}});
  }
  EXPECT_GT(offsets.size(), 1u);
  EXPECT_NE(orders[0], orders[1]);
}

TEST(TokenLoader, BatchesRunAcrossEpochs) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "tokens", 50);
  TokenLoader by_one(dataset, {.context_length = 8}), by_seven(dataset, {.context_length = 8});
  Rows singles, sevens;
  for (int idx = 0; idx < 28; ++idx) append(singles, by_one.next(1).tokens_BT);
  for (int idx = 0; idx < 4; ++idx) append(sevens, by_seven.next(7).tokens_BT);
  EXPECT_GE(by_one.epoch(), 3);
  EXPECT_EQ(singles, sevens);
  EXPECT_EQ(by_one.state(), by_seven.state());
}

TEST(TokenLoader, SameSeedSameBatchesOtherSeedOthers) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "tokens", 500);
  TokenLoader a(dataset, {.context_length = 8, .seed = 3}),
      b(dataset, {.context_length = 8, .seed = 3}), c(dataset, {.context_length = 8, .seed = 4});
  const Rows first = rows_of(a.next(16).tokens_BT);
  EXPECT_EQ(first, rows_of(b.next(16).tokens_BT));
  EXPECT_NE(first, rows_of(c.next(16).tokens_BT));
  a.reset();
  EXPECT_EQ(first, rows_of(a.next(16).tokens_BT));
}

TEST(TokenLoader, OrderIsTheSameOnEveryMachine) {
  const TempFolder folder;
  TokenLoader loader(counting_dataset(folder / "tokens", 100), {.context_length = 10, .seed = 42});
  std::vector<int64_t> starts;
  for (const auto& row : rows_of(loader.next(9).tokens_BT)) starts.push_back(row[0]);
  EXPECT_EQ(starts, (std::vector<int64_t>{69, 79, 29, 19, 89, 39, 49, 9, 59}));
}

TEST(TokenLoader, ResumesAtEveryPosition) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "tokens", 80);
  for (int taken = 0; taken <= 25; ++taken) {  // over two epoch ends
    TokenLoader whole(dataset, {.context_length = 8, .seed = 2});
    for (int idx = 0; idx < taken; ++idx) whole.next(1);
    TokenLoader resumed(dataset, {.context_length = 8, .seed = 2});
    resumed.load_state(nlohmann::json::parse(whole.state().dump()));
    EXPECT_EQ(rows_of(whole.next(5).tokens_BT), rows_of(resumed.next(5).tokens_BT)) << taken;
    EXPECT_EQ(whole.state(), resumed.state());
  }
}

TEST(TokenLoader, RefusesStatesOfOtherDataSeedContextOrOrder) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "a", 80);
  TokenLoader loader(dataset, {.context_length = 8, .seed = 2});
  const auto expect_refused = [&](const TokenLoader& other, std::string_view what) {
    expect_error([&] { loader.load_state(other.state()); }, {"other data", what});
  };
  expect_refused({counting_dataset(folder / "b", 81), {.context_length = 8, .seed = 2}},
                 "\"data\"");
  expect_refused({dataset, {.context_length = 8, .seed = 3}}, "\"seed\" was 3, now it is 2");
  expect_refused({dataset, {.context_length = 4, .seed = 2}}, "\"context_length\" was 4");
  expect_refused({dataset, {.context_length = 8, .order = Order::kSequential, .seed = 2}},
                 "\"order\"");
}

TEST(TokenLoader, RefusesDamagedStatesAndKeepsItsPlace) {
  const TempFolder folder;
  TokenLoader loader(counting_dataset(folder / "tokens", 80), {.context_length = 8});
  loader.next(2);
  const nlohmann::json good = loader.state();
  nlohmann::json bad = good;
  bad["position"] = 1000;
  expect_error([&] { loader.load_state(bad); }, {"position 1000"});
  bad["position"] = -1;
  expect_error([&] { loader.load_state(bad); }, {"position"});
  bad.erase("position");
  expect_error([&] { loader.load_state(bad); }, {"position"});
  expect_error([&] { loader.load_state(nlohmann::json::array()); }, {"JSON object"});
  EXPECT_EQ(loader.state(), good);
}

TEST(TokenLoader, SequentialOrderCoversEveryTargetOnceThenEnds) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "tokens", 30);  // 29 targets
  TokenLoader loader(dataset, {.context_length = 8, .order = Order::kSequential});
  EXPECT_EQ(loader.num_windows(), 4);
  Rows tokens, targets;
  for (const int64_t expected_rows : {3, 1}) {
    const Batch batch = loader.next(3);
    EXPECT_EQ(batch.tokens_BT.size(0), expected_rows);
    append(tokens, batch.tokens_BT);
    append(targets, batch.targets_BT);
  }
  EXPECT_EQ(tokens[0], (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(targets[0], (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(tokens[3], (std::vector<int64_t>{24, 25, 26, 27, 28, kEos, kEos, kEos}));
  EXPECT_EQ(targets[3],
            (std::vector<int64_t>{25, 26, 27, 28, kEos, kIgnoreIndex, kIgnoreIndex, kIgnoreIndex}));
  expect_error([&] { loader.next(1); }, {"one pass", "train", "4 windows", "reset()"});
  loader.reset();
  EXPECT_EQ(rows_of(loader.next(1).tokens_BT)[0], tokens[0]);
}

TEST(TokenLoader, RefusesSplitsShorterThanAWindow) {
  const TempFolder folder;
  const auto dataset = counting_dataset(folder / "tokens", 20);
  EXPECT_EQ(TokenLoader(dataset, {.context_length = 19}).num_windows(), 1);
  expect_error([&] { TokenLoader(dataset, {.context_length = 20}); },
               {(folder / "tokens").string(), "train", "20 tokens", "takes 21"});
  EXPECT_EQ(TokenLoader(dataset, {.context_length = 20, .order = Order::kSequential}).num_windows(),
            1);
  expect_error([&] { TokenLoader(dataset, {.context_length = 0}); }, {"context_length"});
}

TEST(TokenLoader, RefusesIdsOutsideTheModelsVocabulary) {
  const TempFolder folder;
  counting_dataset(folder / "tokens", 30);
  TokenLoader loader(std::make_shared<io::TokenDataset>(folder / "tokens", Split::kTrain, 20),
                     {.context_length = 8, .order = Order::kSequential});
  expect_error([&] { loader.next(4); },
               {"train-00002.bin", "token id 20 at position 6", "vocabulary of 20"});
}

}  // namespace
}  // namespace parallax::train
