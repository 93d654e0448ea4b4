// Backward in one pass over tiles of rows. Each writes its own dq and dr; dk and dv of a key head
// are sums over its tiles, added in a fixed order, the last tile first: a tile waits at each tile
// of keys for its predecessor. The sums are kept in dk and dv themselves if those are float32.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/backward.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

/// Whose turn it is at one tile of keys. The tiles of rows that see it follow each other, from the
/// last to the first.
struct Turns {
  int64_t first_tile = -1;  // of rows; none sees these keys
  int64_t last_tile = -1;
  std::atomic<int64_t> current_tile{-1};
};

/// The tiles of one sequence and key head.
struct Head {
  int64_t sequence_idx, head_kv;
  int64_t tiles_left;  // the next to be drawn is the last of them
  int num_workers = 0;
  AlignedArray<float> sums{};  // [2][keys][D] of dk and dv while tiles are drawn, for half types
  std::vector<Turns> turns{};  // one per tile of keys
};

/// Hands out the tiles of a call. A head's tiles are drawn in the order of their turns by threads
/// that compute them at once, so whoever waits for a turn waits for a thread at work, in whatever
/// order the tasks of the call run. A thread gets a head of its own while there are enough: its
/// keys stay near, and nobody waits.
class TileQueue {
 public:
  TileQueue(const core::Problem& problem, const Kernels& kernels, bool allocate_sums)
      : problem_(problem), rows_per_tile_(kernels.fused_rows), allocate_sums_(allocate_sums) {
    for (size_t idx = 0; idx < problem.sequences.size(); ++idx)
      for (int64_t head_kv = 0; head_kv < problem.num_heads_kv; ++head_kv) {
        const core::Sequence& sequence = problem.sequences[idx];
        Head head{.sequence_idx = static_cast<int64_t>(idx),
                  .head_kv = head_kv,
                  .tiles_left = divide_up(num_rows(problem, sequence), rows_per_tile_)};
        head.turns =
            std::vector<Turns>(static_cast<size_t>(divide_up(sequence.keys.end, kernels.key_tile)));
        set_turns(head, kernels.key_tile);
        num_tiles_ += head.tiles_left;
        heads_.push_back(std::move(head));
      }
  }

  int64_t num_tiles() const { return num_tiles_; }
  const std::vector<Head>& heads() const { return heads_; }
  const core::Sequence& sequence(const Head& head) const {
    return problem_.sequences[static_cast<size_t>(head.sequence_idx)];
  }

  struct Ticket {
    Head* head;
    int64_t tile_idx;
  };

  /// One of the num_tiles() tiles, of the head with the fewest threads.
  Ticket draw() {
    const std::lock_guard lock(mutex_);
    while (heads_[first_open_].tiles_left == 0) ++first_open_;
    Head* best = &heads_[first_open_];
    for (size_t idx = first_open_ + 1; idx < heads_.size() && best->num_workers > 0; ++idx)
      if (heads_[idx].tiles_left > 0 && heads_[idx].num_workers < best->num_workers)
        best = &heads_[idx];
    if (allocate_sums_ && best->sums == nullptr)
      best->sums = make_aligned_array<float>(2 * sequence(*best).keys.end * problem_.head_dim);
    ++best->num_workers;
    return {.head = best, .tile_idx = --best->tiles_left};
  }

  void give_back(const Ticket& ticket) {
    const std::lock_guard lock(mutex_);
    if (--ticket.head->num_workers == 0 && ticket.head->tiles_left == 0) ticket.head->sums.reset();
  }

  RowTile tile(const Ticket& ticket) const {
    return row_tile(problem_,
                    {.sequence_idx = ticket.head->sequence_idx,
                     .head_kv = ticket.head->head_kv,
                     .tile_idx = ticket.tile_idx},
                    rows_per_tile_);
  }

 private:
  /// The turns at each tile of keys: those of the tiles of rows that see it.
  void set_turns(Head& head, int64_t keys_per_tile) const {
    core::KeyRange keys{0, keys_per_tile};
    for (Turns& turns : head.turns) {
      const RowSpan rows = rows_that_see(problem_, sequence(head), keys);
      if (rows.begin < rows.end) {
        turns.first_tile = turns.current_tile = (rows.end - 1) / rows_per_tile_;
        turns.last_tile = rows.begin / rows_per_tile_;
      }
      keys = {keys.end, keys.end + keys_per_tile};
    }
  }

