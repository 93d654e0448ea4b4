// The stages in order: UTF-8 repair, added tokens, normalisation, normalised added tokens, cutting,
// merging.
// SPDX-License-Identifier: Apache-2.0
#include "text/bpe_tokenizer.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "parallax/error.h"
#include "text/nfc.h"
#include "text/utf8.h"

namespace parallax::text {
namespace {

using nlohmann::json;

json field(const json& description, const char* name) {
  const auto value = description.find(name);
  return value == description.end() ? json() : *value;
}

/// True for NFC, false for none, an Error for any other normalizer.
bool reads_nfc(const json& normalizer) {
  if (normalizer.is_null()) return false;
  const std::string type = normalizer.at("type");
  if (type == "NFC") return true;
  PLX_CHECK(type == "Sequence", "normalizer: type '", type,
            "' is not supported (supported: none, NFC, Sequence)");
  bool nfc = false;
  for (const json& step : normalizer.at("normalizers")) nfc = reads_nfc(step) || nfc;
  return nfc;
}

std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized, bool nfc) {
  std::vector<AddedToken> selected;
  for (AddedToken token : tokens) {
    if (token.normalized != normalized) continue;
    if (normalized && nfc) token.content = to_nfc(token.content);
    selected.push_back(std::move(token));
  }
  return selected;
}

}  // namespace

struct BpeTokenizer::Scratch {
  PreTokenizer::Scratch regexes;
  BpeModel::Scratch merging;
};

BpeTokenizer::BpeTokenizer(const json& description, std::string serialized)
    : serialized_(std::move(serialized)),
      model_(description.at("model")),
      nfc_(reads_nfc(field(description, "normalizer"))),
      pre_tokenizer_(field(description, "pre_tokenizer")),
      added_(read_added_tokens(field(description, "added_tokens"))),
      before_normalizing_(select(added_, false, nfc_)),
      after_normalizing_(select(added_, true, nfc_)),
      vocab_size_(model_.vocab_size()) {
  for (const AddedToken& token : added_) {
    vocab_size_ = std::max(vocab_size_, token.id + 1);
    added_by_id_.emplace(token.id, token);
  }
  for (const char* name : kEndTokens) {
    if (!eos_id_) eos_id_ = find_special(name);
  }
}

std::vector<AddedToken> BpeTokenizer::read_added_tokens(const json& description) const {
  std::vector<AddedToken> tokens;
  if (description.is_null()) return tokens;
  // The format's own readers number the tokens that the vocab lacks in order, whatever the file
  // says, so a file that says otherwise means different ids to different readers.
  auto next_id = static_cast<int32_t>(model_.num_tokens());
  for (const json& entry : description) {
    AddedToken token{.content = entry.at("content"),
                     .special = entry.at("special"),
                     .normalized = entry.at("normalized"),
                     .strips_left = entry.at("lstrip"),
                     .strips_right = entry.at("rstrip")};
    PLX_CHECK(!token.content.empty(), "an added token is empty");
    PLX_CHECK(!entry.at("single_word").get<bool>(), "added token '", token.content,
              "': single_word is not supported");
    PLX_CHECK(std::ranges::none_of(tokens, [&](auto& t) { return t.content == token.content; }),
              "added token '", token.content, "' stands twice");
    const int32_t in_vocab = model_.find(token.content);
    token.id = in_vocab >= 0 ? in_vocab : next_id++;
    PLX_CHECK(entry.at("id").is_number_integer() && entry.at("id") == token.id, "added token '",
              token.content, "' has id ", entry.at("id").dump(), " where ", token.id,
              in_vocab >= 0 ? " stands in the vocab" : " is next after the vocab");
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool parse_special) const {
  PLX_CHECK(text.size() < std::numeric_limits<int32_t>::max(), "a text of ", text.size(),
            " bytes is too long to encode at once (at most 2 GiB)");
  std::string repaired;
  if (valid_utf8_prefix(text) < text.size()) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4);
  Scratch scratch{pre_tokenizer_.make_scratch(), {}};
  for (const auto& span : before_normalizing_.split(text, parse_special)) {
    if (span.token_id >= 0) {
      ids.push_back(span.token_id);
    } else if (nfc_ && !is_surely_nfc(span.text)) {
      encode_normalized(to_nfc(span.text), parse_special, scratch, ids);
    } else {
      encode_normalized(span.text, parse_special, scratch, ids);
    }
  }
  return ids;
}

void BpeTokenizer::encode_normalized(std::string_view text, bool parse_special, Scratch& scratch,
                                     std::vector<int32_t>& ids) const {
  for (const auto& span : after_normalizing_.split(text, parse_special)) {
    if (span.token_id >= 0) {
      ids.push_back(span.token_id);
      continue;
    }
    pre_tokenizer_.split(span.text, scratch.regexes, [&](std::string_view piece) {
      model_.encode(piece, scratch.merging, ids);
    });
  }
}

std::string_view BpeTokenizer::token_bytes(int32_t id) const {
  const auto added = added_by_id_.find(id);
  if (added != added_by_id_.end()) return added->second.content;
  PLX_CHECK(id >= 0 && id < vocab_size_, "token id ", id, " is not in 0..", vocab_size_ - 1);
  PLX_CHECK(model_.has(id), "token id ", id, " has no entry in the vocab");
  return model_.token_bytes(id);
}

bool BpeTokenizer::is_special(int32_t id) const {
  const auto added = added_by_id_.find(id);
  return added != added_by_id_.end() && added->second.special;
}

std::optional<int32_t> BpeTokenizer::find_special(std::string_view name) const {
  for (const AddedToken& token : added_) {
    if (token.special && token.content == name) return token.id;
  }
  return std::nullopt;
}

}  // namespace parallax::text
