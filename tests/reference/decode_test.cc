// Decoding against caches, and the merge of partial results, measured against the forward pass.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "reference/float64_call.h"

namespace parallax::testing {
namespace {

/// A batch of sequences of unequal length, each in its own slice of a cache that is NaN elsewhere.
struct DecodeCase {
  std::vector<int32_t> starts{}, ends{};
  int64_t num_queries = 2;
  int64_t Hq = 4, Hkv = 2, D = 5;
  int64_t capacity = 12;
  AttentionOptions options{};
};

struct DecodeInputs {
  Doubles q, r, k_cache, v_cache;
  Ints starts{}, ends{}, page_table{};
  AttentionOptions options{};
};

DecodeInputs make_inputs(const DecodeCase& c) {
  const auto B = static_cast<int64_t>(c.ends.size());
  DecodeInputs in{.q = random_tensor({B, c.num_queries, c.Hq, c.D}, 1),
                  .r = random_tensor({B, c.num_queries, c.Hq, c.D}, 2),
                  .k_cache = random_tensor({B, c.capacity, c.Hkv, c.D}, 3),
                  .v_cache = random_tensor({B, c.capacity, c.Hkv, c.D}, 4),
                  .starts = c.starts.empty() ? Ints() : ints(c.starts),
                  .ends = ints(c.ends),
                  .options = c.options};
  for (int64_t b = 0; b < B; ++b) {
    const auto idx = static_cast<size_t>(b);
    const int32_t start = c.starts.empty() ? 0 : c.starts[idx];
    for (int64_t key = 0; key < c.capacity; ++key) {
      if (key >= start && key < c.ends[idx]) continue;
      std::fill_n(in.k_cache.row(b, key, 0), c.Hkv * c.D, kNaN);
      std::fill_n(in.v_cache.row(b, key, 0), c.Hkv * c.D, kNaN);
    }
  }
  return in;
}

DecodeArgs arguments(DecodeInputs& in, Result& result) {
  return {.q = in.q.view(),
          .r = in.r.view(),
          .k_cache = in.k_cache.view(),
          .v_cache = in.v_cache.view(),
          .cache_starts = in.starts.view(),
          .cache_seqlens = in.ends.view(),
          .page_table = in.page_table.view(),
          .options = in.options,
          .out = result.out.view(),
          .out_softmax = result.out_softmax.view(),
          .lse = result.lse.view(),
          .t_mean = result.t_mean.view()};
}

void run(const DecodeArgs& args) {
  core::validate(args);
  reference::backend().decode(args);
}

Result decode(DecodeInputs& in) {
  Result result(in.q.sizes);
  run(arguments(in, result));
  return result;
}

/// Batch entry `b` as a call of the forward pass over exactly its valid keys.
Result forward_of_entry(DecodeInputs& in, const DecodeCase& c, int64_t b) {
  const auto idx = static_cast<size_t>(b);
  const int32_t start = c.starts.empty() ? 0 : c.starts[idx];
  const int64_t length = c.ends[idx] - start;
  Inputs one = Inputs::random({1, c.num_queries, length, c.Hq, c.Hkv, c.D}, c.options);
  std::copy_n(in.q.row(b, 0, 0), one.q.data.size(), one.q.data.begin());
  std::copy_n(in.r.row(b, 0, 0), one.r.data.size(), one.r.data.begin());
  std::copy_n(in.k_cache.row(b, start, 0), one.k.data.size(), one.k.data.begin());
  std::copy_n(in.v_cache.row(b, start, 0), one.v.data.size(), one.v.data.begin());
  return forward(one);
}

void expect_entries_equal_forward(const DecodeCase& c) {
  DecodeInputs in = make_inputs(c);
  Result result = decode(in);
  for (int64_t b = 0; b < static_cast<int64_t>(c.ends.size()); ++b) {
    const Result expected = forward_of_entry(in, c, b);
    const auto part = [b](const Doubles& from, const Doubles& like) {
      Doubles entry(like.sizes);
      std::copy_n(from.data.begin() + b * static_cast<int64_t>(like.data.size()), like.data.size(),
                  entry.data.begin());
      return entry;
    };
    Result entry(expected.out.sizes);
    entry.out = part(result.out, expected.out);
    entry.out_softmax = part(result.out_softmax, expected.out_softmax);
    entry.lse = part(result.lse, expected.lse);
    entry.t_mean = part(result.t_mean, expected.t_mean);
    expect_same(entry, expected, 0.0);
  }
}

TEST(ReferenceDecode, EqualsForwardOverTheValidKeys) {
  expect_entries_equal_forward({.ends = {12, 7, 2, 3}});
}

TEST(ReferenceDecode, LeftPaddingIsSkipped) {
  expect_entries_equal_forward({.starts = {0, 4, 11}, .ends = {12, 7, 12}});
}

TEST(ReferenceDecode, WindowCountsFromEachQuery) {
  expect_entries_equal_forward(
      {.starts = {0, 3}, .ends = {12, 8}, .num_queries = 3, .options = {.window = 4}});
}

TEST(ReferenceDecode, QueriesBeforeTheFirstKeySeeNothing) {
  expect_entries_equal_forward({.ends = {0, 1, 3}, .num_queries = 3});
}

TEST(ReferenceDecode, EqualsTheLastRowsOfTheWholeSequence) {
  Inputs whole = Inputs::random({.Tq = 9, .Tk = 9, .Hq = 2, .Hkv = 1, .D = 4});
  Result expected = forward(whole);
  DecodeInputs in{.q = Doubles({1, 3, 2, 4}),
                  .r = Doubles({1, 3, 2, 4}),
                  .k_cache = whole.k,
                  .v_cache = whole.v};
  std::copy_n(whole.q.row(0, 6, 0), in.q.data.size(), in.q.data.begin());
  std::copy_n(whole.r.row(0, 6, 0), in.r.data.size(), in.r.data.begin());
  const Result result = decode(in);
  EXPECT_TRUE(
      std::equal(result.out.data.begin(), result.out.data.end(), expected.out.row(0, 6, 0)));
}

/// Moves a contiguous cache into scattered pages; what no page holds stays NaN, and table entries
/// after the last page are -1.
void scatter_into_pages(DecodeInputs& in, int64_t page_size, int64_t num_pages) {
  const int64_t B = in.k_cache.sizes[0], Hkv = in.k_cache.sizes[2], D = in.k_cache.sizes[3];
  const int64_t pages_per_sequence = (in.k_cache.sizes[1] + page_size - 1) / page_size;
  Doubles k_pages({num_pages, page_size, Hkv, D}, kNaN),
      v_pages({num_pages, page_size, Hkv, D}, kNaN);
  in.page_table = Ints({B, pages_per_sequence}, -1);
  int32_t next_page = static_cast<int32_t>(num_pages);  // from the back, so that no row is in order
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t key = 0; key < in.ends.data[static_cast<size_t>(b)]; ++key) {
      int32_t& page =
          in.page_table.data[static_cast<size_t>(b * pages_per_sequence + key / page_size)];
      if (key % page_size == 0) page = --next_page;
      std::copy_n(in.k_cache.row(b, key, 0), Hkv * D, k_pages.row(page, key % page_size, 0));
      std::copy_n(in.v_cache.row(b, key, 0), Hkv * D, v_pages.row(page, key % page_size, 0));
    }
  }
  in.k_cache = k_pages;
  in.v_cache = v_pages;
}

