// The file is: 8 bytes little-endian length of the header, the header (JSON: tensor name -> dtype,
// shape, data_offsets; "__metadata__" -> strings), the tensors' bytes end to end. Nothing of the
// header is trusted: the rules are those of the reference implementation (huggingface/safetensors).
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "io/atomic_file.h"
#include "io/json_error.h"
#include "io/mapped_file.h"
#include "parallax/error.h"

namespace parallax::io {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr std::string_view kMetadataKey = "__metadata__";

struct DTypeSize {
  std::string_view name;
  int64_t num_bytes;
};
constexpr DTypeSize kDTypeSizes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
    {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
    {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8},
};

// Bytes per element; 0 for a name that is none of the table.
int64_t dtype_bytes(std::string_view dtype) {
  for (const DTypeSize& entry : kDTypeSizes) {
    if (entry.name == dtype) return entry.num_bytes;
  }
  return 0;
}

std::string known_dtypes() {
  std::string names;
  for (const DTypeSize& entry : kDTypeSizes) {
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  return names;
}

// Parses the header, refusing a key that comes twice in one object (the parser would keep one of
// the two in silence).
json parse_header(std::string_view text, const std::string& file) {
  std::vector<std::set<std::string>> open_objects;
  std::string repeated;
  const auto watch_keys = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key && repeated.empty() &&
        !open_objects.back().insert(value.get<std::string>()).second) {
      repeated = value.get<std::string>();
    }
    return true;
  };
  json header;
  try {
    header = json::parse(text, watch_keys);
  } catch (const json::exception& error) {
    PLX_FAIL(file, ": the safetensors header is not JSON: ", plain_what(error));
  }
  PLX_CHECK(repeated.empty(), file, ": \"", repeated, "\" comes twice in the safetensors header");
  PLX_CHECK(header.is_object(), file, ": the safetensors header must be a JSON object, it is ",
            header.type_name());
  return header;
}

