// The generation loop.
//
// Legend: B sequences, N packed tokens of one call, C hidden size, V vocabulary.
// SPDX-License-Identifier: Apache-2.0
#include "generate/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <span>
#include <utility>

#include "generate/sequence.h"
#include "parallax/error.h"

namespace parallax::generate {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double rate(int64_t num_tokens, double seconds) {
  return seconds > 0.0 ? static_cast<double>(num_tokens) / seconds : 0.0;
}

/// The hidden state [B, C] of each prompt's last token, after all prompts have gone through the
/// decoder in calls of at most chunk_tokens tokens.
torch::Tensor prefill(nn::Decoder& model, const std::vector<std::vector<int32_t>>& prompts,
                      int64_t chunk_tokens, nn::DecoderCache& cache) {
  const size_t num_sequences = prompts.size();
  std::vector<size_t> num_done(num_sequences, 0);
  std::vector<torch::Tensor> last_hidden(num_sequences);
  for (size_t first = 0; first < num_sequences;) {
    std::vector<int64_t> packed, num_new(num_sequences, 0);
    for (size_t b = first; b < num_sequences; ++b) {
      const size_t room = static_cast<size_t>(chunk_tokens) - packed.size();
      const size_t count = std::min(prompts[b].size() - num_done[b], room);
      const auto begin = prompts[b].begin() + static_cast<std::ptrdiff_t>(num_done[b]);
      packed.insert(packed.end(), begin, begin + static_cast<std::ptrdiff_t>(count));
      num_new[b] = static_cast<int64_t>(count);
    }
    const torch::Tensor hidden_NC = model->decode(torch::tensor(packed), num_new, cache);
    int64_t end = 0;
    for (size_t b = first; b < num_sequences && num_new[b] > 0; ++b) {
      end += num_new[b];
      num_done[b] += static_cast<size_t>(num_new[b]);
      if (num_done[b] == prompts[b].size()) {
        last_hidden[b] = hidden_NC[end - 1].clone();  // a view would keep the whole chunk
      }
    }
    while (first < num_sequences && num_done[first] == prompts[first].size()) ++first;
  }
  return torch::stack(last_hidden);
}

/// Logits as float32 [B, number of ids the tokenizer has]: a model's vocabulary may be padded.
torch::Tensor usable_logits(nn::Decoder& model, const torch::Tensor& hidden_BC,
                            int64_t vocab_size) {
  return model->logits(hidden_BC).narrow(-1, 0, vocab_size).to(torch::kFloat32).contiguous();
}

std::span<const float> row(const torch::Tensor& logits_BV, int64_t row_idx) {
  const int64_t vocab_size = logits_BV.size(1);
  return {logits_BV.data_ptr<float>() + row_idx * vocab_size, static_cast<size_t>(vocab_size)};
}

/// Decodes until every sequence is finished. logits_BV are those after the prompts. Returns the
/// number of tokens that went through the decoder.
int64_t decode_all(nn::Decoder& model, torch::Tensor logits_BV, std::vector<Sequence>& sequences,
                   nn::DecoderCache& cache, const StreamCallback& on_text) {
  std::vector<size_t> active(sequences.size());
  std::iota(active.begin(), active.end(), size_t{0});
  const int64_t vocab_size = logits_BV.size(1);
  int64_t num_decoded = 0;
  while (true) {
    std::vector<int64_t> new_tokens, num_new(sequences.size(), 0);
    std::vector<size_t> still_active;
    for (size_t i = 0; i < active.size(); ++i) {
      const size_t b = active[i];
      Sequence::OnText forward_text;
      if (on_text) forward_text = [&on_text, b](std::string_view piece) { on_text(b, piece); };
      const int32_t token =
          sequences[b].advance(row(logits_BV, static_cast<int64_t>(i)), forward_text);
      if (sequences[b].finished()) continue;
      new_tokens.push_back(token);
      num_new[b] = 1;
      still_active.push_back(b);
    }
    if (still_active.empty()) return num_decoded;
    active = std::move(still_active);
    num_decoded += static_cast<int64_t>(active.size());
    logits_BV =
        usable_logits(model, model->decode(torch::tensor(new_tokens), num_new, cache), vocab_size);
  }
}

}  // namespace

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfText:
      return "end_of_text";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kMaxTokens:
      return "max_tokens";
  }
  return "unknown";
}