TEST(ReferenceDecode, PagedEqualsContiguous) {
  for (int64_t page_size : {1, 3, 4, 16}) {
    DecodeInputs in = make_inputs({.starts = {0, 2, 0}, .ends = {12, 7, 0}});
    const Result contiguous = decode(in);
    scatter_into_pages(in, page_size, 40);
    expect_same(decode(in), contiguous, 0.0);
  }
}

TEST(ReferenceDecode, PagesBeforeTheWindowMayBeGone) {
  DecodeInputs in = make_inputs({.ends = {12}, .num_queries = 1, .options = {.window = 4}});
  const Result contiguous = decode(in);
  scatter_into_pages(in, 4, 5);
  in.page_table.data[0] = in.page_table.data[1] = -1;
  expect_same(decode(in), contiguous, 0.0);
}

TEST(ReferenceDecode, HeadMajorPagesAreAView) {
  DecodeInputs in = make_inputs({.ends = {10, 7}});
  const Result contiguous = decode(in);
  scatter_into_pages(in, 4, 8);
  const auto head_major = [](Doubles& pages) {  // [num_pages, Hkv, page_size, D]
    Doubles moved({8, 2, 4, 5});
    for (int64_t page = 0; page < 8; ++page)
      for (int64_t token = 0; token < 4; ++token)
        for (int64_t head : {0, 1})
          std::copy_n(pages.row(page, token, head), 5, moved.row(page, head, token));
    return moved;
  };
  Doubles k = head_major(in.k_cache), v = head_major(in.v_cache);
  Result result(in.q.sizes);
  DecodeArgs args = arguments(in, result);
  args.k_cache = make_view(k.data.data(), {8, 4, 2, 5}, {40, 5, 20, 1});
  args.v_cache = make_view(v.data.data(), {8, 4, 2, 5}, {40, 5, 20, 1});
  run(args);
  expect_same(result, contiguous, 0.0);
}