std::map<std::string, std::string> parse_metadata(const json& header, const std::string& file) {
  std::map<std::string, std::string> metadata;
  const auto found = header.find(kMetadataKey);
  if (found == header.end()) return metadata;
  PLX_CHECK(found->is_object(), file, ": __metadata__ must be an object of strings");
  for (const auto& [key, value] : found->items()) {
    PLX_CHECK(value.is_string(), file, ": __metadata__ entry \"", key, "\" must be a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// An integer that fits int64_t and is not negative.
bool is_count(const json& value) {
  return value.is_number_integer() &&
         (!value.is_number_unsigned() || std::in_range<int64_t>(value.get<uint64_t>())) &&
         value.get<int64_t>() >= 0;
}

// dtype size x shape in bytes, checked against overflow.
int64_t checked_num_bytes(const StoredTensor& tensor, const std::string& where) {
  int64_t num_bytes = dtype_bytes(tensor.dtype);
  PLX_CHECK(num_bytes > 0, where, ": unknown dtype \"", tensor.dtype, "\" (known: ", known_dtypes(),
            ")");
  for (const int64_t size : tensor.shape) {
    PLX_CHECK(size >= 0, where, ": negative size ", size, " in the shape");
    PLX_CHECK(!__builtin_mul_overflow(num_bytes, size, &num_bytes), where,
              ": the shape's size overflows 64 bits");
  }
  return num_bytes;
}

// One entry of the header, its range checked against dtype, shape and the data that there is.
StoredTensor parse_tensor(const json& entry, std::span<const std::byte> data,
                          const std::string& where) {
  PLX_CHECK(entry.is_object() && entry.contains("dtype") && entry.contains("shape") &&
                entry.contains("data_offsets"),
            where, ": the header entry must be an object with dtype, shape and data_offsets");
  const json& dtype = entry["dtype"];
  const json& shape = entry["shape"];
  const json& offsets = entry["data_offsets"];
  PLX_CHECK(dtype.is_string(), where, ": dtype must be a string, it is ", dtype.dump());
  PLX_CHECK(shape.is_array() && std::all_of(shape.begin(), shape.end(), is_count), where,
            ": shape must be an array of sizes from 0 to 2^63 - 1, it is ", shape.dump());
  PLX_CHECK(
      offsets.is_array() && offsets.size() == 2 && is_count(offsets[0]) && is_count(offsets[1]),
      where, ": data_offsets must be two positions from 0 to 2^63 - 1, they are ", offsets.dump());
  StoredTensor tensor{dtype.get<std::string>(), shape.get<std::vector<int64_t>>(), {}};
  const int64_t num_bytes = checked_num_bytes(tensor, where);
  const auto begin = offsets[0].get<int64_t>();
  const auto end = offsets[1].get<int64_t>();
  PLX_CHECK(begin <= end && std::cmp_less_equal(end, data.size()), where, ": data_offsets [", begin,
            ", ", end, "] leave the file's ", data.size(), " bytes of data (truncated?)");
  PLX_CHECK(end - begin == num_bytes, where, ": ", tensor.dtype, " of shape ", shape.dump(),
            " takes ", num_bytes, " bytes, data_offsets [", begin, ", ", end, "] span ",
            end - begin);
  tensor.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(num_bytes));
  return tensor;
}

// Every byte of the data must belong to exactly one tensor.
void check_coverage(const std::map<std::string, StoredTensor>& tensors,
                    std::span<const std::byte> data, const std::string& file) {
  using Entry = std::pair<const std::string, StoredTensor>;
  std::vector<const Entry*> by_position;
  for (const Entry& entry : tensors) by_position.push_back(&entry);
  const auto range = [](const Entry* entry) {
    const std::byte* begin = entry->second.data.data();
    return std::pair(begin, begin + entry->second.data.size());
  };
  std::sort(by_position.begin(), by_position.end(),
            [&](const Entry* a, const Entry* b) { return range(a) < range(b); });
  const std::byte* covered = data.data();
  std::string previous = "the start of the data";
  for (const Entry* entry : by_position) {
    const auto [begin, end] = range(entry);
    PLX_CHECK(begin >= covered, file, ": tensor \"", entry->first, "\" overlaps ", previous);
    PLX_CHECK(begin == covered, file, ": ", begin - covered, " bytes between ", previous,
              " and tensor \"", entry->first, "\" belong to no tensor");
    covered = end;
    previous = "tensor \"" + entry->first + "\"";
  }
  const auto left = data.data() + data.size() - covered;
  PLX_CHECK(left == 0, file, ": ", left, " bytes after ", previous, " belong to no tensor");
}

}  // namespace

struct SafetensorsFile::Impl {
  MappedFile map;
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : impl_(new Impl{MappedFile(path), {}, {}}) {
  const std::string file = path.string();
  const std::span<const std::byte> bytes = impl_->map.bytes();
  PLX_CHECK(bytes.size() >= kLengthBytes, file, ": not a safetensors file: it has ", bytes.size(),
            " bytes, the header's length alone takes ", kLengthBytes);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  PLX_CHECK(header_bytes <= kMaxHeaderBytes, file, ": the safetensors header claims ", header_bytes,
            " bytes, at most ", kMaxHeaderBytes, " are allowed");
  PLX_CHECK(header_bytes <= bytes.size() - kLengthBytes, file, ": the safetensors header claims ",
            header_bytes, " bytes, the file has ", bytes.size() - kLengthBytes,
            " after the length (truncated?)");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              header_bytes);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  const json header = parse_header(text, file);
  impl_->metadata = parse_metadata(header, file);
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) continue;
    impl_->tensors.emplace(name, parse_tensor(entry, data, file + ": tensor \"" + name + "\""));
  }
  check_coverage(impl_->tensors, data, file);
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::map<std::string, StoredTensor>& SafetensorsFile::tensors() const {
  return impl_->tensors;
}
const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->metadata;
}

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  using Entry = std::pair<const std::string, StoredTensor>;
  std::vector<const Entry*> in_order;
  for (const Entry& entry : tensors) in_order.push_back(&entry);
  std::stable_sort(in_order.begin(), in_order.end(), [](const Entry* a, const Entry* b) {
    return dtype_bytes(a->second.dtype) > dtype_bytes(b->second.dtype);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  size_t position = 0;
  for (const Entry* entry : in_order) {
    const auto& [name, tensor] = *entry;
    const std::string where = path.string() + ": tensor \"" + name + "\"";
    PLX_CHECK(name != kMetadataKey, where, ": this name is reserved");
    const int64_t num_bytes = checked_num_bytes(tensor, where);
    PLX_CHECK(std::cmp_equal(num_bytes, tensor.data.size()), where, ": dtype and shape take ",
              num_bytes, " bytes, given ", tensor.data.size());
    const size_t end = position + tensor.data.size();
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception& error) {
    PLX_FAIL(path.string(), ": a tensor name or metadata is not UTF-8: ", plain_what(error));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors start at a multiple of 8
  AtomicFile file(path);
  const uint64_t header_bytes = text.size();
  file.write(&header_bytes, kLengthBytes);
  file.write(text);
  for (const Entry* entry : in_order) {
    file.write(entry->second.data.data(), entry->second.data.size());
  }
  file.commit();
}

}  // namespace parallax::io