double Timing::prefill_tokens_per_second() const { return rate(prefill_tokens, prefill_seconds); }
double Timing::decode_tokens_per_second() const { return rate(decode_tokens, decode_seconds); }

Engine::Engine(nn::Decoder model, std::shared_ptr<const text::Tokenizer> tokenizer,
               EngineOptions options)
    : model_(std::move(model)), tokenizer_(std::move(tokenizer)), options_(std::move(options)) {
  const int64_t vocab_size = model_->config().vocab_size;
  PLX_CHECK(tokenizer_->vocab_size() <= vocab_size,
            "the tokenizer does not belong to this model: it has ids up to ",
            tokenizer_->vocab_size() - 1, ", the model's vocab_size is ", vocab_size);
  std::vector<int32_t> ids = options_.eos_tokens;
  ids.push_back(options_.start_token);
  for (const int32_t id : ids) {
    PLX_CHECK(id >= 0 && id < vocab_size, "start or end token ", id,
              " is out of range, the model's vocab_size is ", vocab_size);
  }
  PLX_CHECK(options_.prefill_chunk_tokens >= 1, "prefill_chunk_tokens is ",
            options_.prefill_chunk_tokens, ", allowed: at least 1");
}

std::vector<int32_t> Engine::prompt_tokens(const Request& request) const {
  std::vector<int32_t> tokens = tokenizer_->encode(request.prompt);
  if (tokens.empty() || request.add_start_token) {
    tokens.insert(tokens.begin(), options_.start_token);
  }
  return tokens;
}

GenerationResult Engine::generate(const std::vector<Request>& requests,
                                  const StreamCallback& on_text) {
  if (requests.empty()) return {};
  const torch::NoGradGuard no_grad;
  model_->eval();
  const int64_t max_positions = model_->config().max_position_embeddings;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Sequence> sequences;
  int64_t capacity = 0;
  Timing timing;
  for (size_t i = 0; i < requests.size(); ++i) {
    prompts.push_back(prompt_tokens(requests[i]));
    const auto prompt_size = static_cast<int64_t>(prompts[i].size());
    const int64_t room = max_positions - prompt_size;
    PLX_CHECK(room >= 1, "prompt ", i + 1, " has ", prompt_size,
              " tokens and the model's max_position_embeddings is ", max_positions,
              ": a prompt may have at most ", max_positions - 1);
    const int64_t max_tokens = requests[i].max_tokens.value_or(std::min(kDefaultMaxTokens, room));
    PLX_CHECK(max_tokens >= 1, "max_tokens is ", max_tokens, ", allowed: at least 1");
    PLX_CHECK(max_tokens <= room, "prompt ", i + 1, " has ", prompt_size,
              " tokens and max_tokens is ", max_tokens,
              ": together more than the model's max_position_embeddings, ", max_positions,
              "; at most ", room, " new tokens fit");
    sequences.emplace_back(requests[i], *tokenizer_,
                           Sequence::Limits{max_tokens, options_.eos_tokens});
    capacity = std::max(capacity, prompt_size + max_tokens);
    timing.prefill_tokens += prompt_size;
  }

  auto start = std::chrono::steady_clock::now();
  nn::DecoderCache cache = model_->make_cache(static_cast<int64_t>(requests.size()), capacity);
  const torch::Tensor hidden_BC = prefill(model_, prompts, options_.prefill_chunk_tokens, cache);
  const torch::Tensor logits_BV = usable_logits(model_, hidden_BC, tokenizer_->vocab_size());
  timing.prefill_seconds = seconds_since(start);

  start = std::chrono::steady_clock::now();
  timing.decode_tokens = decode_all(model_, logits_BV, sequences, cache, on_text);
  timing.decode_seconds = seconds_since(start);

  GenerationResult result{{}, timing};
  for (size_t i = 0; i < sequences.size(); ++i) {
    result.completions.push_back(sequences[i].take());
    result.completions.back().num_prompt_tokens = static_cast<int64_t>(prompts[i].size());
  }
  return result;
}

}  // namespace parallax::generate
