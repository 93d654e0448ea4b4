// Which documents a corpus consists of, what is refused, and how documents are divided.
// SPDX-License-Identifier: Apache-2.0
#include "text/corpus.h"

#include <gtest/gtest.h>

#include <cmath>

#include "io/hash.h"
#include "support/temp_folder.h"

namespace parallax::text {
namespace {

using io::Split;
using test::expect_error;
using test::TempFolder;
using Texts = std::vector<std::string>;

Document make_document(std::string text) {
  const uint64_t hash = io::hash64(text);
  return {"test", std::move(text), hash};
}

Texts read_all(CorpusReader& reader) {
  Texts texts;
  while (auto document = reader.next()) texts.push_back(document->text.read_all());
  return texts;
}

Texts read_all(const CorpusOptions& options) {
  CorpusReader reader(options);
  return read_all(reader);
}

TEST(CorpusReader, FolderIsReadRecursivelyInPathOrderWithoutHiddenEntries) {
  const TempFolder folder;
  folder.write("c/b.txt", "3");
  folder.write("b.txt", "2");
  folder.write("c/a/x.md", "1");
  folder.write(".git/config", "hidden");
  folder.write(".notes", "hidden");
  std::filesystem::create_directory_symlink(folder / "c", folder / "link");
  EXPECT_EQ(read_all({.inputs = {folder.path()}}), (Texts{"2", "1", "3"}));
}

TEST(CorpusReader, OnlyIncludedNamesOfFoldersAreRead) {
  const TempFolder folder;
  folder.write("x/a.py", "1");
  folder.write("x/b.pyi", "2");
  folder.write("x/c.txt", "3");
  folder.write("x/d.py/e.md", "4");
  folder.write("x/f.pyc", "5");
  const auto named = folder.write("named.txt", "6");
  const CorpusOptions options{.inputs = {folder / "x", named}, .include = {"*.py", "[a-c].p?i"}};
  EXPECT_EQ(read_all(options), (Texts{"1", "2", "6"}));
  CorpusReader reader(options);
  EXPECT_TRUE(reader.has_folders());
  EXPECT_FALSE(CorpusReader({.inputs = {named}}).has_folders());
  expect_error([&] { CorpusReader({.inputs = {folder / "x"}, .include = {"*.c", "*.h"}}); },
               {"no files in this folder that match *.c or *.h"});
}

TEST(CorpusReader, TextsThatAreNotUtf8AreLeftOutWhereThatIsAskedFor) {
  const TempFolder folder;
  const std::string prose(100, 'x');
  const auto latin1 = folder.write("x/latin1.txt", prose + "\xE9" + prose);
  const auto cut = folder.write("x/cut.txt", prose + "\xE2\x82");
  folder.write("x/utf8.txt", prose + "\xC3\xA9");
  EXPECT_EQ(read_all({.inputs = {folder / "x"}}).size(), 3u);
  CorpusReader reader({.inputs = {folder / "x"}, .utf8_only = true});
  EXPECT_EQ(read_all(reader), (Texts{prose + "\xC3\xA9"}));
  EXPECT_EQ(reader.counts().not_utf8, (Texts{cut.string(), latin1.string()}));
  EXPECT_TRUE(reader.counts().not_text.empty());
  expect_error([&] { read_all({.inputs = {latin1}, .utf8_only = true}); },
               {latin1.string(), "not valid UTF-8"});
}

TEST(CorpusReader, InputsKeepTheirOrder) {
  const TempFolder folder;
  const auto b = folder.write("b.txt", "b"), a = folder.write("a.txt", "a");
  EXPECT_EQ(read_all({.inputs = {b, a}}), (Texts{"b", "a"}));
}

TEST(CorpusReader, JsonLinesAreDocumentsAlsoInsideFolders) {
  const TempFolder folder;
  folder.write("x/docs.jsonl",
               "{\"text\": \"one\\n\", \"id\": 1}\r\n\n  \n{\"id\": 2, \"text\": \"zw\\u00f6lf\"}");
  folder.write("x/tail.txt", "end");
  EXPECT_EQ(read_all({.inputs = {folder / "x"}}), (Texts{"one\n", "zw\xC3\xB6lf", "end"}));
}

TEST(CorpusReader, InvalidUtf8InJsonLinesIsReplaced) {
  const TempFolder folder;
  const auto file = folder.write("d.jsonl", "{\"text\": \"a\xFF\"}\n{\"text\": \"\xE2\x82\"}\n");
  EXPECT_EQ(read_all({.inputs = {file}}), (Texts{"a\xEF\xBF\xBD", "\xEF\xBF\xBD"}));
}

TEST(CorpusReader, HalfSurrogatePairsInJsonLinesAreReplaced) {
  const TempFolder folder;
  const auto file = folder.write("d.jsonl", R"({"text": "a\ud800b"}
{"text": "\uDC00\udfff\ud83d"}
{"text": "\ud83d\ude00"}
{"text": "\ud83d\ud83d\ude00"}
{"text": "\ud800\u0041"}
{"text": "\\ud800"}
{"text": "\\\ud800\"", "\udddd": 1}
)");
  const std::string bad = "\xEF\xBF\xBD", smile = "\xF0\x9F\x98\x80";
  EXPECT_EQ(read_all({.inputs = {file}}),
            (Texts{"a" + bad + "b", bad + bad + bad, smile, bad + smile, bad + "A", "\\ud800",
                   "\\" + bad + "\""}));
  const auto cut = folder.write("cut.jsonl", R"({"text": "\ud8)");
  expect_error([&] { read_all({.inputs = {cut}}); }, {"cut.jsonl:1: not JSON"});
}

TEST(CorpusReader, LinksThatLeadNowhereAreLeftOut) {
  const TempFolder folder;
  folder.write("a.txt", "text");
  std::filesystem::create_symlink("loop", folder / "loop");
  std::filesystem::create_symlink("gone", folder / "dangling");
  EXPECT_EQ(read_all({.inputs = {folder.path()}}), Texts{"text"});
}

TEST(CorpusReader, FieldOptionNamesTheText) {
  const TempFolder folder;
  const auto file = folder.write("d.ndjson", "{\"text\": 1, \"body\": \"b\"}\n");
  EXPECT_EQ(read_all({.inputs = {file}, .field = "body"}), Texts{"b"});
}

TEST(CorpusReader, DuplicatesAndEmptyDocumentsAreLeftOutAndCounted) {
  const TempFolder folder;
  folder.write("a.txt", "same");
  folder.write("b.txt", "same");
  folder.write("c.txt", "");
  folder.write("d.jsonl", "{\"text\": \"same\"}\n{\"text\": \"other\"}\n{\"text\": \"\"}\n");
  CorpusReader reader({.inputs = {folder.path(), folder / "a.txt"}});
  EXPECT_EQ(read_all(reader), (Texts{"same", "other"}));
  EXPECT_EQ(reader.counts().num_documents, 2);
  EXPECT_EQ(reader.counts().num_text_bytes, 9);
  EXPECT_EQ(reader.counts().num_duplicates, 3);
  EXPECT_EQ(reader.counts().num_empty, 2);
}

TEST(CorpusReader, BinaryFilesAreCountedInFoldersAndRefusedWhenNamed) {
  const TempFolder folder;
  const auto binary = folder.write("x/image", std::string("\x89PNG\0\0", 6));
  folder.write("x/text", "hello");
  CorpusReader reader({.inputs = {folder / "x"}});
  EXPECT_EQ(read_all(reader), Texts{"hello"});
  EXPECT_EQ(reader.counts().not_text, Texts{binary.string()});
  expect_error([&] { read_all({.inputs = {binary}}); }, {binary.string(), "not a text file"});
}

TEST(CorpusReader, LooksBinaryCountsInvalidUtf8) {
  EXPECT_FALSE(looks_binary(""));
  EXPECT_FALSE(looks_binary("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"));
  EXPECT_TRUE(looks_binary(std::string("text\0", 5)));
  EXPECT_FALSE(looks_binary("d\xE9j\xE0 vu: twenty characters or so"));  // Latin-1
  EXPECT_TRUE(looks_binary("\x82\xA0\x82\xA2\x82\xA4"));                 // Shift-JIS
  for (const char* invalid : {"\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
                              "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\x80"}) {
    EXPECT_TRUE(looks_binary(invalid)) << invalid;
  }
}

TEST(CorpusReader, FilesOnDiskAreTheSameDocumentsAsInMemory) {
  const TempFolder folder;
  folder.write("a.txt", "a text of some length\n");
  folder.write("b.txt", "a text of some length\n");
  folder.write("c", std::string("\x89PNG and more\0\0", 15));
  folder.write("d", "\x82\xA0\x82\xA2\x82\xA4");
  CorpusReader reader({.inputs = {folder.path()}, .largest_in_memory = 4});
  auto document = reader.next();
  ASSERT_TRUE(document);
  EXPECT_EQ(document->text.read_all(), "a text of some length\n");
  EXPECT_EQ(document->hash, io::hash64("a text of some length\n"));
  EXPECT_EQ(document->text.part(2, 6).read(1, 3), "ext");
  folder.write("a.txt", "short");
  expect_error([&] { document->text.read_all(); }, {"a.txt", "has become shorter"});
  EXPECT_FALSE(reader.next());
  EXPECT_EQ(reader.counts().num_duplicates, 1);
  EXPECT_EQ(reader.counts().not_text.size(), 2u);
}

TEST(CorpusReader, BadJsonLinesNameFileAndLine) {
  const TempFolder folder;
  const auto expect_line_error = [&](const std::string& line,
                                     std::initializer_list<std::string_view> parts) {
    const auto file = folder.write("d.jsonl", "{\"text\": \"fine\"}\n\n" + line + "\n");
    expect_error([&] { read_all({.inputs = {file}}); }, parts);
    expect_error([&] { read_all({.inputs = {file}}); }, {file.string() + ":3"});
  };
  expect_line_error("{\"text\": ", {"not JSON"});
  expect_line_error("[1]", {"JSON object", "array"});
  expect_line_error("{\"body\": \"x\", \"id\": 3}", {"no field \"text\"", "\"body\", \"id\""});
  expect_line_error("{\"text\": null}", {"must be a string", "null"});
}

TEST(CorpusReader, NothingToReadIsAnError) {
  const TempFolder folder;
  expect_error([&] { CorpusReader({}); }, {"no input"});
  expect_error([&] { CorpusReader({.inputs = {folder / "none"}}); },
               {(folder / "none").string(), "No such file"});
  expect_error([&] { CorpusReader({.inputs = {folder.path()}}); },
               {folder.path().string(), "no files"});
  folder.write("empty.txt", "");
  folder.write("zeros", std::string(3, '\0'));
  expect_error([&] { read_all({.inputs = {folder.path()}}); },
               {"corpus is empty", "2 files", "1 empty", "1 files that are not text"});
}

TEST(CorpusReader, PythonSourcesAreTheStandardLibraryWithoutTests) {
  CorpusReader reader({.python_sources = true});
  int64_t num_documents = 0;
  bool has_argparse = false;
  while (auto document = reader.next()) {
    ++num_documents;
    const std::filesystem::path path = document->source;
    EXPECT_EQ(path.extension(), ".py") << path;
    EXPECT_EQ(document->source.find("site-packages"), std::string::npos) << path;
    EXPECT_EQ(document->source.find("/test/"), std::string::npos) << path;
    has_argparse |= path.filename() == "argparse.py";
  }
  EXPECT_TRUE(has_argparse);
  EXPECT_GT(num_documents, 100);
  EXPECT_GT(reader.counts().num_text_bytes, 2'000'000);
}

// The texts that each split gets.
struct Divided {
  Texts train, validation;
};

Divided divide(const Texts& texts, double fraction, uint64_t seed = 0) {
  Splitter splitter(fraction, seed);
  Divided divided;
  const auto take = [&](Splitter::Item item) {
    (item.split == Split::kTrain ? divided.train : divided.validation)
        .push_back(item.text.read_all());
  };
  for (const std::string& text : texts) {
    if (auto item = splitter.add(make_document(text))) take(std::move(*item));
  }
  for (auto& item : splitter.finish()) take(std::move(item));
  return divided;
}

Texts numbered(int count) {
  Texts texts;
  for (int idx = 0; idx < count; ++idx) texts.push_back("document " + std::to_string(idx));
  return texts;
}

TEST(Splitter, ShareOfValidationIsTheFraction) {
  constexpr int kCount = 20'000;
  const Divided divided = divide(numbered(kCount), 0.1);
  const double deviation = std::sqrt(kCount * 0.1 * 0.9);  // of a binomial count: 42
  EXPECT_NEAR(static_cast<double>(divided.validation.size()), kCount * 0.1, 5 * deviation);
  EXPECT_EQ(divided.train.size() + divided.validation.size(), static_cast<size_t>(kCount));
}

TEST(Splitter, TextAndSeedDecideNotOrderOrCompany) {
  const Texts texts = numbered(2000);
  Texts reversed(texts.rbegin(), texts.rend());
  reversed.resize(1000);
  const auto as_set = [](const Texts& some) {
    return std::unordered_set<std::string>(some.begin(), some.end());
  };
  const auto all = as_set(divide(texts, 0.2).validation);
  const auto half = divide(reversed, 0.2).validation;
  EXPECT_GT(half.size(), 100u);
  for (const std::string& text : half) EXPECT_TRUE(all.count(text)) << text;
  EXPECT_NE(as_set(divide(texts, 0.2, 1).validation), all);
}

TEST(Splitter, FractionZeroKeepsEverythingInOrder) {
  EXPECT_EQ(divide(numbered(100), 0).train, numbered(100));
}

TEST(Splitter, SingleDocumentIsCutAtALineNearItsEnd) {
  std::string text;
  for (int line = 0; line < 1000; ++line) text += "line " + std::to_string(1000 + line) + "\n";
  for (uint64_t seed = 0; seed < 20; ++seed) {  // whatever side its hash is on
    const Divided divided = divide({text}, 0.1, seed);
    ASSERT_EQ(divided.train.size(), 1u);
    ASSERT_EQ(divided.validation.size(), 1u);
    EXPECT_EQ(divided.train[0] + divided.validation[0], text);
    EXPECT_EQ(divided.validation[0].size(), 1000u);  // 100 lines of 10 bytes
    EXPECT_EQ(divided.train[0].back(), '\n');
  }
}

TEST(Splitter, TheCutIsFoundFarFromTheEnd) {
  const std::string text = std::string(300'000, 'x') + "\n" + std::string(200'000, 'y');
  const Divided divided = divide({text}, 0.25);  // blocks of 64 kB are searched for the line end
  EXPECT_EQ(divided.validation[0], std::string(200'000, 'y'));
}

TEST(Splitter, DocumentWithoutLinesIsCutBetweenCharacters) {
  std::string text;
  for (int idx = 0; idx < 100; ++idx) text += "\xE2\x82\xAC";
  const Divided divided = divide({text}, 0.1);
  EXPECT_EQ(divided.train[0] + divided.validation[0], text);
  EXPECT_EQ(divided.validation[0].size(), 30u);
  EXPECT_EQ(divide({text}, 0.05).validation[0].size(), 15u);
  EXPECT_EQ(divide({"a\xE2\x82\xAC\xE2\x82\xAC"}, 0.3).validation[0], "\xE2\x82\xAC");
}

TEST(Splitter, FewDocumentsNeverLeaveASideEmpty) {
  for (int count = 1; count <= 4; ++count) {
    for (const double fraction : {0.001, 0.05, 0.5, 0.99}) {
      for (uint64_t seed = 0; seed < 50; ++seed) {
        const Divided divided = divide(numbered(count), fraction, seed);
        EXPECT_FALSE(divided.train.empty());
        EXPECT_FALSE(divided.validation.empty());
      }
    }
  }
}

TEST(Splitter, CutIsTheShareOfTheWholeCorpusFromItsLargestDocument) {
  std::string large;
  for (int line = 0; line < 500; ++line) large += "another 19 letters\n";
  const std::string small = large.substr(0, 19 * 100), medium = large.substr(0, 19 * 200);
  // 800 lines in all; 0.001 leaves none of the small ones in validation for this seed.
  const Divided divided = divide({small, large, medium}, 0.001);
  ASSERT_EQ(divided.validation.size(), 1u);
  EXPECT_EQ(divided.validation[0].size(), 19u);
  EXPECT_EQ(divided.train, (Texts{small, medium, large.substr(0, 19 * 499)}));
}

TEST(Splitter, RefusesWhatCannotBeDivided) {
  expect_error([] { Splitter(1.0, 0); }, {"[0, 1)", "1"});
  expect_error([] { Splitter(-0.1, 0); }, {"[0, 1)"});
  expect_error([] { divide({"x"}, 0.1); }, {"too small"});
}

}  // namespace
}  // namespace parallax::text
