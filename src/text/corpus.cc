// See corpus.h.
// SPDX-License-Identifier: Apache-2.0
#include "text/corpus.h"

#include <fnmatch.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "io/atomic_file.h"
#include "io/hash.h"
#include "io/json_error.h"
#include "parallax/error.h"
#include "text/python.h"
#include "text/utf8.h"

namespace parallax::text {
namespace {

namespace fs = std::filesystem;

bool is_json_lines(const fs::path& path) {
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

// Folders of a Python library that hold tests, test data or other people's packages.
bool is_left_out_of_python(const std::string& name) {
  constexpr std::string_view kLeftOut[] = {"site-packages", "dist-packages", "test",
                                           "tests",         "idle_test",     "__pycache__"};
  return std::find(std::begin(kLeftOut), std::end(kLeftOut), name) != std::end(kLeftOut);
}

// The code unit of an escape \uXXXX at `position` of JSON; nothing if none stands there.
std::optional<unsigned> escaped_unit(std::string_view json, size_t position) {
  unsigned unit = 0;
  if (json.substr(position, 2) != "\\u" || json.size() < position + 6) return std::nullopt;
  const char* const end = json.data() + position + 6;
  const auto parsed = std::from_chars(json.data() + position + 2, end, unit, 16);
  return parsed.ptr == end ? std::optional(unit) : std::nullopt;
}

// Half a surrogate pair, which programs that cut strings by UTF-16 units write, becomes \ufffd.
std::string replace_lone_surrogates(std::string json) {
  for (size_t i = json.find('\\'); i < json.size(); i = json.find('\\', i)) {
    const unsigned unit = escaped_unit(json, i).value_or(0);
    const bool is_high = unit >= 0xD800 && unit < 0xDC00, is_low = unit >= 0xDC00 && unit < 0xE000;
    const unsigned next = is_high ? escaped_unit(json, i + 6).value_or(0) : 0;
    const bool is_pair = next >= 0xDC00 && next < 0xE000;
    if ((is_high && !is_pair) || is_low) json.replace(i, 6, "\\ufffd");
    i += is_pair ? 12 : 2;  // past the escape's letter, so that \\ud800 stays the text it is
  }
  return json;
}

// Invalid UTF-8 and half surrogate pairs become U+FFFD: JSON knows no other way to keep the line.
std::string text_field(const std::string& line, const std::string& field,
                       const std::string& source) {
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(replace_lone_surrogates(
        valid_utf8_prefix(line) == line.size() ? line : replace_invalid_utf8(line)));
  } catch (const nlohmann::json::exception& error) {
    PLX_FAIL(source, ": not JSON: ", io::plain_what(error));
  }
  PLX_CHECK(parsed.is_object(), source, ": a JSON object is needed, the line holds ",
            parsed.type_name());
  std::string names;
  for (const auto& [name, value] : parsed.items()) {
    names += (names.empty() ? "\"" : ", \"") + name + "\"";
  }
  const auto found = parsed.find(field);
  PLX_CHECK(found != parsed.end(), source, ": no field \"", field, "\" (there are: ", names,
            "); --field names the one that holds the text");
  PLX_CHECK(found->is_string(), source, ": field \"", field, "\" must be a string, it is ",
            found->type_name());
  return std::move(found->get_ref<std::string&>());
}

// looks_binary of bytes that come in parts, and their hash.
class TextCheck {
 public:
  void add(std::string_view bytes) {
    hash_.add(bytes);
    num_bytes_ += bytes.size();
    has_nul_ = has_nul_ || bytes.find('\0') != std::string_view::npos;
    const std::string joined =
        unfinished_.empty() ? std::string() : unfinished_ + std::string(bytes);
    std::string_view rest = unfinished_.empty() ? bytes : joined;
    unfinished_.clear();
    while (!rest.empty()) {
      const Utf8Unit unit = next_utf8(rest);
      if (unit.kind == Utf8Kind::kTruncated) {
        unfinished_ = rest;
        break;
      }
      if (unit.kind == Utf8Kind::kInvalid) num_invalid_ += unit.num_bytes;
      rest.remove_prefix(unit.num_bytes);
    }
  }
  bool looks_binary() const {
    return has_nul_ || num_invalid_ + unfinished_.size() > num_bytes_ / 10;
  }
  bool is_utf8() const { return num_invalid_ == 0 && unfinished_.empty(); }
  uint64_t hash() const { return hash_.value(); }

