// What a recipe trains on and validates on.
// SPDX-License-Identifier: Apache-2.0
#include "train/task_data.h"

#include <set>

#include "train/trainer_testing.h"

namespace parallax::train {
namespace {

class TaskDataTest : public TrainerTest {
 protected:
  TaskData open(const std::vector<std::string>& settings) const {
    Recipe opened = recipe(settings);
    return open_task_data(opened);
  }
};

using Sequences = std::set<std::vector<int64_t>>;

Sequences draw(DataSource& source, int64_t num_sequences) {
  Sequences sequences;
  const torch::Tensor tokens_BT = source.next(num_sequences).tokens_BT;
  for (const torch::Tensor& row : tokens_BT.unbind()) {
    const int64_t* data = row.const_data_ptr<int64_t>();
    sequences.emplace(data, data + row.numel());
  }
  return sequences;
}

TEST_F(TaskDataTest, RecallIsValidatedOnSequencesThatAreNotTrainedOn) {
  for (const char* seed : {"data.seed=0", "data.seed=1"}) {
    const TaskData data = open({seed});
    Sequences all = draw(*data.train, 500);
    const Sequences validation = draw(*data.validation, 500);
    EXPECT_EQ(all.size() + validation.size(), 1000U) << "of some 10^11 that there are";
    all.insert(validation.begin(), validation.end());
    EXPECT_EQ(all.size(), 1000U) << seed;
  }
}

TEST_F(TaskDataTest, ATokenizerThatDidNotMakeTheTokensIsRefused) {
  const fs::path tokens = write_tokens("tokens");
  EXPECT_NO_THROW(open(settings_for(tokens)));
  std::string manifest = io::read_file(tokens / "manifest.json");
  const std::string fingerprint = text::make_byte_tokenizer()->fingerprint();
  ASSERT_NE(manifest.find(fingerprint), std::string::npos);
  manifest.replace(manifest.find(fingerprint), fingerprint.size(), fingerprint.size(), '0');
  io::write_file(tokens / "manifest.json", manifest);
  EXPECT_EQ(message_of([&] { open(settings_for(tokens)); }),
            tokens.string() + ": tokenizer.json is not the one that made the tokens");
}

TEST_F(TaskDataTest, OnlyTokensOfTextCountAsBytes) {
  auto settings = settings_for(write_tokens("tokens"));
  settings.emplace_back("model.vocab_size=300");  // of which the last 43 stand for nothing
  const torch::Tensor expected = torch::zeros({300}, torch::kInt64);
  expected.slice(0, 0, 256).fill_(1);  // and 256 is the end of a document
  EXPECT_TRUE(torch::equal(open(settings).bytes_of_token, expected));
}

}  // namespace
}  // namespace parallax::train
