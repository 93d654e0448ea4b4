// SPDX-License-Identifier: Apache-2.0
#include "core/validate.h"

#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/check_tensor.h"
#include "core/problem.h"
#include "parallax/error.h"

namespace parallax::core {
namespace {

constexpr int64_t kMaxHeadDim = 256;

/// The tensors of a call. Absent optional ones are left out.
class ArgumentList {
 public:
  void input(std::string name, const ConstTensorView& view) {
    if (view.defined()) inputs_.push_back({std::move(name), view});
  }
  void output(std::string name, const ConstTensorView& view) {
    if (view.defined()) outputs_.push_back({std::move(name), view});
  }
  void check() const { check_together(inputs_, outputs_); }

 private:
  std::vector<Argument> inputs_;
  std::vector<Argument> outputs_;
};

/// One tensor, q (a merge has none: its out), decides the batch, the dtype, the head size and
/// whether the call is packed.
struct Layout {
  std::string source;  // that tensor's name
  DType dtype;
  bool packed;
  int64_t batch;       // dense: B
  int64_t query_rows;  // Tq, or total_q
  int64_t num_heads_q;
  int64_t head_dim;

  DType stats_dtype() const { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }
  ExpectedShape queries() const {
    if (packed) return {{query_rows, num_heads_q, head_dim}, "[total_q, Hq, D], as " + source};
    return {{batch, query_rows, num_heads_q, head_dim}, "[B, Tq, Hq, D], as " + source};
  }
  ExpectedShape keys() const {
    if (packed) return {{kAnySize, kAnySize, head_dim}, "[total_k, Hkv, D] with q's D"};
    return {{batch, kAnySize, kAnySize, head_dim}, "[B, Tk, Hkv, D] with q's B and D"};
  }
  ExpectedShape stats() const {
    if (packed) return {{num_heads_q, query_rows}, "[Hq, total_q] of " + source};
    return {{batch, num_heads_q, query_rows}, "[B, Hq, Tq] of " + source};
  }
};

/// A tensor of the inputs' dtype, readable along D.
void check_values(const Argument& argument, const Layout& layout, const ExpectedShape& expected) {
  check_present(argument);
  check_dtype(argument, layout.dtype, "the dtype of " + layout.source);
  check_shape(argument, expected);
  check_innermost_stride(argument);
}

void check_stats(const Argument& argument, const Layout& layout) {
  check_present(argument);
  check_dtype(
      argument, layout.stats_dtype(),
      layout.dtype == DType::kFloat64 ? "the inputs are float64" : "the inputs are not float64");
  check_shape(argument, layout.stats());
}

Layout check_query_layout(const Argument& argument) {
  const ConstTensorView& q = argument.view;
  check_present(argument);
  check_rank(argument, std::array{3, 4}, "[B, Tq, Hq, D], or packed [total_q, Hq, D]");
  check_floating(argument);
  check_innermost_stride(argument);
  const bool packed = q.rank == 3;
  const Layout layout{.source = argument.name,
                      .dtype = q.dtype,
                      .packed = packed,
                      .batch = packed ? 0 : q.size(0),
                      .query_rows = q.size(packed ? 0 : 1),
                      .num_heads_q = q.size(q.rank - 2),
                      .head_dim = q.size(q.rank - 1)};
  PLX_CHECK(layout.head_dim >= 1 && layout.head_dim <= kMaxHeadDim, argument.name, " has shape ",
            shape_text(q), " and so head size ", layout.head_dim, "; it must be 1 to ",
            kMaxHeadDim);
  PLX_CHECK(layout.num_heads_q >= 1, argument.name, " has shape ", shape_text(q),
            " and so no head; at least 1 is needed");
  return layout;
}

/// Query head h reads key head h / (Hq / Hkv).
void check_groups(const Layout& layout, std::string_view name, const ConstTensorView& k) {
  const int64_t num_heads_kv = k.size(k.rank - 2);
  PLX_CHECK(num_heads_kv >= 1 && layout.num_heads_q % num_heads_kv == 0, "q has ",
            layout.num_heads_q, " heads and ", name, " has ", num_heads_kv,
            "; the query heads must be a multiple of the key heads");
}

/// `dtype` is the inputs'; all but float64 inputs are computed with a scale rounded to float32.
void check_options(const AttentionOptions& options, DType dtype) {
  if (options.softmax_scale) {
    const double scale = *options.softmax_scale;
    PLX_CHECK(std::isfinite(scale), "softmax_scale is ", scale, "; it must be finite");
    PLX_CHECK(dtype == DType::kFloat64 || std::isfinite(static_cast<float>(scale)),
              "softmax_scale is ", scale, " and q is ", name(dtype),
              "; it must be finite in float32");
  }
  if (options.window) {
    PLX_CHECK(options.mask == Mask::kCausal, "window is ", *options.window,
              " with the full mask; a window needs the causal mask");
    PLX_CHECK(*options.window >= 1, "window is ", *options.window, "; it must be at least 1");
  }
}

/// The values of a cu_seqlens: non-decreasing from 0 to `total`, the rows of the tensor `of`.
void check_boundaries(const Argument& argument, int64_t total, std::string_view of) {
  if (argument.view.device.type != DeviceType::kCpu) return;
  const auto* const boundaries = static_cast<const int32_t*>(argument.view.data);
  const int64_t count = argument.view.size(0);
  PLX_CHECK(boundaries[0] == 0, argument.name, "[0] is ", boundaries[0], "; it must be 0");
  for (int64_t idx = 1; idx < count; ++idx)
    PLX_CHECK(boundaries[idx] >= boundaries[idx - 1], argument.name, "[", idx, "] is ",
              boundaries[idx], " after ", boundaries[idx - 1], "; the entries must not decrease");
  PLX_CHECK(boundaries[count - 1] == total, argument.name, " ends at ", boundaries[count - 1],
            "; it must end at ", total, ", the number of rows of ", of);
}

/// int32 [N + 1] with N + 1 >= 1 entries.
void check_cu_seqlens(const Argument& argument) {
  check_index_vector(argument, {{kAnySize}, "[N + 1]"});
  PLX_CHECK(argument.view.size(0) >= 1, argument.name,
            " is empty; for N sequences it must have N + 1 entries");
}

/// Both cu_seqlens with packed q, neither with dense q. Shapes only.
template <typename Args>
void check_packing(const Args& args, const Layout& layout) {
  const std::array arguments{Argument{"cu_seqlens_q", args.cu_seqlens_q},
                             Argument{"cu_seqlens_k", args.cu_seqlens_k}};
  for (const Argument& argument : arguments) {
    PLX_CHECK(layout.packed || !argument.view.defined(), argument.name,
              " is given, but q has shape ", shape_text(args.q),
              "; variable length needs packed q [total_q, Hq, D]");
    if (layout.packed) check_cu_seqlens(argument);
  }
  if (layout.packed)
    PLX_CHECK(args.cu_seqlens_q.size(0) == args.cu_seqlens_k.size(0), "cu_seqlens_q has ",
              args.cu_seqlens_q.size(0), " entries and cu_seqlens_k ", args.cu_seqlens_k.size(0),
              "; they must have the same number");
}

ExpectedShape shape_of_k(const ConstTensorView& k) {
  return {{k.sizes.begin(), k.sizes.begin() + k.rank}, "the shape of k"};
}

/// The inputs that forward and backward share, without reading an index value.
template <typename Args>
Layout check_training_inputs(const Args& args) {
  check_options(args.options, args.q.dtype);
  const Layout layout = check_query_layout({"q", args.q});
  check_values({"r", args.r}, layout, layout.queries());
  check_values({"k", args.k}, layout, layout.keys());
  check_groups(layout, "k", args.k);
  check_values({"v", args.v}, layout, shape_of_k(args.k));
  check_packing(args, layout);
  return layout;
}

template <typename Args>
void list_training_inputs(const Args& args, ArgumentList& list) {
  list.input("q", args.q);
  list.input("r", args.r);
  list.input("k", args.k);
  list.input("v", args.v);
  list.input("cu_seqlens_q", args.cu_seqlens_q);
  list.input("cu_seqlens_k", args.cu_seqlens_k);
}

template <typename Args>
void check_training_lengths(const Args& args, const Layout& layout) {
  if (!layout.packed) return;
  check_boundaries({"cu_seqlens_q", args.cu_seqlens_q}, layout.query_rows, "q");
  check_boundaries({"cu_seqlens_k", args.cu_seqlens_k}, args.k.size(0), "k");
}

/// out, and where they are given out_softmax, lse and t_mean, of any of the argument structs.
template <typename Args>
void check_results(const Args& args, const Layout& layout, const std::string& prefix = "") {
  check_values({prefix + "out", args.out}, layout, layout.queries());
  if (args.out_softmax.defined())
    check_values({prefix + "out_softmax", args.out_softmax}, layout, layout.queries());
  if (args.lse.defined()) check_stats({prefix + "lse", args.lse}, layout);
  if (args.t_mean.defined()) check_stats({prefix + "t_mean", args.t_mean}, layout);
}

template <typename Args>
void list_results(const Args& args, ArgumentList& list) {
  list.output("out", args.out);
  list.output("out_softmax", args.out_softmax);
  list.output("lse", args.lse);
  list.output("t_mean", args.t_mean);
}

void check_gradients(const BackwardArgs& args, const Layout& layout) {
  check_values({"dq", args.dq}, layout, layout.queries());
  check_values({"dr", args.dr}, layout, layout.queries());
  check_values({"dk", args.dk}, layout, shape_of_k(args.k));
  check_values({"dv", args.dv}, layout, shape_of_k(args.k));
}

/// [B, capacity, Hkv, D], or [num_pages, page_size, Hkv, D] with a page table.
void check_caches(const DecodeArgs& args, const Layout& layout, int64_t batch) {
  const bool paged = args.page_table.defined();
  const int64_t num_entries = paged ? kAnySize : batch;
  check_values(
      {"k_cache", args.k_cache}, layout,
      {{num_entries, kAnySize, kAnySize, layout.head_dim},
       paged           ? "[num_pages, page_size, Hkv, D] with q's D"
       : layout.packed ? "[B, capacity, Hkv, D] with B + 1 entries in cu_seqlens_q and q's D"
                       : "[B, capacity, Hkv, D] with q's B and D"});
  check_groups(layout, "k_cache", args.k_cache);
  check_values({"v_cache", args.v_cache}, layout,
               {{args.k_cache.size(0), args.k_cache.size(1), args.k_cache.size(2), layout.head_dim},
                "the shape of k_cache"});
  if (!paged) return;
  PLX_CHECK(args.k_cache.size(1) >= 1, "k_cache has shape ", shape_text(args.k_cache),
            "; a page must hold at least 1 token");
  check_index_vector({"page_table", args.page_table}, {{batch, kAnySize}, "[B, max_pages]"});
}

/// Every page that a query can see must be one of the cache's. Pages wholly before a window or a
/// start may have been given back, and hold anything.
void check_pages(const DecodeArgs& args, const Problem& problem) {
  const int64_t num_pages = args.k_cache.size(0);
  const int64_t page_size = args.k_cache.size(1);
  for (const Sequence& sequence : problem.sequences) {
    if (sequence.num_queries == 0) continue;
    const KeyRange needed{problem.visible_keys(sequence, 0).begin, sequence.keys.end};
    if (needed.empty()) continue;
    const auto* const row = static_cast<const int32_t*>(args.page_table.data) +
                            sequence.idx * args.page_table.stride(0);
    for (int64_t page = needed.begin / page_size; page <= (needed.end - 1) / page_size; ++page)
      PLX_CHECK(row[page] >= 0 && row[page] < num_pages, "page_table[", sequence.idx, ", ", page,
                "] is ", row[page], " and holds visible keys; it must be 0 to ", num_pages - 1,
                ", a page of k_cache");
  }
}

void check_cache_lengths(const DecodeArgs& args, const Layout& layout) {
  if (args.q.device.type != DeviceType::kCpu) return;
  if (layout.packed) check_boundaries({"cu_seqlens_q", args.cu_seqlens_q}, layout.query_rows, "q");
  const bool paged = args.page_table.defined();
  const int64_t capacity = args.k_cache.size(1) * (paged ? args.page_table.size(1) : 1);
  const Problem problem = make_problem(args);
  for (const Sequence& sequence : problem.sequences) {
    const KeyRange& keys = sequence.keys;
    PLX_CHECK(keys.end >= 0 && keys.end <= capacity, "cache_seqlens[", sequence.idx, "] is ",
              keys.end, "; it must be 0 to ", capacity, ", the capacity of the cache");
    PLX_CHECK(keys.begin >= 0 && keys.begin <= keys.end, "cache_starts[", sequence.idx, "] is ",
              keys.begin, "; it must be 0 to ", keys.end, ", the sequence's end in the cache");
  }
  if (paged) check_pages(args, problem);
}

}  // namespace

void validate(const ForwardArgs& args) {
  const Layout layout = check_training_inputs(args);
  check_results(args, layout);
  ArgumentList list;
  list_training_inputs(args, list);
  list_results(args, list);
  list.check();
  check_training_lengths(args, layout);
}

void validate(const BackwardArgs& args) {
  const Layout layout = check_training_inputs(args);
  for (const Argument& required : {Argument{"out_softmax", args.out_softmax},
                                   Argument{"lse", args.lse}, Argument{"t_mean", args.t_mean}})
    check_present(required);
  check_values({"d_out", args.d_out}, layout, layout.queries());
  check_results(args, layout);
  check_gradients(args, layout);
  ArgumentList list;
  list_training_inputs(args, list);
  list.input("d_out", args.d_out);
  list.input("out", args.out);
  list.input("out_softmax", args.out_softmax);
  list.input("lse", args.lse);
  list.input("t_mean", args.t_mean);
  list.output("dq", args.dq);
  list.output("dr", args.dr);
  list.output("dk", args.dk);
  list.output("dv", args.dv);
  list.check();
  check_training_lengths(args, layout);
}

void validate(const DecodeArgs& args) {
  check_options(args.options, args.q.dtype);
  PLX_CHECK(args.options.mask == Mask::kCausal, "decode was asked for the full mask; it is causal");
  for (const Argument& unbuilt :
       {Argument{"k_scale", args.k_scale}, Argument{"v_scale", args.v_scale}})
    PLX_CHECK(!unbuilt.view.defined(), unbuilt.name,
              " is given, but quantised caches are not built yet; leave it undefined");
  const Layout layout = check_query_layout({"q", args.q});
  check_values({"r", args.r}, layout, layout.queries());
  PLX_CHECK(layout.packed || !args.cu_seqlens_q.defined(),
            "cu_seqlens_q is given, but q has shape ", shape_text(args.q),
            "; variable length needs packed q [total_q, Hq, D]");
  if (layout.packed) check_cu_seqlens({"cu_seqlens_q", args.cu_seqlens_q});
  const int64_t batch = layout.packed ? args.cu_seqlens_q.size(0) - 1 : layout.batch;
  check_caches(args, layout, batch);
  for (const Argument& lengths :
       {Argument{"cache_starts", args.cache_starts}, Argument{"cache_seqlens", args.cache_seqlens}})
    if (lengths.view.defined()) check_index_vector(lengths, {{batch}, "[B]"});
  check_results(args, layout);
  ArgumentList list;
  list.input("q", args.q);
  list.input("r", args.r);
  list.input("k_cache", args.k_cache);
  list.input("v_cache", args.v_cache);
  list.input("cache_starts", args.cache_starts);
  list.input("cache_seqlens", args.cache_seqlens);
  list.input("cu_seqlens_q", args.cu_seqlens_q);
  list.input("page_table", args.page_table);
  list_results(args, list);
  list.check();
  check_cache_lengths(args, layout);
}

void validate(const MergeArgs& args) {
  PLX_CHECK(!args.partials.empty(), "partials is empty; a merge needs at least 1");
  const Layout layout = check_query_layout({"out", args.out});
  check_results(args, layout);
  ArgumentList list;
  for (size_t idx = 0; idx < args.partials.size(); ++idx) {
    const PartialState& partial = args.partials[idx];
    const std::string prefix = "partials[" + std::to_string(idx) + "].";
    const std::array tensors{Argument{prefix + "out", partial.out},
                             Argument{prefix + "out_softmax", partial.out_softmax},
                             Argument{prefix + "lse", partial.lse},
                             Argument{prefix + "t_mean", partial.t_mean}};
    for (const Argument& tensor : tensors) {
      check_present(tensor);
      list.input(tensor.name, tensor.view);
    }
    check_results(partial, layout, prefix);
  }
  list_results(args, list);
  list.check();
}

}  // namespace parallax::core
