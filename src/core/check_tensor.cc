// SPDX-License-Identifier: Apache-2.0
#include "core/check_tensor.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "parallax/error.h"

namespace parallax::core {
namespace {

std::string sizes_text(std::span<const int64_t> sizes) {
  std::string text = "[";
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (dim > 0) text += ", ";
    text += sizes[dim] == kAnySize ? "any" : std::to_string(sizes[dim]);
  }
  return text + "]";
}

std::span<const int64_t> sizes_of(const ConstTensorView& view) {
  return {view.sizes.data(), static_cast<size_t>(view.rank)};
}

std::string device_text(const Device& device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

/// The dimensions with more than one element, the smallest stride first.
std::vector<std::pair<int64_t, int64_t>> stride_size_pairs(const ConstTensorView& view) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int dim = 0; dim < view.rank; ++dim)
    if (view.size(dim) > 1) pairs.emplace_back(view.stride(dim), view.size(dim));
  std::sort(pairs.begin(), pairs.end());
  return pairs;
}

/// Addresses begin <= a < end that a view touches.
struct ByteRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  bool gapless = false;  // every byte of the range belongs to the view
};

ByteRange byte_range(const ConstTensorView& view) {
  int64_t lowest = 0;
  int64_t highest = 0;
  std::vector<std::pair<int64_t, int64_t>> steps;  // (distance, size), the shortest first
  for (int dim = 0; dim < view.rank; ++dim) {
    const int64_t reach = (view.size(dim) - 1) * view.stride(dim);
    (reach < 0 ? lowest : highest) += reach;
    if (reach != 0) steps.emplace_back(std::abs(view.stride(dim)), view.size(dim));
  }
  std::sort(steps.begin(), steps.end());
  // Without gaps if no step is longer than what the shorter ones cover from one end to the other.
  // Repeated elements (stride 0) cover nothing new.
  int64_t covered = 1;
  bool gapless = true;
  for (const auto& [distance, size] : steps) {
    gapless = gapless && distance <= covered;
    covered += (size - 1) * distance;
  }
  const auto element = static_cast<int64_t>(size_of(view.dtype));
  const auto base = reinterpret_cast<intptr_t>(view.data);
  return {.begin = static_cast<uintptr_t>(base + lowest * element),
          .end = static_cast<uintptr_t>(base + (highest + 1) * element),
          .gapless = gapless};
}

bool surely_overlap(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.num_elements() == 0 || b.num_elements() == 0) return false;
  if (a.data == b.data) return true;
  const ByteRange range_a = byte_range(a);
  const ByteRange range_b = byte_range(b);
  const bool apart = range_a.end <= range_b.begin || range_b.end <= range_a.begin;
  return !apart && range_a.gapless && range_b.gapless;
}

}  // namespace

std::string shape_text(const ConstTensorView& view) { return sizes_text(sizes_of(view)); }

void check_present(const Argument& argument) {
  const ConstTensorView& view = argument.view;
  PLX_CHECK(view.defined(), argument.name, " is missing; it is required here");
  for (int dim = 0; dim < view.rank; ++dim)
    PLX_CHECK(view.size(dim) >= 0, argument.name, " has a negative size: ", shape_text(view));
  PLX_CHECK(view.data != nullptr || view.num_elements() == 0, argument.name, " has shape ",
            shape_text(view), " but no memory (its data pointer is null)");
  const size_t element = size_of(view.dtype);
  PLX_CHECK(view.num_elements() == 0 || reinterpret_cast<uintptr_t>(view.data) % element == 0,
            argument.name, " begins at an address that is not a multiple of ", element,
            " bytes, the size of ", name(view.dtype));
}

void check_rank(const Argument& argument, std::span<const int> allowed, std::string_view legend) {
  PLX_CHECK(std::find(allowed.begin(), allowed.end(), argument.view.rank) != allowed.end(),
            argument.name, " has shape ", shape_text(argument.view), "; it must be ", legend);
}

void check_shape(const Argument& argument, const ExpectedShape& expected) {
  const std::span<const int64_t> given = sizes_of(argument.view);
  const bool fits =
      std::equal(given.begin(), given.end(), expected.sizes.begin(), expected.sizes.end(),
                 [](int64_t size, int64_t wanted) { return wanted == kAnySize || size == wanted; });
  PLX_CHECK(fits, argument.name, " has shape ", sizes_text(given), "; it must be ",
            sizes_text(expected.sizes), " (", expected.legend, ")");
}

void check_dtype(const Argument& argument, DType expected, std::string_view reason) {
  PLX_CHECK(argument.view.dtype == expected, argument.name, " is ", name(argument.view.dtype),
            "; it must be ", name(expected), " (", reason, ")");
}

void check_floating(const Argument& argument) {
  PLX_CHECK(argument.view.dtype != DType::kInt32, argument.name, " is ", name(argument.view.dtype),
            "; it must be float32, bfloat16, float16 or float64");
}

void check_innermost_stride(const Argument& argument) {
  const ConstTensorView& view = argument.view;
  const int last = view.rank - 1;
  const bool never_stepped = view.size(last) <= 1 || view.num_elements() == 0;
  PLX_CHECK(never_stepped || view.stride(last) == 1, argument.name, " has stride ",
            view.stride(last), " in its last dimension; it must be 1");
}

void check_index_vector(const Argument& argument, const ExpectedShape& expected) {
  check_present(argument);
  check_dtype(argument, DType::kInt32, "lengths and indices");
  check_shape(argument, expected);
  check_innermost_stride(argument);
}

void check_writable(const Argument& argument) {
  if (argument.view.num_elements() == 0) return;
  int64_t reach = 1;  // elements that the smaller strides span
  for (const auto& [stride, size] : stride_size_pairs(argument.view)) {
    PLX_CHECK(stride >= reach, argument.name, " is written, but its stride ", stride,
              " revisits elements; strides of outputs must be positive and not overlap");
    reach += (size - 1) * stride;
  }
}

void check_devices(std::span<const Argument> arguments) {
  const Argument& first = arguments.front();
  for (const Argument& argument : arguments) {
    PLX_CHECK(argument.view.device == first.view.device, argument.name, " is on ",
              device_text(argument.view.device), " and ", first.name, " on ",
              device_text(first.view.device), "; all tensors must be on one device");
  }
}

void check_overlaps(std::span<const Argument> inputs, std::span<const Argument> outputs) {
  for (size_t idx = 0; idx < outputs.size(); ++idx) {
    const Argument& output = outputs[idx];
    const auto check_against = [&output](const Argument& other) {
      PLX_CHECK(!surely_overlap(output.view, other.view), output.name, " and ", other.name,
                " share memory; an output must not overlap an input or another output");
    };
    std::for_each(inputs.begin(), inputs.end(), check_against);
    std::for_each(outputs.begin() + static_cast<std::ptrdiff_t>(idx) + 1, outputs.end(),
                  check_against);
  }
}

void check_together(const std::vector<Argument>& inputs, const std::vector<Argument>& outputs) {
  std::vector<Argument> all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  check_devices(all);
  for (const Argument& output : outputs) check_writable(output);
  check_overlaps(inputs, outputs);
}

}  // namespace parallax::core
