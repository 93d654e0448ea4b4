// Ranks over c10d.
// SPDX-License-Identifier: Apache-2.0
#include "train/distributed.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/Event.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "core/env.h"
#include "train/interrupt.h"

namespace parallax::train {
namespace {

using c10::intrusive_ptr;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

int number_of(core::Env variable, int smallest, int largest) {
  const std::string text = core::env_value(variable);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  PLX_CHECK(is_number && value >= smallest && value <= largest, core::env_name(variable), " is '",
            text, "'; where ", core::env_name(core::Env::kWorldSize),
            " is set, a whole number from ", smallest, " to ", largest,
            " is needed (torchrun and "
            "plx train --processes set it)");
  return value;
}

/// The first sentence of what c10d says, without the place in its source that it begins with.
std::string first_sentence(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  std::string text = from_torch != nullptr ? from_torch->what_without_backtrace() : error.what();
  if (text.starts_with('[')) text.erase(0, text.find("] ") + 2);
  return text.substr(0, std::min(text.find('\n'), text.find(". ")));
}

intrusive_ptr<c10d::Store> open_store(const RankPlace& place, Milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(place.port);
  options.isServer = place.rank == 0 && !place.has_launcher;
  options.waitWorkers = false;  // connecting to one another waits for everybody
  options.timeout = timeout;
  return c10::make_intrusive<c10d::PrefixStore>(
      "parallax/" + place.attempt, c10::make_intrusive<c10d::TCPStore>(place.address, options));
}

bool is_loopback(const std::string& address) {
  return address == "localhost" || address == "127.0.0.1" || address == "::1";
}

intrusive_ptr<c10d::Backend> open_gloo(const intrusive_ptr<c10d::Store>& store,
                                       const RankPlace& place, Milliseconds timeout) {
  // Later than ProcessRanks::finish(), which knows more.
  const Milliseconds latest = timeout + kSignalGrace;
  using Options = c10d::ProcessGroupGloo::Options;
  // Ranks of one machine need no name of it that others can reach; else GLOO_SOCKET_IFNAME counts.
  auto options =
      is_loopback(place.address) ? Options::create(latest) : Options::create_default(latest);
  if (options->devices.empty())
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(place.address));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>("gloo", store), place.rank, place.size, options);
}

intrusive_ptr<c10d::Backend> open_nccl(const intrusive_ptr<c10d::Store>& store,
                                       const RankPlace& place, Milliseconds timeout) {
#ifdef USE_C10D_NCCL
  // What is lost is found out by ProcessRanks::finish(); c10d's watchdog would end the process
  // before its state can be saved.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/1);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout + kSignalGrace;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(
      c10::make_intrusive<c10d::PrefixStore>("nccl", store), place.rank, place.size, options);
#else
  (void)store, (void)place, (void)timeout;
  PLX_FAIL("this build cannot train with several GPUs, as it has no NCCL: ", PLX_WHY_NO_NCCL,
           "; train.device = \"cpu\" works with several processes");
#endif
}

class ProcessRanks : public optim::Ranks {
 public:
  ProcessRanks(const RankPlace& place, torch::Device device, std::chrono::seconds timeout)
      : place_(place), timeout_(timeout), device_type_(device.type()) {
    const auto store = open_store(place, timeout);
    host_ = open_gloo(store, place, timeout);
    device_ = device.is_cuda() ? open_nccl(store, place, timeout) : host_;
  }

  ~ProcessRanks() override {
    if (is_lost_ || num_under_way_ > 0) {
      // Their destructors would wait for what never comes.
      device_.release();
      host_.release();
    } else if (device_ != host_) {
      device_->shutdown();
    }
  }

  int rank() const override { return place_.rank; }
  int size() const override { return place_.size; }

  Wait start_sum(torch::Tensor tensor) override {
    check_contiguous(tensor);
    return started([&] {
      std::vector<torch::Tensor> tensors = {tensor};
      return device_->allreduce(tensors);
    });
  }

  Wait start_broadcast(torch::Tensor tensor, int root) override {
    check_contiguous(tensor);
    return started([&] {
      // As bytes: Gloo does not know every dtype.
      std::vector<torch::Tensor> tensors = {tensor.detach().flatten().view(torch::kUInt8)};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      return device_->broadcast(tensors, options);
    });
  }

  std::vector<double> sum(std::vector<double> numbers) override {
    torch::Tensor tensor = torch::tensor(numbers, torch::kFloat64);
    started([&] {
      std::vector<torch::Tensor> tensors = {tensor};
      return host_->allreduce(tensors);
    })();
    const auto* const sums = tensor.const_data_ptr<double>();
    return {sums, sums + tensor.numel()};
  }

