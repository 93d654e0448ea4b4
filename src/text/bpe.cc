// Symbols are a doubly linked list; a heap holds the pairs that may merge. A heap entry whose pair
// has changed since is recognised by its ids and skipped, so nothing is ever searched or moved.
// SPDX-License-Identifier: Apache-2.0
#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "parallax/error.h"
#include "text/byte_map.h"

namespace parallax::text {
namespace {

using nlohmann::json;

// Ids index tables, so a file with a huge id must not make huge tables.
constexpr int64_t kMaxId = (1 << 24) - 1;

struct LowerRankFirst {
  bool operator()(const BpeModel::Scratch::Candidate& first,
                  const BpeModel::Scratch::Candidate& second) const {
    return std::tie(first.rank, first.position) > std::tie(second.rank, second.position);
  }
};

/// Bytes C0, C1 and F5..FF stand in no UTF-8 text.
bool occurs_in_utf8(size_t byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

std::pair<std::string, std::string> merge_parts(const json& merge, size_t merge_idx) {
  if (merge.is_array() && merge.size() == 2) return {merge[0], merge[1]};
  PLX_CHECK(merge.is_string(), "merge ", merge_idx, " is neither \"a b\" nor [\"a\", \"b\"]");
  const std::string text = merge;
  const size_t space = text.find(' ');
  PLX_CHECK(space != std::string::npos && text.find(' ', space + 1) == std::string::npos, "merge ",
            merge_idx, " ('", text, "') is not two tokens with one space between");
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

MergeTable::MergeTable(size_t num_merges) : slots_(std::bit_ceil(2 * num_merges + 1)) {}

size_t MergeTable::slot_of(uint64_t key) const {
  // Multiplication by an odd 64-bit constant spreads the key into the high bits.
  size_t slot = (key * 0x9E3779B97F4A7C15u) >> 32 & (slots_.size() - 1);
  while (slots_[slot].key != key && slots_[slot].key != kEmpty) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  slots_[slot_of(key)] = {key, merge};
}

MergeTable::Merge MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  return slots_[slot_of(key)].merge;
}

BpeModel::BpeModel(const json& description) {
  const std::string type = description.value("type", "BPE");
  PLX_CHECK(type == "BPE", "model type '", type, "' is not supported (supported: BPE)");
  read_vocab(description.at("vocab"));
  read_merges(description.at("merges"));
  check_settings(description);
  collect_whole_words(description.value("ignore_merges", false));
}

void BpeModel::read_vocab(const json& vocab) {
  PLX_CHECK(vocab.is_object() && !vocab.empty(), "the vocab is not an object with entries");
  num_tokens_ = vocab.size();
  for (const auto& [spelling, value] : vocab.items()) {
    PLX_CHECK(value.is_number_integer(), "vocab entry '", spelling, "': id ", value.dump(),
              " is not an integer");
    const bool in_range = value.is_number_unsigned() && value.get<uint64_t>() <= kMaxId;
    PLX_CHECK(in_range, "vocab entry '", spelling, "': id ", value.dump(), " is not in 0..",
              kMaxId);
    const auto id = value.get<size_t>();
    if (id >= token_bytes_.size()) {
      token_bytes_.resize(id + 1);
      is_entry_.resize(id + 1);
    }
    PLX_CHECK(!is_entry_[id], "vocab entry '", spelling, "': id ", id, " stands twice");
    is_entry_[id] = true;
    id_of_spelling_.emplace(spelling, static_cast<int32_t>(id));
    // Spellings with other characters are special tokens: no text merges to them.
    token_bytes_[id] = symbols_to_bytes(spelling).value_or(spelling);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = find(byte_to_symbol(static_cast<uint8_t>(byte)));
  }
}

void BpeModel::read_merges(const json& merges) {
  PLX_CHECK(merges.is_array(), "the merges are not a list");
  merges_ = MergeTable(merges.size());
  for (size_t merge_idx = 0; merge_idx < merges.size(); ++merge_idx) {
    const auto [left, right] = merge_parts(merges[merge_idx], merge_idx);
    for (const std::string& token : {left, right, left + right}) {
      PLX_CHECK(find(token) >= 0, "merge ", merge_idx, " ('", left, "' + '", right,
                "'): the vocab has no entry '", token, "'");
    }
    merges_.insert(find(left), find(right), {static_cast<int32_t>(merge_idx), find(left + right)});
  }
}

void BpeModel::check_settings(const json& description) const {
  const auto is_set = [&](const char* key) {
    const auto value = description.find(key);
    return value != description.end() && !value->is_null() && *value != "" && *value != 0.0;
  };
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    PLX_CHECK(!is_set(key), "model setting ", key, " = ", description.at(key).dump(),
              " is not supported");
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte_ids_[byte] >= 0 || !occurs_in_utf8(byte)) continue;
    for (const char* key : {"unk_token", "byte_fallback"}) {
      const bool in_use = is_set(key) && description.at(key) != false;
      PLX_CHECK(!in_use, "model setting ", key, " = ", description.at(key).dump(),
                " is not supported, and the vocab needs it: it has no entry for byte ", byte);
    }
  }
}

void BpeModel::collect_whole_words(bool ignore_merges) {
  Scratch scratch;
  std::vector<int32_t> ids;
  for (const auto& [spelling, id] : id_of_spelling_) {
    if (!symbols_to_bytes(spelling)) continue;
    const std::string& bytes = token_bytes_[static_cast<size_t>(id)];
    ids.clear();
    if (!ignore_merges) merge(bytes, scratch, ids);
    if (ignore_merges || (ids.size() == 1 && ids.front() == id)) whole_words_.emplace(bytes, id);
  }
}

bool BpeModel::has(int32_t id) const {
  return id >= 0 && id < vocab_size() && is_entry_[static_cast<size_t>(id)];
}

int32_t BpeModel::find(std::string_view spelling) const {
  const auto entry = id_of_spelling_.find(std::string(spelling));
  return entry == id_of_spelling_.end() ? -1 : entry->second;
}

void BpeModel::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  const auto word = whole_words_.find(piece);
  if (word != whole_words_.end()) {
    ids.push_back(word->second);
  } else {
    merge(piece, scratch, ids);
  }
}