TEST(ReferenceDecode, PackedQueriesOfUnequalCountEqualSeparateCalls) {
  const DecodeCase c{.ends = {12, 7, 5}, .num_queries = 4};
  DecodeInputs in = make_inputs(c);
  const std::vector<int32_t> boundaries = {0, 4, 4, 5};  // 4, none and 1 new tokens
  Doubles q = random_tensor({5, 4, 5}, 11), r = random_tensor({5, 4, 5}, 12);
  Ints cu_seqlens = ints(boundaries);
  Result packed({5, 4, 5});
  DecodeArgs args = arguments(in, packed);
  args.q = q.view();
  args.r = r.view();
  args.cu_seqlens_q = cu_seqlens.view();
  run(args);
  for (size_t entry : {0u, 2u}) {
    const int32_t begin = boundaries[entry], count = boundaries[entry + 1] - begin;
    Doubles one_q({1, count, 4, 5}), one_r({1, count, 4, 5});
    std::copy_n(q.data.begin() + begin * 20, count * 20, one_q.data.begin());
    std::copy_n(r.data.begin() + begin * 20, count * 20, one_r.data.begin());
    Result alone(one_q.sizes);
    DecodeArgs one = arguments(in, alone);
    one.q = one_q.view();
    one.r = one_r.view();
    one.k_cache = make_view(in.k_cache.row(static_cast<int64_t>(entry), 0, 0), {1, 12, 2, 5});
    one.v_cache = make_view(in.v_cache.row(static_cast<int64_t>(entry), 0, 0), {1, 12, 2, 5});
    one.cache_seqlens = make_view(in.ends.data.data() + entry, {1});
    run(one);
    EXPECT_TRUE(std::equal(alone.out.data.begin(), alone.out.data.end(),
                           packed.out.data.begin() + begin * 20));
  }
}

/// The result over keys begin..end of a full-mask call.
Result partial(const Inputs& in, int64_t begin, int64_t end) {
  Inputs part = in;
  const auto cut = [&](Doubles& tensor) {
    Doubles kept({1, end - begin, tensor.sizes[2], tensor.sizes[3]});
    std::copy_n(tensor.row(0, begin, 0), kept.data.size(), kept.data.begin());
    tensor = kept;
  };
  cut(part.k);
  cut(part.v);
  return forward(part);
}

Result merge(std::vector<Result>& parts) {
  std::vector<PartialState> states;
  for (Result& part : parts) states.push_back(part.state());
  Result merged(parts.front().out.sizes);
  const MergeArgs args{.partials = states,
                       .out = merged.out.view(),
                       .out_softmax = merged.out_softmax.view(),
                       .lse = merged.lse.view(),
                       .t_mean = merged.t_mean.view()};
  core::validate(args);
  reference::backend().merge(args);
  return merged;
}

TEST(ReferenceMerge, SplitKeysEqualTheWhole) {
  Inputs in = Inputs::random({.Tq = 3, .Tk = 13, .Hq = 2, .D = 4}, {.mask = Mask::kFull});
  const Result whole = forward(in);
  std::vector<Result> parts{partial(in, 0, 1), partial(in, 1, 8), partial(in, 8, 8),
                            partial(in, 8, 13)};
  expect_same(merge(parts), whole, 1e-12);
}

TEST(ReferenceMerge, OrderAndNestingDoNotMatter) {
  Inputs in = Inputs::random({.Tq = 2, .Tk = 9, .D = 3}, {.mask = Mask::kFull});
  std::vector<Result> backwards{partial(in, 6, 9), partial(in, 2, 6), partial(in, 0, 2)};
  std::vector<Result> inner{partial(in, 2, 6), partial(in, 6, 9)};
  std::vector<Result> nested{partial(in, 0, 2), merge(inner)};
  expect_same(merge(backwards), merge(nested), 1e-12);
}

TEST(ReferenceMerge, EmptyPartialsAreSkippedWhateverTheyHold) {
  Inputs in = Inputs::random({.Tq = 2, .Tk = 5, .D = 3}, {.mask = Mask::kFull});
  std::vector<Result> parts{partial(in, 0, 0), partial(in, 0, 5)};
  std::fill(parts[0].out.data.begin(), parts[0].out.data.end(), kNaN);
  std::fill(parts[0].t_mean.data.begin(), parts[0].t_mean.data.end(), kNaN);
  const Result whole = forward(in);
  expect_same(merge(parts), whole, 0.0);
}

TEST(ReferenceMerge, OnlyEmptyPartialsGiveAnEmptyRow) {
  Inputs in = Inputs::random({.Tq = 2, .Tk = 5, .D = 3}, {.mask = Mask::kFull});
  std::vector<Result> parts{partial(in, 0, 0), partial(in, 1, 1)};
  expect_same(merge(parts), partial(in, 0, 0), 0.0);
}

TEST(ReferenceMerge, OnePartialIsItself) {
  Inputs in = Inputs::random({.Tq = 2, .Tk = 5, .D = 3}, {.mask = Mask::kFull});
  std::vector<Result> parts{forward(in)};
  expect_same(merge(parts), parts[0], 0.0);
}

TEST(ReferenceMerge, PackedResultsMergeToo) {
  Inputs in{.q = random_tensor({5, 2, 3}, 1),
            .r = random_tensor({5, 2, 3}, 2),
            .k = random_tensor({6, 1, 3}, 3),
            .v = random_tensor({6, 1, 3}, 4),
            .cu_seqlens_q = ints({0, 2, 5}),
            .cu_seqlens_k = ints({0, 4, 6})};
  std::vector<Result> parts{forward(in)};
  expect_same(merge(parts), parts[0], 0.0);
}

}  // namespace
}  // namespace parallax::testing