 private:
  static void check_contiguous(const torch::Tensor& tensor) {
    PLX_CHECK(tensor.is_contiguous(), "ranks exchange contiguous tensors, given strides ",
              tensor.strides(), " of shape ", tensor.sizes());
  }

  template <typename Start>
  Wait started(Start&& start) {
    intrusive_ptr<c10d::Work> work;
    try {
      work = start();
    } catch (const std::exception& error) {
      lose(first_sentence(error));
    }
    ++num_under_way_;
    return [this, work] { finish(*work); };
  }

  /// Looks instead of blocking, so that a rank which is lost, or this one being told to stop, ends
  /// the wait. On CUDA the current stream, from which the state is saved, is not held up meanwhile.
  /// What this rank's own GPU still has to do before does not count.
  void finish(c10d::Work& work) {
    std::optional<c10::Event> own_work;
    if (device_type_ != torch::kCPU) {
      own_work.emplace(device_type_);
      own_work->record(at::accelerator::getCurrentStream(at::accelerator::getDeviceIndex()));
    }
    auto start = Clock::now();
    std::optional<Clock::time_point> told_to_stop;
    while (!work.isCompleted()) {
      const auto now = Clock::now();
      if (own_work && !own_work->query()) {
        start = now;
        std::this_thread::sleep_for(kPause);
        continue;
      }
      own_work.reset();
      if (!told_to_stop && InterruptScope::received() != 0) told_to_stop = now;
      if (told_to_stop && now - *told_to_stop > kSignalGrace)
        lose("it was told to stop and another rank did not get on for " +
             std::to_string(kSignalGrace.count()) + " s");
      if (now - start > timeout_)
        lose("another rank did not get on for " + std::to_string(timeout_.count()) +
             " s (train.timeout_seconds)");
      if (now - start > kSpin)
        std::this_thread::sleep_for(kPause);
      else
        std::this_thread::yield();
    }
    try {
      // NCCL's wait() only makes the stream wait, and tells of no error.
      if (const std::exception_ptr error = work.exception()) std::rethrow_exception(error);
      work.wait();
    } catch (const std::exception& error) {
      lose(first_sentence(error));
    }
    --num_under_way_;
  }

  [[noreturn]] void lose(const std::string& why) {
    is_lost_ = true;
    std::ostringstream text;
    text << "rank " << place_.rank << " of " << place_.size << " lost another: " << why;
    throw LostRank(text.str());
  }

  static constexpr std::chrono::microseconds kSpin{500}, kPause{50};

  RankPlace place_;
  std::chrono::seconds timeout_;
  torch::DeviceType device_type_;
  bool is_lost_ = false;
  int num_under_way_ = 0;  // more than 0 at the end if an error left some unfinished
  intrusive_ptr<c10d::Backend> host_, device_;
};

}  // namespace

RankPlace rank_place() {
  using core::Env;
  RankPlace place;
  if (core::env_value(Env::kWorldSize).empty()) return place;
  place.size = number_of(Env::kWorldSize, 1, 1 << 16);
  if (place.size == 1) return place;
  place.rank = number_of(Env::kRank, 0, place.size - 1);
  place.local_rank = number_of(Env::kLocalRank, 0, place.rank);
  place.port = number_of(Env::kMasterPort, 1, 65535);
  place.address = core::env_value(Env::kMasterAddress);
  PLX_CHECK(!place.address.empty(), core::env_name(Env::kMasterAddress), " is not set, but ",
            core::env_name(Env::kWorldSize), " is: the ranks need an address to find each other");
  place.has_launcher = core::env_value(Env::kAgentStore) == "True";
  place.attempt = core::env_value(Env::kRestartCount);
  return place;
}

std::shared_ptr<optim::Ranks> join_ranks(const RankPlace& place, torch::Device device,
                                         std::chrono::seconds timeout) {
  if (place.size == 1) return std::make_shared<optim::Ranks>();
  try {
    return std::make_shared<ProcessRanks>(place, device, timeout);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    PLX_FAIL("rank ", place.rank, " of ", place.size, " could not join the others through ",
             place.address, ":", place.port, " (train.timeout_seconds is ", timeout.count(),
             "): ", first_sentence(error));
  }
}

Meeting open_meeting() {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  return {.server = std::make_shared<intrusive_ptr<c10d::TCPStore>>(store),
          .port = store->getPort()};
}

std::string describe_rank_backends() {
#ifdef USE_C10D_NCCL
  return "gloo (CPU), nccl (CUDA)";
#else
  return std::string("gloo (CPU); no nccl (CUDA): ") + PLX_WHY_NO_NCCL;
#endif
}

}  // namespace parallax::train
