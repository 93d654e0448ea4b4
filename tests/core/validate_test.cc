// Every refusal of the public functions, by its message. Each test breaks one thing in a call that
// is otherwise allowed.
// SPDX-License-Identifier: Apache-2.0
#include "core/validate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "parallax/parallax.h"

namespace parallax::core {
namespace {

/// Memory for views whose values validation does not read.
class Arena {
 public:
  explicit Arena(size_t num_bytes) : bytes_(num_bytes) {}

  template <typename T = float>
  TensorView tensor(std::initializer_list<int64_t> sizes) {
    TensorView view = make_view(reinterpret_cast<T*>(bytes_.data() + used_), sizes);
    used_ += static_cast<size_t>(view.num_elements()) * sizeof(T);
    EXPECT_LE(used_, bytes_.size());
    return view;
  }
  TensorView ints(const std::vector<int32_t>& values) {
    TensorView view = tensor<int32_t>({static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), static_cast<int32_t*>(view.data));
    return view;
  }

 private:
  std::vector<char> bytes_;
  size_t used_ = 0;
};

template <typename Args>
std::string refusal(const Args& args) {
  try {
    validate(args);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

/// [B, Tq, Hq, D] = [2, 3, 4, 8], [B, Tk, Hkv, D] = [2, 5, 2, 8].
struct Dense : ::testing::Test {
  Arena arena{1 << 16};
  ForwardArgs args{.q = arena.tensor({2, 3, 4, 8}),
                   .r = arena.tensor({2, 3, 4, 8}),
                   .k = arena.tensor({2, 5, 2, 8}),
                   .v = arena.tensor({2, 5, 2, 8}),
                   .out = arena.tensor({2, 3, 4, 8}),
                   .out_softmax = arena.tensor({2, 3, 4, 8}),
                   .lse = arena.tensor({2, 4, 3}),
                   .t_mean = arena.tensor({2, 4, 3})};
};
using ValidateForward = Dense;

TEST_F(ValidateForward, AcceptsTheCallThatTheOtherTestsBreak) {
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, OptionalOutputsMayBeAbsent) {
  args.out_softmax = args.lse = args.t_mean = {};
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, MissingTensors) {
  args.out = {};
  EXPECT_EQ(refusal(args), "out is missing; it is required here");
  args.v = {};
  EXPECT_EQ(refusal(args), "v is missing; it is required here");
  args.q = {};
  EXPECT_EQ(refusal(args), "q is missing; it is required here");
}

TEST_F(ValidateForward, TensorWithoutMemory) {
  args.k.data = nullptr;
  EXPECT_EQ(refusal(args), "k has shape [2, 5, 2, 8] but no memory (its data pointer is null)");
}

TEST_F(ValidateForward, MemoryThatIsNotAlignedToItsElement) {
  ForwardArgs bad = args;
  bad.k.data = static_cast<const char*>(bad.k.data) + 2;
  EXPECT_EQ(refusal(bad),
            "k begins at an address that is not a multiple of 4 bytes, the size of float32");
  args.lse.data = static_cast<char*>(args.lse.data) + 1;
  EXPECT_EQ(refusal(args),
            "lse begins at an address that is not a multiple of 4 bytes, the size of float32");
}

TEST_F(ValidateForward, NegativeSize) {
  args.q.sizes[1] = -3;
  EXPECT_EQ(refusal(args), "q has a negative size: [2, -3, 4, 8]");
}

TEST_F(ValidateForward, RankOfQ) {
  args.q = arena.tensor({3, 8});
  EXPECT_EQ(refusal(args),
            "q has shape [3, 8]; it must be [B, Tq, Hq, D], or packed [total_q, Hq, D]");
}

TEST_F(ValidateForward, DtypeOfQ) {
  args.q.dtype = DType::kInt32;
  EXPECT_EQ(refusal(args), "q is int32; it must be float32, bfloat16, float16 or float64");
}

TEST_F(ValidateForward, InputsOfUnequalDtype) {
  args.v.dtype = DType::kBFloat16;
  EXPECT_EQ(refusal(args), "v is bfloat16; it must be float32 (the dtype of q)");
}

TEST_F(ValidateForward, OutputOfAnotherDtype) {
  args.out_softmax.dtype = DType::kFloat16;
  EXPECT_EQ(refusal(args), "out_softmax is float16; it must be float32 (the dtype of q)");
}

TEST_F(ValidateForward, DtypeOfStatistics) {
  args.lse.dtype = DType::kFloat64;
  EXPECT_EQ(refusal(args), "lse is float64; it must be float32 (the inputs are not float64)");
}

TEST_F(ValidateForward, StatisticsOfFloat64InputsAreFloat64) {
  for (ConstTensorView* view : {&args.q, &args.r, &args.k, &args.v}) view->dtype = DType::kFloat64;
  args.out = arena.tensor<double>({2, 3, 4, 8});
  args.out_softmax = {};
  EXPECT_EQ(refusal(args), "lse is float32; it must be float64 (the inputs are float64)");
}

TEST_F(ValidateForward, HeadSize) {
  args.q = arena.tensor({1, 1, 1, 257});
  EXPECT_EQ(refusal(args), "q has shape [1, 1, 1, 257] and so head size 257; it must be 1 to 256");
  args.q.sizes[3] = 0;
  EXPECT_EQ(refusal(args), "q has shape [1, 1, 1, 0] and so head size 0; it must be 1 to 256");
}

TEST_F(ValidateForward, NoHeads) {
  args.q.sizes[2] = 0;
  EXPECT_EQ(refusal(args), "q has shape [2, 3, 0, 8] and so no head; at least 1 is needed");
}

TEST_F(ValidateForward, ShapeOfR) {
  args.r = arena.tensor({2, 3, 2, 8});
  EXPECT_EQ(refusal(args),
            "r has shape [2, 3, 2, 8]; it must be [2, 3, 4, 8] ([B, Tq, Hq, D], as q)");
}

TEST_F(ValidateForward, BatchOfK) {
  args.k = arena.tensor({3, 5, 2, 8});
  EXPECT_EQ(refusal(args),
            "k has shape [3, 5, 2, 8]; it must be [2, any, any, 8] ([B, Tk, Hkv, D] with q's B and "
            "D)");
}

TEST_F(ValidateForward, ValuesOfAnotherHeadSize) {
  args.v = arena.tensor({2, 5, 2, 16});
  EXPECT_EQ(refusal(args), "v has shape [2, 5, 2, 16]; it must be [2, 5, 2, 8] (the shape of k)");
}

TEST_F(ValidateForward, HeadsThatDoNotDivide) {
  args.k = args.v = arena.tensor({2, 5, 3, 8});
  EXPECT_EQ(refusal(args),
            "q has 4 heads and k has 3; the query heads must be a multiple of the key heads");
  args.k = args.v = arena.tensor({2, 5, 0, 8});
  EXPECT_EQ(refusal(args),
            "q has 4 heads and k has 0; the query heads must be a multiple of the key heads");
}

TEST_F(ValidateForward, InnermostStride) {
  args.k.strides[3] = 2;
  EXPECT_EQ(refusal(args), "k has stride 2 in its last dimension; it must be 1");
  args.q.strides[3] = 0;
  EXPECT_EQ(refusal(args), "q has stride 0 in its last dimension; it must be 1");
}

TEST_F(ValidateForward, AnyOtherInputStrideIsAllowed) {
  args.k.strides = {0, -16, 8, 1};
  args.k.data = static_cast<const float*>(args.k.data) + 64;
  args.v.strides = {0, 0, 0, 1};
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, StrideOfASizeOneHeadDimensionIsFree) {
  ForwardArgs one{.q = arena.tensor({1, 1, 1, 1}),
                  .r = arena.tensor({1, 1, 1, 1}),
                  .k = arena.tensor({1, 1, 1, 1}),
                  .v = arena.tensor({1, 1, 1, 1}),
                  .out = arena.tensor({1, 1, 1, 1})};
  one.q.strides[3] = one.k.strides[3] = 7;
  EXPECT_EQ(refusal(one), "accepted");
}

TEST_F(ValidateForward, AnEmptyTensorMayHaveAnyStride) {
  for (TensorView* out : {&args.out, &args.out_softmax}) *out = arena.tensor({2, 0, 4, 8});
  args.lse = args.t_mean = arena.tensor({2, 4, 0});
  args.q = args.r = arena.tensor({2, 0, 4, 8});
  args.q.strides[3] = 0;
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, OutputThatRevisitsElements) {
  args.out.strides[0] = 0;
  EXPECT_EQ(refusal(args),
            "out is written, but its stride 0 revisits elements; strides of outputs must be "
            "positive and not overlap");
  args.out.strides = {96, -32, 8, 1};
  EXPECT_EQ(refusal(args),
            "out is written, but its stride -32 revisits elements; strides of outputs must be "
            "positive and not overlap");
}

TEST_F(ValidateForward, ShapeOfStatistics) {
  args.t_mean = arena.tensor({2, 3, 4});
  EXPECT_EQ(refusal(args), "t_mean has shape [2, 3, 4]; it must be [2, 4, 3] ([B, Hq, Tq] of q)");
}

TEST_F(ValidateForward, TensorsOnTwoDevices) {
  args.v.device = {DeviceType::kCuda, 1};
  EXPECT_EQ(refusal(args), "v is on cuda:1 and q on cpu; all tensors must be on one device");
  args.v.device = {};
  args.lse.device = {DeviceType::kCuda, 0};
  EXPECT_EQ(refusal(args), "lse is on cuda:0 and q on cpu; all tensors must be on one device");
}

TEST_F(ValidateForward, OutputThatIsAnInput) {
  args.out.data = const_cast<void*>(args.q.data);
  EXPECT_EQ(refusal(args),
            "out and q share memory; an output must not overlap an input or another output");
}

TEST_F(ValidateForward, OutputsThatOverlapPartly) {
  args.out_softmax.data = static_cast<float*>(args.out.data) + 100;
  EXPECT_EQ(refusal(args),
            "out and out_softmax share memory; an output must not overlap an input or another "
            "output");
}

TEST_F(ValidateForward, OutputsInterleavedInOneBufferAreAllowed) {
  const TensorView both = arena.tensor({2, 3, 4, 16});
  args.out.data = both.data;
  args.out_softmax.data = static_cast<float*>(both.data) + 8;
  args.out.strides = args.out_softmax.strides = {192, 64, 16, 1};
  EXPECT_EQ(refusal(args), "accepted");
}

/// A repeated dimension (stride 0) holds no more memory than one element of it.
TEST_F(ValidateForward, AnOutputInTheGapOfARepeatedInputIsAllowed) {
  const TensorView buffer = arena.tensor({8, 8});
  args.q = args.r = arena.tensor({4, 1, 1, 8});
  args.k = args.v = make_view(static_cast<float*>(buffer.data), {4, 2, 1, 8}, {0, 56, 8, 1});
  args.out = make_view(static_cast<float*>(buffer.data) + 16, {4, 1, 1, 8});
  args.out_softmax = args.lse = args.t_mean = {};
  EXPECT_EQ(refusal(args), "accepted");
  args.out.data = static_cast<float*>(buffer.data) + 32;  // its last row is k's second
  EXPECT_EQ(refusal(args), "accepted");                   // a range with gaps: only partly checked
  args.k.strides[1] = 8;                                  // rows 0 and 1, repeated
  args.out.data = static_cast<float*>(buffer.data) + 8;
  EXPECT_EQ(refusal(args),
            "out and k share memory; an output must not overlap an input or another output");
}

TEST_F(ValidateForward, InputsMayShareMemory) {
  args.r = args.q;
  args.v = args.k;
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, Window) {
  args.options.window = 0;
  EXPECT_EQ(refusal(args), "window is 0; it must be at least 1");
  args.options = {.mask = Mask::kFull, .window = 4};
  EXPECT_EQ(refusal(args), "window is 4 with the full mask; a window needs the causal mask");
}

TEST_F(ValidateForward, SoftmaxScale) {
  args.options.softmax_scale = std::numeric_limits<float>::infinity();
  EXPECT_EQ(refusal(args), "softmax_scale is inf; it must be finite");
  args.options.softmax_scale = -1e39;
  EXPECT_EQ(refusal(args),
            "softmax_scale is -1e+39 and q is float32; it must be finite in float32");
}

TEST_F(ValidateForward, SoftmaxScaleOfFloat64InputsIsADouble) {
  for (ConstTensorView* view : {&args.q, &args.r, &args.k, &args.v}) view->dtype = DType::kFloat64;
  args.out = arena.tensor<double>({2, 3, 4, 8});
  args.out_softmax = args.lse = args.t_mean = {};
  args.options.softmax_scale = 1e39;
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateForward, BoundariesWithDenseTensors) {
  args.cu_seqlens_k = arena.ints({0, 5});
  EXPECT_EQ(refusal(args),
            "cu_seqlens_k is given, but q has shape [2, 3, 4, 8]; variable length needs packed q "
            "[total_q, Hq, D]");
}

/// Two sequences: 3 + 4 queries, 5 + 4 keys.
struct Packed : ::testing::Test {
  Arena arena{1 << 16};
  ForwardArgs args{.q = arena.tensor({7, 4, 8}),
                   .r = arena.tensor({7, 4, 8}),
                   .k = arena.tensor({9, 2, 8}),
                   .v = arena.tensor({9, 2, 8}),
                   .cu_seqlens_q = arena.ints({0, 3, 7}),
                   .cu_seqlens_k = arena.ints({0, 5, 9}),
                   .out = arena.tensor({7, 4, 8}),
                   .lse = arena.tensor({4, 7})};
};
using ValidatePacked = Packed;

TEST_F(ValidatePacked, AcceptsTheCallThatTheOtherTestsBreak) {
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidatePacked, EmptySequencesAreAllowed) {
  args.cu_seqlens_q = arena.ints({0, 0, 7, 7});
  args.cu_seqlens_k = arena.ints({0, 5, 5, 9});
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidatePacked, MissingBoundaries) {
  args.cu_seqlens_k = {};
  EXPECT_EQ(refusal(args), "cu_seqlens_k is missing; it is required here");
}

TEST_F(ValidatePacked, BoundariesOfAnotherDtype) {
  args.cu_seqlens_q.dtype = DType::kFloat32;
  EXPECT_EQ(refusal(args), "cu_seqlens_q is float32; it must be int32 (lengths and indices)");
}

TEST_F(ValidatePacked, ShapeOfBoundaries) {
  args.cu_seqlens_q = arena.tensor<int32_t>({1, 3});
  EXPECT_EQ(refusal(args), "cu_seqlens_q has shape [1, 3]; it must be [any] ([N + 1])");
  args.cu_seqlens_q = arena.tensor<int32_t>({0});
  EXPECT_EQ(refusal(args), "cu_seqlens_q is empty; for N sequences it must have N + 1 entries");
}

TEST_F(ValidatePacked, BoundariesWithGaps) {
  args.cu_seqlens_q.strides[0] = 2;
  EXPECT_EQ(refusal(args), "cu_seqlens_q has stride 2 in its last dimension; it must be 1");
}

TEST_F(ValidatePacked, UnequalNumberOfSequences) {
  args.cu_seqlens_q = arena.ints({0, 7});
  EXPECT_EQ(refusal(args),
            "cu_seqlens_q has 2 entries and cu_seqlens_k 3; they must have the same number");
}

TEST_F(ValidatePacked, BoundaryValues) {
  args.cu_seqlens_k = arena.ints({1, 5, 9});
  EXPECT_EQ(refusal(args), "cu_seqlens_k[0] is 1; it must be 0");
  args.cu_seqlens_k = arena.ints({0, 10, 9});
  EXPECT_EQ(refusal(args), "cu_seqlens_k[2] is 9 after 10; the entries must not decrease");
  args.cu_seqlens_k = arena.ints({0, 5, 8});
  EXPECT_EQ(refusal(args), "cu_seqlens_k ends at 8; it must end at 9, the number of rows of k");
  args.cu_seqlens_q = arena.ints({0, 3, 8});
  EXPECT_EQ(refusal(args), "cu_seqlens_q ends at 8; it must end at 7, the number of rows of q");
}

TEST_F(ValidatePacked, BoundaryValuesOnAnotherDeviceAreNotRead) {
  args.cu_seqlens_k = arena.ints({1, 0, 0});
  for (ConstTensorView* view :
       {&args.q, &args.r, &args.k, &args.v, &args.cu_seqlens_q, &args.cu_seqlens_k})
    view->device.type = DeviceType::kCuda;
  args.out.device.type = args.lse.device.type = DeviceType::kCuda;
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidatePacked, DenseKeysWithPackedQueries) {
  args.k = arena.tensor({1, 9, 2, 8});
  EXPECT_EQ(refusal(args),
            "k has shape [1, 9, 2, 8]; it must be [any, any, 8] ([total_k, Hkv, D] with q's D)");
}

TEST_F(ValidatePacked, ShapeOfStatistics) {
  args.lse = arena.tensor({7, 4});
  EXPECT_EQ(refusal(args), "lse has shape [7, 4]; it must be [4, 7] ([Hq, total_q] of q)");
}

struct ValidateBackward : ::testing::Test {
  Arena arena{1 << 16};
  BackwardArgs args{.d_out = arena.tensor({2, 3, 4, 8}),
                    .q = arena.tensor({2, 3, 4, 8}),
                    .r = arena.tensor({2, 3, 4, 8}),
                    .k = arena.tensor({2, 5, 2, 8}),
                    .v = arena.tensor({2, 5, 2, 8}),
                    .out = arena.tensor({2, 3, 4, 8}),
                    .out_softmax = arena.tensor({2, 3, 4, 8}),
                    .lse = arena.tensor({2, 4, 3}),
                    .t_mean = arena.tensor({2, 4, 3}),
                    .dq = arena.tensor({2, 3, 4, 8}),
                    .dr = arena.tensor({2, 3, 4, 8}),
                    .dk = arena.tensor({2, 5, 2, 8}),
                    .dv = arena.tensor({2, 5, 2, 8})};
};

TEST_F(ValidateBackward, AcceptsTheCallThatTheOtherTestsBreak) {
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateBackward, EveryTensorIsRequired) {
  const auto expect_required = [this](auto BackwardArgs::* member, const std::string& name) {
    BackwardArgs broken = args;
    broken.*member = {};
    EXPECT_EQ(refusal(broken), name + " is missing; it is required here");
  };
  expect_required(&BackwardArgs::d_out, "d_out");
  expect_required(&BackwardArgs::r, "r");
  expect_required(&BackwardArgs::out, "out");
  expect_required(&BackwardArgs::out_softmax, "out_softmax");
  expect_required(&BackwardArgs::lse, "lse");
  expect_required(&BackwardArgs::t_mean, "t_mean");
  expect_required(&BackwardArgs::dq, "dq");
  expect_required(&BackwardArgs::dr, "dr");
  expect_required(&BackwardArgs::dk, "dk");
  expect_required(&BackwardArgs::dv, "dv");
}

TEST_F(ValidateBackward, ShapesOfGradients) {
  args.dv = arena.tensor({2, 5, 4, 8});
  EXPECT_EQ(refusal(args), "dv has shape [2, 5, 4, 8]; it must be [2, 5, 2, 8] (the shape of k)");
  args.dr = arena.tensor({2, 5, 4, 8});
  EXPECT_EQ(refusal(args),
            "dr has shape [2, 5, 4, 8]; it must be [2, 3, 4, 8] ([B, Tq, Hq, D], as q)");
  args.d_out = arena.tensor({2, 3, 4, 4});
  EXPECT_EQ(refusal(args),
            "d_out has shape [2, 3, 4, 4]; it must be [2, 3, 4, 8] ([B, Tq, Hq, D], as q)");
}

TEST_F(ValidateBackward, GradientThatIsAnInput) {
  args.dk.data = const_cast<void*>(args.v.data);
  EXPECT_EQ(refusal(args),
            "dk and v share memory; an output must not overlap an input or another output");
}

TEST_F(ValidateBackward, TwoGradientsInOnePlace) {
  args.dv.data = args.dk.data;
  EXPECT_EQ(refusal(args),
            "dk and dv share memory; an output must not overlap an input or another output");
}

TEST_F(ValidateBackward, WindowNeedsTheCausalMask) {
  args.options = {.mask = Mask::kFull, .window = 2};
  EXPECT_EQ(refusal(args), "window is 2 with the full mask; a window needs the causal mask");
}

/// Two sequences with 3 new tokens each and room for 16 keys.
struct ValidateDecode : ::testing::Test {
  Arena arena{1 << 17};
  DecodeArgs args{.q = arena.tensor({2, 3, 4, 8}),
                  .r = arena.tensor({2, 3, 4, 8}),
                  .k_cache = arena.tensor({2, 16, 2, 8}),
                  .v_cache = arena.tensor({2, 16, 2, 8}),
                  .cache_starts = arena.ints({0, 2}),
                  .cache_seqlens = arena.ints({16, 7}),
                  .out = arena.tensor({2, 3, 4, 8})};

  /// 10 pages of 4 tokens; sequence 0 has 4 pages, sequence 1 two.
  void make_paged() {
    args.k_cache = arena.tensor({10, 4, 2, 8});
    args.v_cache = arena.tensor({10, 4, 2, 8});
    set_page_table({0, 1, 2, 3, 9, 8, -1, -1});
  }
  void set_page_table(const std::vector<int32_t>& entries) {
    TensorView table = arena.ints(entries);
    args.page_table = make_view(static_cast<int32_t*>(table.data), {2, 4});
  }
};

TEST_F(ValidateDecode, AcceptsTheCallsThatTheOtherTestsBreak) {
  EXPECT_EQ(refusal(args), "accepted");
  make_paged();
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateDecode, FullMask) {
  args.options.mask = Mask::kFull;
  EXPECT_EQ(refusal(args), "decode was asked for the full mask; it is causal");
}

TEST_F(ValidateDecode, QuantisedCaches) {
  args.v_scale = arena.tensor({2});
  EXPECT_EQ(refusal(args),
            "v_scale is given, but quantised caches are not built yet; leave it undefined");
  args.k_scale = arena.tensor({2});
  EXPECT_EQ(refusal(args),
            "k_scale is given, but quantised caches are not built yet; leave it undefined");
}

TEST_F(ValidateDecode, ShapesOfCaches) {
  args.v_cache = arena.tensor({2, 15, 2, 8});
  EXPECT_EQ(refusal(args),
            "v_cache has shape [2, 15, 2, 8]; it must be [2, 16, 2, 8] (the shape of k_cache)");
  args.k_cache = arena.tensor({3, 16, 2, 8});
  EXPECT_EQ(refusal(args),
            "k_cache has shape [3, 16, 2, 8]; it must be [2, any, any, 8] ([B, capacity, Hkv, D] "
            "with q's B and D)");
}

TEST_F(ValidateDecode, BatchOfCachesWithPackedQueries) {
  args.q = args.r = args.out = arena.tensor({4, 4, 8});
  args.cu_seqlens_q = arena.ints({0, 1, 2, 4});
  EXPECT_EQ(refusal(args),
            "k_cache has shape [2, 16, 2, 8]; it must be [3, any, any, 8] ([B, capacity, Hkv, D] "
            "with B + 1 entries in cu_seqlens_q and q's D)");
}

TEST_F(ValidateDecode, HeadsThatDoNotDivide) {
  args.k_cache = args.v_cache = arena.tensor({2, 16, 3, 8});
  EXPECT_EQ(refusal(args),
            "q has 4 heads and k_cache has 3; the query heads must be a multiple of the key heads");
}

TEST_F(ValidateDecode, CacheOfAnotherDtype) {
  args.k_cache.dtype = DType::kFloat16;
  EXPECT_EQ(refusal(args), "k_cache is float16; it must be float32 (the dtype of q)");
}

TEST_F(ValidateDecode, Lengths) {
  args.cache_seqlens = arena.ints({16, 17});
  EXPECT_EQ(refusal(args), "cache_seqlens[1] is 17; it must be 0 to 16, the capacity of the cache");
  args.cache_seqlens = arena.ints({-1, 7});
  EXPECT_EQ(refusal(args), "cache_seqlens[0] is -1; it must be 0 to 16, the capacity of the cache");
  args.cache_seqlens = arena.ints({16, 7, 7});
  EXPECT_EQ(refusal(args), "cache_seqlens has shape [3]; it must be [2] ([B])");
}

TEST_F(ValidateDecode, Starts) {
  args.cache_starts = arena.ints({0, 8});
  EXPECT_EQ(refusal(args),
            "cache_starts[1] is 8; it must be 0 to 7, the sequence's end in the cache");
  args.cache_starts = arena.ints({-1, 2});
  EXPECT_EQ(refusal(args),
            "cache_starts[0] is -1; it must be 0 to 16, the sequence's end in the cache");
}

TEST_F(ValidateDecode, MoreQueriesThanKeysAreAllowed) {
  args.cache_starts = {};
  args.cache_seqlens = arena.ints({0, 1});
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateDecode, PackedQueries) {
  args.q = args.r = arena.tensor({4, 4, 8});
  args.out = arena.tensor({4, 4, 8});
  EXPECT_EQ(refusal(args), "cu_seqlens_q is missing; it is required here");
  args.cu_seqlens_q = arena.ints({0, 1, 4});
  EXPECT_EQ(refusal(args), "accepted");
  args.cu_seqlens_q = arena.ints({0, 1, 5});
  EXPECT_EQ(refusal(args), "cu_seqlens_q ends at 5; it must end at 4, the number of rows of q");
}

TEST_F(ValidateDecode, BoundariesWithDenseQueries) {
  args.cu_seqlens_q = arena.ints({0, 3, 6});
  EXPECT_EQ(refusal(args),
            "cu_seqlens_q is given, but q has shape [2, 3, 4, 8]; variable length needs packed q "
            "[total_q, Hq, D]");
}

TEST_F(ValidateDecode, PageTableShapeAndDtype) {
  make_paged();
  args.page_table = arena.tensor<int32_t>({3, 4});
  EXPECT_EQ(refusal(args), "page_table has shape [3, 4]; it must be [2, any] ([B, max_pages])");
  args.page_table.dtype = DType::kFloat32;
  EXPECT_EQ(refusal(args), "page_table is float32; it must be int32 (lengths and indices)");
}

TEST_F(ValidateDecode, PageThatDoesNotExist) {
  make_paged();
  set_page_table({0, 1, 2, 10, 9, 8, -1, -1});
  EXPECT_EQ(refusal(args),
            "page_table[0, 3] is 10 and holds visible keys; it must be 0 to 9, a page of k_cache");
  set_page_table({0, 1, 2, 3, 9, -1, -1, -1});
  EXPECT_EQ(refusal(args),
            "page_table[1, 1] is -1 and holds visible keys; it must be 0 to 9, a page of k_cache");
}

TEST_F(ValidateDecode, PagesOutsideWindowAndLengthsAreNotLookedAt) {
  make_paged();
  set_page_table({-1, -7, 99, 3, 9, 8, 99, -1});
  args.options.window = 2;  // sequence 0: the oldest query is at 13 and sees 12 and 13
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateDecode, PagesWithoutRoom) {
  make_paged();
  args.k_cache = args.v_cache = arena.tensor({10, 0, 2, 8});
  EXPECT_EQ(refusal(args), "k_cache has shape [10, 0, 2, 8]; a page must hold at least 1 token");
}

TEST_F(ValidateDecode, PagedCapacityIsThatOfTheTable) {
  make_paged();
  args.cache_seqlens = arena.ints({17, 7});
  EXPECT_EQ(refusal(args), "cache_seqlens[0] is 17; it must be 0 to 16, the capacity of the cache");
}

TEST_F(ValidateDecode, OutputInTheCache) {
  args.out.data = const_cast<void*>(args.k_cache.data);
  EXPECT_EQ(refusal(args),
            "out and k_cache share memory; an output must not overlap an input or another output");
}

struct ValidateMerge : ::testing::Test {
  Arena arena{1 << 15};
  std::vector<PartialState> partials{partial(), partial()};
  MergeArgs args{.partials = partials, .out = arena.tensor({2, 3, 4, 8})};

  PartialState partial() {
    return {.out = arena.tensor({2, 3, 4, 8}),
            .out_softmax = arena.tensor({2, 3, 4, 8}),
            .lse = arena.tensor({2, 4, 3}),
            .t_mean = arena.tensor({2, 4, 3})};
  }
};

TEST_F(ValidateMerge, AcceptsTheCallThatTheOtherTestsBreak) {
  EXPECT_EQ(refusal(args), "accepted");
}

TEST_F(ValidateMerge, NoPartials) {
  args.partials = {};
  EXPECT_EQ(refusal(args), "partials is empty; a merge needs at least 1");
}

TEST_F(ValidateMerge, IncompletePartial) {
  partials[1].t_mean = {};
  EXPECT_EQ(refusal(args), "partials[1].t_mean is missing; it is required here");
}

TEST_F(ValidateMerge, PartialOfAnotherShape) {
  partials[1].out = arena.tensor({2, 3, 2, 8});
  EXPECT_EQ(refusal(args),
            "partials[1].out has shape [2, 3, 2, 8]; it must be [2, 3, 4, 8] ([B, Tq, Hq, D], as "
            "out)");
  partials[0].lse = arena.tensor({2, 3, 4});
  EXPECT_EQ(refusal(args),
            "partials[0].lse has shape [2, 3, 4]; it must be [2, 4, 3] ([B, Hq, Tq] of out)");
}

TEST_F(ValidateMerge, PartialOfAnotherDtype) {
  partials[0].out_softmax.dtype = DType::kBFloat16;
  EXPECT_EQ(refusal(args),
            "partials[0].out_softmax is bfloat16; it must be float32 (the dtype of out)");
}

TEST_F(ValidateMerge, OutputThatIsAPartial) {
  args.out.data = const_cast<void*>(partials[1].out.data);
  EXPECT_EQ(refusal(args),
            "out and partials[1].out share memory; an output must not overlap an input or another "
            "output");
}

}  // namespace
}  // namespace parallax::core
