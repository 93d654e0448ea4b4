// The engine against the model without a cache, and batches against single prompts.
// SPDX-License-Identifier: Apache-2.0
#include "generate/engine.h"

#include <gtest/gtest.h>

#include <random>

#include "parallax/error.h"
#include "support/tiny_model.h"

namespace parallax::generate {
namespace {

constexpr int32_t kEos = 256;

std::shared_ptr<const text::Tokenizer> byte_tokenizer() { return text::make_byte_tokenizer(); }

Engine make_engine(const nn::Decoder& model, int64_t prefill_chunk_tokens = 512) {
  return Engine(
      model, byte_tokenizer(),
      {.start_token = kEos, .eos_tokens = {kEos}, .prefill_chunk_tokens = prefill_chunk_tokens});
}

std::string random_text(std::mt19937& random, size_t length) {
  std::string text(length, ' ');
  for (char& c : text) c = static_cast<char>(32 + random() % 95);
  return text;
}

std::vector<int64_t> byte_ids(const std::string& text) {
  std::vector<int64_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

/// Greedy continuation with a full forward pass per token.
std::vector<int32_t> uncached_greedy(nn::Decoder model, std::vector<int64_t> tokens,
                                     int64_t max_tokens) {
  const torch::NoGradGuard no_grad;
  std::vector<int32_t> drawn;
  for (int64_t i = 0; i < max_tokens && (drawn.empty() || drawn.back() != kEos); ++i) {
    const torch::Tensor logits = model->forward(torch::tensor(tokens).unsqueeze(0))[0][-1];
    drawn.push_back(logits.argmax().item<int32_t>());
    tokens.push_back(drawn.back());
  }
  return drawn;
}

class EngineOfMixer : public testing::TestWithParam<std::vector<std::string>> {
 protected:
  nn::Decoder model_ = test::tiny_model(test::tiny_config(GetParam()));
};

TEST_P(EngineOfMixer, GreedyEqualsTheUncachedModel) {
  Engine engine = make_engine(model_);
  std::mt19937 random(1);
  for (const size_t length : {0u, 1u, 7u, 64u}) {
    const std::string prompt = random_text(random, length);
    const auto result = engine.generate({{.prompt = prompt, .max_tokens = 24}});
    const auto ids = prompt.empty() ? std::vector<int64_t>{kEos} : byte_ids(prompt);
    EXPECT_EQ(result.completions[0].tokens, uncached_greedy(model_, ids, 24)) << length;
  }
}

TEST_P(EngineOfMixer, AWantedStartTokenComesBeforeThePrompt) {
  Engine engine = make_engine(model_);
  const auto result = engine.generate({{.prompt = "abc", .max_tokens = 24, .add_start_token = true},
                                       {.prompt = "", .max_tokens = 24, .add_start_token = true}});
  EXPECT_EQ(result.completions[0].tokens, uncached_greedy(model_, {kEos, 'a', 'b', 'c'}, 24));
  EXPECT_EQ(result.completions[1].tokens, uncached_greedy(model_, {kEos}, 24));
  EXPECT_EQ(result.completions[0].num_prompt_tokens, 4);
  EXPECT_EQ(result.completions[1].num_prompt_tokens, 1);
}

TEST_P(EngineOfMixer, ABatchGivesWhatItsPromptsGiveAlone) {
  Engine engine = make_engine(model_, 16);  // the prefill splits prompts, and mixes them
  std::mt19937 random(2);
  std::vector<Request> requests;
  for (const size_t length : {5u, 40u, 0u, 1u, 33u, 16u}) {
    Request request{.prompt = random_text(random, length)};
    request.max_tokens = 4 + static_cast<int64_t>(random() % 20);
    if (length % 2 == 1) request.sampling = {.temperature = 0.8, .top_p = 0.9, .seed = length};
    requests.push_back(request);
  }
  const auto batch = engine.generate(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto alone = engine.generate({requests[i]});
    EXPECT_EQ(batch.completions[i].tokens, alone.completions[0].tokens) << "prompt " << i;
    EXPECT_EQ(batch.completions[i].text, alone.completions[0].text) << "prompt " << i;
  }
}

TEST_P(EngineOfMixer, PrefillInChunksEqualsPrefillAtOnce) {
  std::mt19937 random(3);
  const Request request{.prompt = random_text(random, 100), .max_tokens = 8};
  const auto whole = make_engine(model_, 512).generate({request});
  for (const int64_t chunk : {1, 7, 99, 100}) {
    const auto chunked = make_engine(model_, chunk).generate({request});
    EXPECT_EQ(chunked.completions[0].tokens, whole.completions[0].tokens) << "chunk " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, EngineOfMixer,
                         testing::Values(std::vector<std::string>{"parallax"},
                                         std::vector<std::string>{"softmax"},
                                         std::vector<std::string>{"softmax", "parallax"}),
                         [](const auto& test) {
                           std::string label;
                           for (const std::string& mixer : test.param) label += mixer;
                           return label;
                         });

TEST(Engine, SlidingWindowEqualsTheUncachedModel) {
  nn::ModelConfig config = test::tiny_config();
  config.sliding_window = 9;
  nn::Decoder model = test::tiny_model(config);
  std::mt19937 random(4);
  const std::string prompt = random_text(random, 30);
  const auto result = make_engine(model, 8).generate({{.prompt = prompt, .max_tokens = 20}});
  EXPECT_EQ(result.completions[0].tokens, uncached_greedy(model, byte_ids(prompt), 20));
}

TEST(Engine, StreamedPiecesJoinToTheTextOfEachSequence) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  std::vector<Request> requests(3);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i] = {.prompt = std::string(i + 1, 'x'), .max_tokens = 60};
    requests[i].sampling = {.temperature = 1.5, .seed = i};  // invalid and cut characters galore
  }
  std::vector<std::string> streamed(3);
  const auto result = make_engine(model).generate(
      requests, [&](size_t i, std::string_view piece) { streamed[i] += piece; });
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(streamed[i], result.completions[i].text);
    EXPECT_FALSE(streamed[i].empty());
  }
}