 private:
  io::Hash64 hash_;
  size_t num_bytes_ = 0, num_invalid_ = 0;
  bool has_nul_ = false;
  std::string unfinished_;  // the beginning of a character at the end of the last part
};

// The last place in [earliest, latest] that a newline stands right before.
std::optional<int64_t> last_line_start(const DocumentText& text, int64_t earliest, int64_t latest) {
  constexpr int64_t kBlockBytes = int64_t{1} << 16;
  for (int64_t end = latest; end >= earliest; end -= kBlockBytes) {
    const int64_t begin = std::max(earliest - 1, end - kBlockBytes);
    const size_t newline = text.read(begin, end - begin).rfind('\n');
    if (newline != std::string::npos) return begin + static_cast<int64_t>(newline) + 1;
  }
  return std::nullopt;
}

}  // namespace

bool looks_binary(std::string_view bytes) {
  TextCheck check;
  check.add(bytes);
  return check.looks_binary();
}

CorpusReader::CorpusReader(CorpusOptions options) : options_(std::move(options)) {
  PLX_CHECK(!options_.inputs.empty() || options_.python_sources,
            "no input: name text files, folders or .jsonl files, or ask for the Python sources");
  for (const fs::path& input : options_.inputs) {
    std::error_code error;
    const bool is_folder = fs::is_directory(input, error);
    if (error) io::throw_system_error("read", input, error.value());
    if (is_folder) {
      add_folder(input, false);
    } else {
      files_.push_back({input, true});
    }
  }
  if (options_.python_sources) add_folder(python_library(), true);
}

void CorpusReader::add_folder(const fs::path& folder, bool python_only) {
  std::vector<fs::path> found;
  try {
    for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::end(entry); ++entry) {
      const std::string name = entry->path().filename().string();
      const bool skip = name[0] == '.' || (python_only && is_left_out_of_python(name));
      if (skip) entry.disable_recursion_pending();
      if (skip || (python_only && entry->path().extension() != ".py") || !is_included(name))
        continue;
      std::error_code unreadable;  // a link that leads nowhere, or to itself
      if (entry->is_regular_file(unreadable)) found.push_back(entry->path());
    }
  } catch (const fs::filesystem_error& error) {
    io::throw_system_error("read", error.path1().empty() ? folder : error.path1(),
                           error.code().value());
  }
  std::string patterns;
  for (const std::string& pattern : options_.include) {
    patterns += (patterns.empty() ? " that match " : " or ") + pattern;
  }
  PLX_CHECK(!found.empty(), folder.string(), ": no ", python_only ? ".py " : "",
            "files in this folder", patterns);
  std::sort(found.begin(), found.end(),
            [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  for (fs::path& path : found) files_.push_back({std::move(path), false});
}

bool CorpusReader::is_included(const std::string& name) const {
  return options_.include.empty() ||
         std::ranges::any_of(options_.include, [&](const std::string& pattern) {
           return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
         });
}

std::optional<Document> CorpusReader::next() {
  while (std::optional<Document> document = read_next()) {
    if (document->text.size() == 0) {
      ++counts_.num_empty;
      continue;
    }
    if (!seen_.insert(document->hash).second) {
      ++counts_.num_duplicates;
      continue;
    }
    ++counts_.num_documents;
    counts_.num_text_bytes += document->text.size();
    return document;
  }
  PLX_CHECK(counts_.num_documents > 0, "the corpus is empty: ", files_.size(), " files, ",
            counts_.num_empty, " empty documents, ",
            counts_.not_text.size() + counts_.not_utf8.size(), " files that are not text");
  return std::nullopt;
}

bool CorpusReader::has_json_lines() const {
  return std::ranges::any_of(files_, [](const File& file) { return is_json_lines(file.path); });
}

bool CorpusReader::has_folders() const {
  return std::ranges::any_of(files_, [](const File& file) { return !file.is_named; });
}

std::optional<Document> CorpusReader::read_next() {
  while (true) {
    if (lines_.is_open()) {
      if (auto document = read_line()) return document;
    }
    if (file_idx_ == files_.size()) return std::nullopt;
    const File& file = files_[file_idx_++];
    if (is_json_lines(file.path)) {
      line_number_ = 0;
      errno = 0;
      lines_.open(file.path, std::ios::binary);
      if (!lines_) io::throw_system_error("read", file.path, errno);
    } else if (auto document = read_text(file)) {
      return document;
    }
  }
}

std::optional<Document> CorpusReader::read_text(const File& file) {
  std::error_code unknown;
  const bool is_regular = fs::is_regular_file(file.path, unknown);
  const auto num_bytes = is_regular ? static_cast<int64_t>(fs::file_size(file.path, unknown)) : 0;
  DocumentText text = num_bytes > options_.largest_in_memory
                          ? DocumentText(file.path, num_bytes)
                          : DocumentText(io::read_file(file.path));
  TextCheck check;
  for (int64_t begin = 0; begin < text.size(); begin += kPieceBytes) {
    check.add(text.read(begin, std::min(kPieceBytes, text.size() - begin)));
  }
  if (check.looks_binary()) {
    PLX_CHECK(!file.is_named, file.path.string(),
              ": not a text file: it holds NUL bytes or is mostly not UTF-8");
    counts_.not_text.push_back(file.path.string());
    return std::nullopt;
  }
  if (options_.utf8_only && !check.is_utf8()) {
    PLX_CHECK(!file.is_named, file.path.string(), ": not valid UTF-8, which is asked for");
    counts_.not_utf8.push_back(file.path.string());
    return std::nullopt;
  }
  return Document{file.path.string(), std::move(text), check.hash()};
}

std::optional<Document> CorpusReader::read_line() {
  const fs::path& path = files_[file_idx_ - 1].path;
  std::string line;
  errno = 0;
  while (std::getline(lines_, line)) {
    ++line_number_;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::string source = path.string() + ":" + std::to_string(line_number_);
    std::string text = text_field(line, options_.field, source);
    const uint64_t hash = io::hash64(text);
    return Document{std::move(source), std::move(text), hash};
  }
  if (lines_.bad()) io::throw_system_error("read", path, errno);
  lines_.close();
  lines_.clear();
  return std::nullopt;
}

Splitter::Splitter(double validation_fraction, uint64_t seed)
    : validation_fraction_(validation_fraction), seed_(seed) {
  PLX_CHECK(validation_fraction >= 0 && validation_fraction < 1,
            "the validation fraction must lie in [0, 1), given ", validation_fraction);
}

io::Split Splitter::split_of(const Document& document) const {
  const uint64_t mixed = io::mix64(document.hash ^ io::mix64(seed_));
  const double position = static_cast<double>(mixed >> 11) * 0x1p-53;  // in [0, 1)
  return position < validation_fraction_ ? io::Split::kValidation : io::Split::kTrain;
}

Splitter::Item Splitter::decide(Document document) {
  const io::Split split = split_of(document);
  ++(split == io::Split::kTrain ? num_train_ : num_validation_);
  return {split, std::move(document.text)};
}

std::optional<Splitter::Item> Splitter::add(Document document) {
  num_bytes_ += document.text.size();
  if (validation_fraction_ == 0) return decide(std::move(document));
  if (!held_) {
    held_ = std::move(document);
    return std::nullopt;
  }
  if (document.text.size() > held_->text.size()) std::swap(*held_, document);
  return decide(std::move(document));
}

std::vector<Splitter::Item> Splitter::finish() {
  std::vector<Item> items;
  if (!held_) return items;
  Document last = std::move(*held_);
  held_.reset();
  if (num_validation_ == 0) {
    const int64_t cut = cut_position(last.text);
    items.push_back({io::Split::kTrain, last.text.part(0, cut)});
    items.push_back({io::Split::kValidation, last.text.part(cut, last.text.size())});
  } else if (num_train_ == 0) {
    items.push_back({io::Split::kTrain, std::move(last.text)});
  } else {
    items.push_back(decide(std::move(last)));
  }
  return items;
}

// Just after the last newline that leaves validation between one and two times its share, else at
// the character boundary at or before its share.
int64_t Splitter::cut_position(const DocumentText& text) const {
  const int64_t size = text.size();
  PLX_CHECK(size >= 2, "the corpus is too small to hold out validation text; give more text or a ",
            "validation fraction of 0");
  const int64_t share = std::llround(validation_fraction_ * static_cast<double>(num_bytes_));
  const int64_t tail = std::clamp<int64_t>(share, 1, size / 2);
  const int64_t latest = size - tail;
  const int64_t earliest = size - std::min(2 * tail, std::max<int64_t>(3 * size / 4, 1));
  const auto line_start = last_line_start(text, std::max<int64_t>(earliest, 1), latest);
  if (line_start) return *line_start;
  int64_t cut = latest;
  while (cut > 1 && (static_cast<unsigned char>(text.read(cut, 1)[0]) & 0xC0) == 0x80) --cut;
  return cut;
}

}  // namespace parallax::text