  const core::Problem& problem_;
  int rows_per_tile_;
  bool allocate_sums_;
  int64_t num_tiles_ = 0;
  std::mutex mutex_{};  // guards what follows, but for the turns
  std::vector<Head> heads_{};
  size_t first_open_ = 0;
};

/// KeyTurns of a ticket.
KeyTurn wait_for_turn(void* queue, int64_t key_tile) {
  const auto& [head, tile_idx] = *static_cast<const TileQueue::Ticket*>(queue);
  const Turns& turns = head->turns[static_cast<size_t>(key_tile)];
  while (turns.current_tile.load(std::memory_order_acquire) != tile_idx) std::this_thread::yield();
  return {.is_first = turns.first_tile == tile_idx, .is_last = turns.last_tile == tile_idx};
}

void pass_turn(void* queue, int64_t key_tile) {
  const auto& [head, tile_idx] = *static_cast<const TileQueue::Ticket*>(queue);
  head->turns[static_cast<size_t>(key_tile)].current_tile.store(tile_idx - 1,
                                                                std::memory_order_release);
}

void fill_zeros(const RowTensor<void>& tensor, core::KeyRange keys, int64_t head_dim) {
  const auto bytes = static_cast<int64_t>(size_of(tensor.dtype));
  for (int64_t key = keys.begin; key < keys.end; ++key)
    std::memset(static_cast<char*>(tensor.data) + key * tensor.token_stride * bytes, 0,
                static_cast<size_t>(head_dim * bytes));
}

/// Zeros for the tiles of keys that no row sees.
void fill_unseen(const core::Problem& problem, const BackwardArgs& args, const TileQueue& queue,
                 int64_t keys_per_tile) {
  for (const Head& head : queue.heads()) {
    const core::Sequence& sequence = queue.sequence(head);
    for (size_t idx = 0; idx < head.turns.size(); ++idx) {
      if (head.turns[idx].first_tile >= 0) continue;
      const int64_t first_key = static_cast<int64_t>(idx) * keys_per_tile;
      const core::KeyRange keys{first_key, std::min(first_key + keys_per_tile, sequence.keys.end)};
      for (const TensorView* tensor : {&args.dk, &args.dv})
        fill_zeros(head_rows(problem, *tensor, sequence, head.head_kv), keys, problem.head_dim);
    }
  }
}

/// Where the gradients of a head go.
FusedGradients gradients_of(const core::Problem& problem, const BackwardArgs& args,
                            const core::Sequence& sequence, const Head& head) {
  const RowTensor<void> dk = head_rows(problem, args.dk, sequence, head.head_kv);
  const RowTensor<void> dv = head_rows(problem, args.dv, sequence, head.head_kv);
  const auto sums = [&](const RowTensor<void>& target, int64_t which) -> RowTensor<void> {
    if (head.sums == nullptr) return target;
    return {.data = head.sums.get() + which * sequence.keys.end * problem.head_dim,
            .dtype = DType::kFloat32,
            .token_stride = problem.head_dim,
            .head_stride = 0};
  };
  return {.dq = group_rows(problem, args.dq, sequence, head.head_kv),
          .dr = group_rows(problem, args.dr, sequence, head.head_kv),
          .dk = dk,
          .dv = dv,
          .dk_sums = sums(dk, 0),
          .dv_sums = sums(dv, 1),
          .turns = {}};
}

}  // namespace

void fused_backward(const Kernels& kernels, const BackwardArgs& args) {
  const core::Problem problem = core::make_problem(args);
  TileQueue queue(problem, kernels, /*allocate_sums=*/args.dk.dtype != DType::kFloat32);
  fill_unseen(problem, args, queue, kernels.key_tile);
  const int64_t scratch_floats = kernels.scratch_floats(kernels.padded_dim(problem.head_dim));
  core::parallel_for(queue.num_tiles(), [&](int64_t) {
    float* const scratch = thread_scratch(scratch_floats);
    TileQueue::Ticket ticket = queue.draw();  // nothing throws from here on: others wait for it
    const Head& head = *ticket.head;
    const core::Sequence& sequence = queue.sequence(head);
    FusedGradients gradients = gradients_of(problem, args, sequence, head);
    gradients.turns = {.queue = &ticket, .wait = wait_for_turn, .pass = pass_turn};
    kernels.fused_backward(backward_inputs(problem, args, sequence, head.head_kv),
                           queue.tile(ticket).tile, gradients, scratch);
    queue.give_back(ticket);
  });
}

}  // namespace parallax::cpu
