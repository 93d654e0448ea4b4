// From files to documents: what a corpus consists of, and which documents are held out.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "io/token_manifest.h"
#include "text/document.h"

namespace parallax::text {

struct CorpusOptions {
  /// Files and folders. A folder is searched recursively in the order of its paths; hidden entries
  /// and links to folders are left out. A .jsonl or .ndjson file holds one JSON object per line,
  /// each a document; any other file is one document.
  std::vector<std::filesystem::path> inputs = {};
  /// The field of a JSON object that holds the text.
  std::string field = "text";
  /// Patterns of the shell (fnmatch(3): * ? [a-z]). Of a folder's files only those are read whose
  /// name, without its folder, matches one; all if there are none.
  std::vector<std::string> include = {};
  /// Text files with a byte outside valid UTF-8 are treated as files that are not text are.
  bool utf8_only = false;
  /// Adds the .py files of the standard library of the Python found (python.h), without its tests
  /// and installed packages.
  bool python_sources = false;
  /// Files that are larger stay on disk: they are read once for hash and check, and again in parts
  /// as the text of their document is used.
  int64_t largest_in_memory = kPieceBytes;
};

struct Document {
  std::string source;  // the file, for JSON lines with ":line"
  DocumentText text;
  uint64_t hash = 0;  // io::hash64 of the text
};

struct CorpusCounts {
  int64_t num_documents = 0, num_text_bytes = 0;
  int64_t num_duplicates = 0;         // same bytes as an earlier document: left out
  int64_t num_empty = 0;              // no bytes: left out
  std::vector<std::string> not_text;  // files found in folders and left out
  std::vector<std::string> not_utf8;  // text files left out by CorpusOptions::utf8_only
};

/// Reads a corpus document by document. Memory: CorpusOptions::largest_in_memory or the largest
/// JSON line (a pipe is read whole), and 8 bytes and a table entry per document to find duplicates.
class CorpusReader {
 public:
  /// Errors: nothing named, a path that does not exist, a folder without files (of those names), no
  /// Python.
  explicit CorpusReader(CorpusOptions options);

  /// The next document, or nothing at the end. Errors: a file that is not text although it was
  /// named itself (in folders such files are counted and left out), a line that is not JSON or
  /// lacks the field (names file and line), a corpus without any document. Invalid UTF-8 in a line
  /// becomes U+FFFD.
  std::optional<Document> next();
  const CorpusCounts& counts() const { return counts_; }
  /// Whether any file is JSON lines, so that CorpusOptions::field matters.
  bool has_json_lines() const;
  /// Whether a folder is read, so that CorpusOptions::include matters.
  bool has_folders() const;

 private:
  struct File {
    std::filesystem::path path;
    bool is_named;
  };
  void add_folder(const std::filesystem::path& folder, bool python_only);
  bool is_included(const std::string& name) const;
  std::optional<Document> read_next();
  std::optional<Document> read_text(const File& file);
  std::optional<Document> read_line();

  CorpusOptions options_;
  std::vector<File> files_;
  size_t file_idx_ = 0;  // the next one to open
  std::ifstream lines_;  // the JSON lines file being read, if one is
  int64_t line_number_ = 0;
  std::unordered_set<uint64_t> seen_;
  CorpusCounts counts_;
};

/// True for bytes that a text model should not see: a NUL byte, or more than a tenth of the bytes
/// outside any valid UTF-8 character (so Latin-1 prose still counts as text).
bool looks_binary(std::string_view bytes);

/// Divides documents into train and validation. A document belongs to validation when
/// mix64(hash ^ mix64(seed)) / 2^64 < validation_fraction: its own text decides, so the split does
/// not depend on order, file names or other documents. For corpora of few documents, where that
/// can leave a side empty, the largest document is held back to the end (a larger one displaces
/// it), and then
///   if no other document is in validation, it is cut: its tail, as many bytes as the fraction of
///     the whole corpus but at most half of it, moved to a line boundary where one is near, becomes
///     validation;
///   else if no other is in train, it goes to train;
///   else its own hash decides.
/// With a fraction of 0 everything goes to train.
class Splitter {
 public:
  struct Item {
    io::Split split;
    DocumentText text;
  };
  /// validation_fraction in [0, 1).
  Splitter(double validation_fraction, uint64_t seed);

  /// Takes the next document; returns what is decided by now (it or the one it displaces).
  std::optional<Item> add(Document document);
  /// The held-back document, whole or in two parts. An Error if the corpus is too small to divide.
  std::vector<Item> finish();

 private:
  io::Split split_of(const Document& document) const;
  Item decide(Document document);
  int64_t cut_position(const DocumentText& text) const;

  double validation_fraction_;
  uint64_t seed_;
  std::optional<Document> held_;
  int64_t num_train_ = 0, num_validation_ = 0, num_bytes_ = 0;
};

}  // namespace parallax::text
