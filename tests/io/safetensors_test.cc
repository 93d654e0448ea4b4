// Safetensors files: what is written is read back, and a header that lies is refused by name.
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "io/atomic_file.h"
#include "support/temp_folder.h"

namespace parallax::io {
namespace {

using test::expect_error;
using test::FileSizeLimit;
using test::TempFolder;

template <typename Value>
std::span<const std::byte> bytes_of(const std::vector<Value>& values) {
  return std::as_bytes(std::span<const Value>(values));
}

// A file with the given header text and that many zero bytes of data.
std::string raw_file(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, '\0');
}

// Opening the file must fail with a message that names the file and has each of `parts`.
void expect_refused(const std::string& contents, std::initializer_list<std::string_view> parts) {
  const TempFolder folder;
  const auto path = folder.write("model.safetensors", contents);
  expect_error([&] { SafetensorsFile file(path); }, parts);
  expect_error([&] { SafetensorsFile file(path); }, {path.string()});
}

TEST(Safetensors, WrittenTensorsAndMetadataAreReadBackAligned) {
  const TempFolder folder;
  const std::vector<uint8_t> mask = {1, 0, 1};
  const std::vector<float> weight = {1.5f, -2.0f, 3.0f, 0.25f};
  const std::vector<int64_t> step = {42};
  write_safetensors(folder / "m.safetensors",
                    {{"a.mask", {"BOOL", {3}, bytes_of(mask)}},
                     {"b.weight", {"F32", {2, 2}, bytes_of(weight)}},
                     {"c.step", {"I64", {}, bytes_of(step)}},
                     {"d.empty", {"BF16", {0, 7}, {}}}},
                    {{"format", "pt"}});
  const SafetensorsFile file(folder / "m.safetensors");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const StoredTensor& read = file.tensors().at("b.weight");
  EXPECT_EQ(read.dtype, "F32");
  EXPECT_EQ(read.shape, (std::vector<int64_t>{2, 2}));
  ASSERT_EQ(read.data.size(), 16u);
  EXPECT_EQ(std::memcmp(read.data.data(), weight.data(), 16), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data.data()) % 4, 0u);
  EXPECT_EQ(*reinterpret_cast<const int64_t*>(file.tensors().at("c.step").data.data()), 42);
  EXPECT_EQ(file.tensors().at("a.mask").data.size(), 3u);
  EXPECT_TRUE(file.tensors().at("d.empty").data.empty());
}

TEST(Safetensors, AcceptsAnyOrderOfRangesAndPaddedHeaders) {
  const TempFolder folder;
  const auto path = folder.write("m.safetensors", raw_file(R"({
    "y": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
    "x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}   )",
                                                           5));
  EXPECT_EQ(SafetensorsFile(path).tensors().size(), 2u);
}

TEST(Safetensors, MovedFileKeepsItsTensors) {
  const TempFolder folder;
  const std::vector<uint8_t> values = {7};
  write_safetensors(folder / "m", {{"x", {"U8", {1}, bytes_of(values)}}});
  SafetensorsFile file(folder / "m");
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(moved.tensors().at("x").data[0], std::byte{7});
}

TEST(SafetensorsRefuses, TruncatedFiles) {
  const std::string whole =
      raw_file(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 8);
  expect_refused("", {"0 bytes"});
  expect_refused(whole.substr(0, 5), {"5 bytes"});
  expect_refused(whole.substr(0, 30), {"truncated?", "22 after the length"});
  expect_refused(whole.substr(0, whole.size() - 1), {"tensor \"x\"", "truncated?"});
}

TEST(SafetensorsRefuses, EveryPrefixOfAFile) {
  const TempFolder folder;
  const std::string whole =
      raw_file(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 8);
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto path = folder.write("m", whole.substr(0, length));
    EXPECT_THROW(SafetensorsFile file(path), Error) << "first " << length << " bytes";
  }
}

TEST(SafetensorsRefuses, RandomDamageWithAnErrorOrOpensWithTensorsInsideTheFile) {
  const TempFolder folder;
  const std::string whole = raw_file(R"({"x": {"dtype": "F32", "shape": [2, 1],
      "data_offsets": [0, 8]}, "y": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}})",
                                     11);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  constexpr std::string_view kBytes = "{}[]\",:0123456789-.eFUx \xff";
  int num_opened = 0;
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::string damaged = whole;
    for (unsigned change = 0; change <= random() % 3; ++change) {
      damaged[random() % damaged.size()] = kBytes[random() % kBytes.size()];
    }
    const auto path = folder.write("m", damaged);
    try {
      size_t num_bytes = 0;
      const SafetensorsFile file(path);
      for (const auto& [name, tensor] : file.tensors()) num_bytes += tensor.data.size();
      EXPECT_EQ(num_bytes, 11u);
      ++num_opened;
    } catch (const Error&) {
    }
  }
  EXPECT_LT(num_opened, 1000);
}

TEST(SafetensorsRefuses, HeaderLengthBeyondLimitOrFile) {
  std::string file = raw_file("{}", 0);
  file[6] = '\x01';  // 2^48
  expect_refused(file, {"claims 281474976710658 bytes"});
  file = raw_file("{}", 0);
  file[1] = '\x01';  // 256
  expect_refused(file, {"claims 258 bytes", "has 2"});
}