TEST(Engine, SeedsDecide) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  Engine engine = make_engine(model);
  const auto draw = [&](uint64_t seed) {
    Request request{.prompt = "x", .max_tokens = 30};
    request.sampling = {.temperature = 1.0, .seed = seed};
    return engine.generate({request}).completions[0].tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Engine, LogProbabilitiesAreThoseOfTheUncachedModel) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const auto result =
      make_engine(model).generate({{.prompt = "abc", .max_tokens = 12, .log_probabilities = true}});
  const Completion& completion = result.completions[0];
  std::vector<int64_t> tokens = {'a', 'b', 'c'};
  tokens.insert(tokens.end(), completion.tokens.begin(), completion.tokens.end());
  const torch::NoGradGuard no_grad;
  const torch::Tensor log_probs =
      torch::log_softmax(model->forward(torch::tensor(tokens).unsqueeze(0))[0], -1);
  ASSERT_EQ(completion.log_probabilities.size(), completion.tokens.size());
  for (size_t i = 0; i < completion.tokens.size(); ++i) {
    const double expected =
        log_probs[static_cast<int64_t>(i) + 2][completion.tokens[i]].item<double>();
    EXPECT_NEAR(completion.log_probabilities[i], expected, 1e-4);
  }
}

TEST(Engine, CountsTokens) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const auto result =
      make_engine(model).generate({{.prompt = "abc", .max_tokens = 5, .ignore_eos = true},
                                   {.prompt = "", .max_tokens = 3, .ignore_eos = true}});
  EXPECT_EQ(result.completions[0].num_prompt_tokens, 3);
  EXPECT_EQ(result.completions[1].num_prompt_tokens, 1);  // the start token
  EXPECT_EQ(result.timing.prefill_tokens, 4);
  EXPECT_EQ(result.timing.decode_tokens, 4 + 2);
  EXPECT_GT(result.timing.decode_tokens_per_second(), 0.0);
}

TEST(Engine, NeverDrawsIdsThatTheTokenizerDoesNotHave) {
  nn::ModelConfig config = test::tiny_config();
  config.vocab_size = 320;  // padded: ids 257..319 stand for nothing
  nn::Decoder model = test::tiny_model(config);
  Request request{.prompt = "x", .max_tokens = 100, .ignore_eos = true};
  request.sampling = {.temperature = 5.0, .seed = 3};
  const auto result = make_engine(model).generate({request});
  for (const int32_t token : result.completions[0].tokens) EXPECT_LT(token, 257);
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(EngineErrors, LengthsBeyondTheContext) {
  nn::Decoder model = test::tiny_model(test::tiny_config());  // 256 positions
  Engine engine = make_engine(model);
  const std::string fits(200, 'x');
  EXPECT_EQ(engine.generate({{.prompt = fits, .max_tokens = 56, .ignore_eos = true}})
                .completions[0]
                .tokens.size(),
            56u);
  EXPECT_EQ(engine.generate({{.prompt = fits, .ignore_eos = true}}).completions[0].tokens.size(),
            56u);  // the default stops at the context
  const std::string together =
      error_of([&] { engine.generate({{.prompt = fits, .max_tokens = 57}}); });
  EXPECT_NE(together.find("max_position_embeddings"), std::string::npos) << together;
  EXPECT_NE(together.find("56"), std::string::npos) << together;
  const std::string prompt =
      error_of([&] { engine.generate({{.prompt = "a"}, {.prompt = std::string(256, 'x')}}); });
  EXPECT_NE(prompt.find("prompt 2 has 256 tokens"), std::string::npos) << prompt;
  EXPECT_NE(error_of([&] { engine.generate({{.prompt = "a", .max_tokens = 0}}); }).find("at least"),
            std::string::npos);
}

TEST(EngineErrors, TokenizerLargerThanTheModel) {
  nn::ModelConfig config = test::tiny_config();
  config.vocab_size = 100;
  config.eos_token_ids = {99};
  const std::string message =
      error_of([&] { Engine engine(test::tiny_model(config), byte_tokenizer(), {}); });
  EXPECT_NE(message.find("vocab_size is 100"), std::string::npos) << message;
}

TEST(EngineErrors, TokensOutOfRange) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  EXPECT_THROW(Engine(model, byte_tokenizer(), {.start_token = 257}), Error);
  EXPECT_THROW(Engine(model, byte_tokenizer(), {.eos_tokens = {-1}}), Error);
}

TEST(EngineErrors, WeightsThatAreNotFinite) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  {
    const torch::NoGradGuard no_grad;
    model->named_parameters()["model.norm.weight"][3] = std::nanf("");
  }
  const std::string message = error_of([&] { make_engine(model).generate({{.prompt = "a"}}); });
  EXPECT_NE(message.find("not finite"), std::string::npos) << message;
}

}  // namespace
}  // namespace parallax::generate