void BpeModel::push_candidate(Scratch& scratch, int32_t position) const {
  const Scratch::Symbol& symbol = scratch.symbols[static_cast<size_t>(position)];
  const int32_t right = scratch.symbols[static_cast<size_t>(symbol.next)].id;
  const MergeTable::Merge merge = merges_.find(symbol.id, right);
  if (merge.rank < 0) return;
  scratch.heap.push_back({merge.rank, position, symbol.id, right, merge.merged_id});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), LowerRankFirst{});
}

void BpeModel::merge(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  constexpr int32_t kEnd = -1, kMergedAway = -1;
  auto& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    const auto position = static_cast<int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, position - 1, position + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = kEnd;
  for (int32_t position = 0; std::cmp_less(position + 1, symbols.size()); ++position) {
    push_candidate(scratch, position);
  }
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), LowerRankFirst{});
    const Scratch::Candidate top = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.id != top.left || left.next == kEnd) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != top.right) continue;
    left.id = top.merged_id;
    right.id = kMergedAway;
    left.next = right.next;
    if (left.next != kEnd) {
      symbols[static_cast<size_t>(left.next)].previous = top.position;
      push_candidate(scratch, top.position);
    }
    if (left.previous != kEnd) push_candidate(scratch, left.previous);
  }
  for (int32_t position = 0; position != kEnd;) {
    const Scratch::Symbol& symbol = symbols[static_cast<size_t>(position)];
    ids.push_back(symbol.id);
    position = symbol.next;
  }
}

}  // namespace parallax::text