TEST(SafetensorsRefuses, HeadersThatAreNotAnObject) {
  expect_refused(raw_file("{\"x\": ", 0), {"not JSON"});
  expect_refused(raw_file("", 0), {"not JSON"});
  expect_refused(raw_file("[1]", 0), {"JSON object", "array"});
  expect_refused(raw_file("{\"\xff\": 1}", 0), {"not JSON"});
}

TEST(SafetensorsRefuses, EntriesOfTheWrongKind) {
  expect_refused(raw_file(R"({"x": 3})", 0), {"tensor \"x\"", "dtype, shape and data_offsets"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": []}})", 4),
                 {"tensor \"x\"", "dtype, shape and data_offsets"});
  expect_refused(raw_file(R"({"x": {"dtype": 1, "shape": [], "data_offsets": [0, 4]}})", 4),
                 {"tensor \"x\"", "dtype must be a string"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4),
                 {"tensor \"x\"", "shape", "[-1]"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}})", 4),
                 {"tensor \"x\"", "shape"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}})", 4),
                 {"tensor \"x\"", "data_offsets"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}})", 4),
                 {"tensor \"x\"", "data_offsets"});
  expect_refused(raw_file(R"({"__metadata__": {"a": 1}})", 0), {"__metadata__", "\"a\""});
}

TEST(SafetensorsRefuses, UnknownDTypes) {
  expect_refused(raw_file(R"({"x": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}})", 4),
                 {"tensor \"x\"", "unknown dtype \"F31\"", "BF16"});
}

TEST(SafetensorsRefuses, RangesThatDisagreeWithTheShapeOrTheFile) {
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", 8),
                 {"tensor \"x\"", "[3] takes 12 bytes", "span 8"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})", 8),
                 {"tensor \"x\"", "[8, 0]"});
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})", 8),
                 {"tensor \"x\"", "8 bytes of data"});
}

TEST(SafetensorsRefuses, SizesThatOverflow) {
  expect_refused(raw_file(R"({"x": {"dtype": "F32", "shape": [4294967296, 4294967296],
                              "data_offsets": [0, 0]}})",
                          0),
                 {"tensor \"x\"", "overflows"});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [18446744073709551615],
                              "data_offsets": [0, 0]}})",
                          0),
                 {"tensor \"x\"", "shape"});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [1],
                              "data_offsets": [0, 18446744073709551615]}})",
                          1),
                 {"tensor \"x\"", "data_offsets"});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [1],
                              "data_offsets": [9223372036854775806, 9223372036854775807]}})",
                          1),
                 {"tensor \"x\"", "1 bytes of data"});
}

TEST(SafetensorsRefuses, OverlapsAndGaps) {
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                              "y": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}})",
                          6),
                 {"tensor \"y\" overlaps tensor \"x\""});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                              "y": {"dtype": "U8", "shape": [4], "data_offsets": [6, 10]}})",
                          10),
                 {"2 bytes between tensor \"x\" and tensor \"y\""});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [1, 5]}})", 5),
                 {"1 bytes between the start of the data and tensor \"x\""});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})", 5),
                 {"1 bytes after tensor \"x\""});
}

TEST(SafetensorsRefuses, NamesThatComeTwice) {
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                              "x": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}})",
                          4),
                 {"\"x\" comes twice"});
  expect_refused(raw_file(R"({"x": {"dtype": "U8", "dtype": "I8", "shape": [2],
                              "data_offsets": [0, 2]}})",
                          2),
                 {"\"dtype\" comes twice"});
}

TEST(SafetensorsWriter, RefusesTensorsThatDisagreeWithTheirBytes) {
  const TempFolder folder;
  const std::vector<float> values(3);
  const auto path = folder / "m";
  expect_error([&] { write_safetensors(path, {{"x", {"F32", {4}, bytes_of(values)}}}); },
               {path.string(), "tensor \"x\"", "take 16 bytes, given 12"});
  expect_error([&] { write_safetensors(path, {{"x", {"float", {3}, bytes_of(values)}}}); },
               {"unknown dtype \"float\""});
  expect_error([&] { write_safetensors(path, {{"__metadata__", {"F32", {3}, bytes_of(values)}}}); },
               {"reserved"});
  expect_error([&] { write_safetensors(path, {{"\xff", {"F32", {3}, bytes_of(values)}}}); },
               {"UTF-8"});
  EXPECT_TRUE(folder.entries().empty());
}

TEST(SafetensorsWriter, FullDiskKeepsTheOldFile) {
  const TempFolder folder;
  const std::vector<float> small(1), large(100'000);
  write_safetensors(folder / "m", {{"x", {"F32", {1}, bytes_of(small)}}});
  {
    const FileSizeLimit limit(1000);
    expect_error(
        [&] { write_safetensors(folder / "m", {{"x", {"F32", {100'000}, bytes_of(large)}}}); },
        {(folder / "m").string(), "File too large"});
  }
  EXPECT_EQ(SafetensorsFile(folder / "m").tensors().at("x").data.size(), 4u);
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"m"});
}

}  // namespace
}  // namespace parallax::io
