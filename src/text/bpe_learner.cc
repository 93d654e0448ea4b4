// See bpe_learner.h; train_bpe.py says what is exchanged.
// SPDX-License-Identifier: Apache-2.0
#include "text/bpe_learner.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "parallax/error.h"
#include "text/build_settings.h"
#include "text/python.h"

namespace parallax::text {
namespace {

// The package takes 256 texts at a time: with larger pieces they would fill memory.
constexpr int64_t kTextBytes = int64_t{1} << 18;

// The value under `key` of a line of JSON; nothing if it is not there.
std::optional<std::string> value_of(const std::optional<std::string>& line, const char* key) {
  const auto reply = nlohmann::json::parse(line.value_or(""), nullptr, /*allow_exceptions=*/false);
  const auto found = reply.find(key);  // of an object; the end of anything else
  if (found == reply.end() || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

std::string length_prefix(uint64_t size) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) bytes += static_cast<char>(size >> shift & 0xFF);
  return bytes;
}

}  // namespace

BpeLearner::BpeLearner(int64_t vocab_size) : vocab_size_(vocab_size) {
  PLX_CHECK(vocab_size >= kSmallestVocab, "a BPE vocabulary of ", vocab_size, " ids: at least ",
            kSmallestVocab, " are needed, the bytes and the end-of-document token");
  std::string reasons;
  for (const std::string& python : python_programs()) {
    try {
      process_ = std::make_unique<io::ChildProcess>(
          std::vector<std::string>{python, "-c", kTrainBpeProgram, std::to_string(vocab_size)});
      const auto line = process_->read_line();
      if (auto untrained = value_of(line, "untrained")) {
        untrained_ = parse_tokenizer(std::move(*untrained), "the untrained tokenizer");
        return;
      }
      reasons += "; " + python + ": " + value_of(line, "error").value_or("it ended by itself");
    } catch (const Error& error) {
      reasons += std::string("; ") + error.what();
    }
  }
  PLX_FAIL("learning a BPE needs a Python with the package tokenizers (scripts/setup installs it, ",
           "as does `python3 -m pip install tokenizers`)", reasons);
}

void BpeLearner::add(const DocumentText& text) {
  for (PieceReader pieces(text, *untrained_, kTextBytes); !pieces.at_end();) {
    const std::string piece = pieces.next();
    if (piece.empty()) continue;  // a length of 0 ends the texts
    send(length_prefix(piece.size()));
    send(piece);
  }
}

std::unique_ptr<Tokenizer> BpeLearner::learn() {
  send(length_prefix(0));
  process_->close_input();
  auto trained = value_of(process_->read_line(), "trained");
  if (!trained || process_->wait() != 0) fail();
  return parse_tokenizer(std::move(*trained), "the tokenizer that was learnt");
}

void BpeLearner::send(std::string_view bytes) {
  if (!process_->write(bytes)) fail();
}

void BpeLearner::fail() {
  PLX_FAIL("the Python program that learns the tokenizer ended by itself with status ",
           process_->wait(), "; its own message stands above, if it had one");
}

}  // namespace parallax::text
