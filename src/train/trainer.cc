// The training loop.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <sstream>
#include <utility>

#include "core/grouped.h"
#include "io/atomic_file.h"
#include "nn/attention_op.h"
#include "nn/checkpoint.h"
#include "parallax/error.h"
#include "train/device.h"
#include "train/distributed.h"
#include "train/interrupt.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kMetricsFile = "metrics.jsonl";

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const char* dtype_name(torch::ScalarType dtype) {
  return dtype == torch::kBFloat16 ? "bfloat16" : "float32";
}

/// The embedding of a fresh model, drawn with another spread.
void rescale_embedding(nn::Decoder& model, double initializer_range, double std) {
  torch::NoGradGuard no_grad;
  model->named_parameters().find("model.embed_tokens.weight")->mul_(std / initializer_range);
}

bool is_due(int64_t step, int64_t every_steps) {
  return every_steps > 0 && step % every_steps == 0;
}

std::string text_of(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  return from_torch != nullptr ? from_torch->what_without_backtrace() : error.what();
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

template <typename Lines>
std::string joined(const Lines& lines, const char* separator) {
  std::ostringstream text;
  for (const auto& line : lines) text << (&line == &*lines.begin() ? "" : separator) << line;
  return text.str();
}

optim::NamedTensors named_parameters(const nn::Decoder& model) {
  optim::NamedTensors parameters;
  for (const auto& entry : model->named_parameters())
    parameters.emplace_back(entry.key(), entry.value());
  return parameters;
}

/// Fails unless a run with `saved` settings can go on with those of `now`.
void check_same_recipe(const nlohmann::json& saved, const nlohmann::json& now,
                       const fs::path& checkpoint) {
  const auto lines = differences(saved, now);
  PLX_CHECK(lines.empty(), checkpoint.string(), " was made with another recipe:\n  ",
            joined(lines, "\n  "),
            "\nOnly these may change when a run is resumed: ", joined(changeable_settings(), ", "));
}

/// Fails if the weights of a checkpoint belong to another tokenizer than the data.
void check_tokenizer(const fs::path& checkpoint, const text::Tokenizer* tokenizer) {
  const std::string trained_with = nn::load_tokenizer_fingerprint(checkpoint);
  if (tokenizer == nullptr || trained_with.empty()) return;
  PLX_CHECK(trained_with == tokenizer->fingerprint(), "model.init_from ", checkpoint.string(),
            " was trained with another tokenizer than that of the data: fingerprints ",
            trained_with, " and ", tokenizer->fingerprint());
}

bool has_decay(const ScheduleSection& schedule) {
  return schedule.kind == "cosine" || (schedule.kind == "wsd" && schedule.decay_ratio > 0);
}

}  // namespace

Trainer::Trainer(Recipe recipe, RunOptions options)
    : recipe_(std::move(recipe)),
      options_(std::move(options)),
      device_(choose_device(recipe_.train.device, options_.local_rank)),
      compute_(choose_compute(recipe_.train.compute, device_)),
      device_name_(device_name(device_)),
      data_(open_task_data(recipe_)),
      schedule_(schedule_options(recipe_)),
      store_(options_.output),
      progress_(options_.show_progress && options_.ranks->is_first()) {
  configure_torch(device_, recipe_.train.deterministic);
  bool has_begun = false;
  options_.ranks->first_does([&] {
    check_shares();
    has_begun = prepare_output();
  });
  const auto checkpoint = options_.resume ? store_.latest() : std::nullopt;
  if (checkpoint) {
    resume_from(*checkpoint);
  } else {
    build_model(std::nullopt);
    state_.data = data_.train->state();
    if (has_begun && options_.resume)
      warnings_.push_back(options_.output.string() +
                          " has no checkpoint: the run starts again at its first step");
  }
  state_.recipe = to_json(recipe_);
  warn_of_no_effect();
  options_.ranks->first_does([&] {
    store_.check_space(model_, *optimizer_, replaces_run() ? store_.num_bytes() : 0);
    if (!options_.profile.empty()) start_profile();
    metrics_.emplace(options_.output / kMetricsFile, checkpoint ? state_.step : -1);
    // Last, so that a run that cannot start deletes no checkpoint of the older one.
    if (replaces_run()) store_.clear();
  });
}

int64_t Trainer::micro_batch_size() const {
  const int64_t share = recipe_.train.batch_size / options_.ranks->size();
  return recipe_.train.micro_batch_size == 0 ? share
                                             : std::min(share, recipe_.train.micro_batch_size);
}

/// Fails unless each rank gets as many sequences as the others.
void Trainer::check_shares() const {
  const int64_t size = options_.ranks->size(), batch_size = recipe_.train.batch_size;
  PLX_CHECK(batch_size % size == 0, "train.batch_size is ", batch_size, ", the sequences of all ",
            size, " processes together; it must be a multiple of ", size,
            ", so that each has as many");
}

/// Locks the output folder and returns whether a run has begun there that this one continues or
/// replaces.
bool Trainer::prepare_output() {
  std::error_code error;
  fs::create_directories(options_.output, error);
  PLX_CHECK(!error, "cannot create the output folder ", options_.output.string(), ": ",
            error.message());
  lock_ = io::lock_folder(options_.output);
  const auto existing = store_.latest();
  const auto num_metrics_bytes = fs::file_size(options_.output / kMetricsFile, error);
  const bool has_begun = existing || (!error && num_metrics_bytes > 0);
  PLX_CHECK(!has_begun || options_.resume || options_.overwrite, options_.output.string(),
            " holds a run already (", existing ? existing->filename().string() : kMetricsFile,
            "): --resume continues it, --overwrite deletes it");
  if (lock_.is_open()) {
    store_.remove_leftovers();
    io::remove_leftovers(options_.output, kMetricsFile);
  }
  PLX_CHECK(
      !replaces_run() || recipe_.model.init_from.empty() || !store_.holds(recipe_.model.init_from),
      "model.init_from ", recipe_.model.init_from, " belongs to the run in ",
      options_.output.string(),
      ", which --overwrite deletes: write to another --output, or move that checkpoint "
      "elsewhere first");
  return has_begun;
}

void Trainer::build_model(const std::optional<fs::path>& checkpoint) {
  if (checkpoint) {
    model_ = nn::load_pretrained(*checkpoint);
  } else if (!recipe_.model.init_from.empty()) {
    check_tokenizer(recipe_.model.init_from, data_.tokenizer.get());
    model_ = nn::load_pretrained(recipe_.model.init_from);
  } else {
    torch::manual_seed(static_cast<uint64_t>(recipe_.train.seed));
    model_ = nn::Decoder(recipe_.model.fields);
    if (const double std = recipe_.train.embedding_init_std; std > 0)
      rescale_embedding(model_, recipe_.model.fields.initializer_range, std);
  }
  // Master weights are float32 whatever the checkpoint was stored in.
  model_->to(device_, torch::kFloat32);
  // Ranks on other kinds of CPU may have drawn weights that differ in rounding.
  for (const auto& parameter : model_->parameters())
    options_.ranks->start_broadcast(parameter, 0)();
  model_->set_activation_checkpointing(recipe_.train.activation_checkpointing);
  if (const auto bad = first_weight_beyond(kLargestNorm, model_))
    PLX_FAIL("the run cannot start: ", *bad, " is NaN, infinite or beyond ", kLargestNorm);
  const auto options = optimizer_options(recipe_.optimizer);
  plan_ = optim::plan_parameters(named_parameters(model_), options);
  optimizer_ = optim::make_optimizer(plan_, options, options_.ranks);
  gradients_.emplace(model_,
                     StepOptions{.micro_batch_size = micro_batch_size(),
                                 .compute = compute_,
                                 .clip_norm = recipe_.train.clip_norm},
                     options_.ranks);
  seconds_per_token_at_peak_ = least_seconds_per_token();
}

/// What one token would take if the devices did nothing but the model's products, at its peak rate:
/// the forward pass and twice as much for the backward pass. What is computed a second time, as by
/// activation checkpointing, does not count.
std::optional<double> Trainer::least_seconds_per_token() const {
  const double given = recipe_.logging.peak_tflops * 1e12;
  const auto peak = given > 0 ? given : peak_flops(device_name_, compute_);
  if (!peak) return std::nullopt;
  const int64_t num_tokens = recipe_.data.context_length;
  return 3 * model_->flops(num_tokens) / static_cast<double>(num_tokens) /
         (*peak * options_.ranks->size());
}

/// {"tokens_per_second"} and, where the device's peak rate is known, {"model_flops_utilization"}.
nlohmann::json Trainer::speed(int64_t num_tokens, double seconds) const {
  if (seconds <= 0) return nlohmann::json::object();
  const double tokens_per_second = static_cast<double>(num_tokens) / seconds;
  nlohmann::json json = {{"tokens_per_second", tokens_per_second}};
  if (seconds_per_token_at_peak_)
    json["model_flops_utilization"] = tokens_per_second * *seconds_per_token_at_peak_;
  return json;
}

void Trainer::resume_from(const fs::path& checkpoint) {
  CheckpointContents contents = load_checkpoint(checkpoint);
  PLX_CHECK(store_.path_of(contents.state.step) == checkpoint, checkpoint.string(),
            " holds the state after step ", contents.state.step, ", not that of its name");
  check_same_recipe(contents.state.recipe, to_json(recipe_), checkpoint);
  build_model(checkpoint);
  try {
    optimizer_->load_state(contents.optimizer);
    data_.train->load_state(contents.state.data);
  } catch (const std::exception& error) {
    PLX_FAIL("cannot resume from ", checkpoint.string(), ": ", text_of(error));
  }
  state_ = std::move(contents.state);
  saved_step_ = state_.step;
  summary_.checkpoint = checkpoint;
  warn_of_reshaped_schedule(state_.recipe);
}

void Trainer::warn_of_no_effect() {
  if (!data_.validation && recipe_.evaluation.num_sequences > 0)
    warnings_.push_back("evaluation.num_sequences has no effect: " + recipe_.data.path +
                        " has no validation split");
  const auto has_no_use = [](const optim::ParameterPlan& plan) {
    return plan.algorithm == optim::Algorithm::kAdamW && !plan.row_splits.empty();
  };
  const auto first = std::find_if(plan_.begin(), plan_.end(), has_no_use);
  if (first == plan_.end()) return;
  const auto count = std::count_if(first, plan_.end(), has_no_use);
  warnings_.push_back("optimizer.groups: row_splits have no effect on " + first->name +
                      (count > 1 ? " and " + std::to_string(count - 1) + " more" : "") +
                      ": AdamW trains them");
}

void Trainer::warn_of_reshaped_schedule(const nlohmann::json& saved_recipe) {
  Recipe before = recipe_;
  before.train.steps = saved_recipe.at("train").at("steps").get<int64_t>();
  if (before.train.steps == recipe_.train.steps || !has_decay(recipe_.schedule)) return;
  const double lr_before = optim::Schedule(schedule_options(before)).at(state_.step).lr;
  std::ostringstream text;
  text << "train.steps was " << before.train.steps << " and is " << recipe_.train.steps
       << " now, which moves the decay of the " << recipe_.schedule.kind
       << " schedule: the next step has a learning rate of "
       << recipe_.optimizer.lr * schedule_.at(state_.step).lr << ", before it was to be "
       << recipe_.optimizer.lr * lr_before;
  if (lr_before < schedule_.at(state_.step).lr) text << "; the decay that had begun is undone";
  warnings_.push_back(text.str());
}

RunSummary Trainer::run() {
  const InterruptScope interrupt;
  int signal = 0;
  const int64_t num_steps = recipe_.train.steps, last_step = this->last_step();
  const int64_t first_step = state_.step;
  const auto start = Clock::now();
  has_ended_before_ =
      state_.step >= last_step && metrics_ && metrics_->ends_at(state_.step, num_steps);
  record(start_line());
  while (state_.step < last_step && (signal = agreed_signal()) == 0) {
    const int64_t step_idx = state_.step - first_step;
    if (profile_) profile_->before_step(step_idx);
    step();
    if (profile_) profile_->after_step(step_idx);
    const double seconds_per_step =
        seconds_since(start) / static_cast<double>(state_.step - first_step);
    progress_.update(
        {.step = state_.step,
         .num_steps = num_steps,
         .loss = last_step_.loss,
         .tokens_per_second = static_cast<double>(interval_.num_tokens) / interval_.seconds,
         .seconds_left = seconds_per_step * static_cast<double>(num_steps - state_.step)});
    if (is_due(state_.step, recipe_.logging.every_steps) || state_.step == last_step) log_step();
    if (is_due(state_.step, recipe_.evaluation.every_steps) && state_.step < num_steps)
      evaluate_now();
    if (is_due(state_.step, recipe_.checkpoint.every_steps)) save();
  }
  summary_.signal = signal;
  if (state_.step == num_steps) evaluate_now();
  save();
  summary_.state = state_;
  if (state_.step > first_step) summary_.last_loss = last_step_.loss;
  summary_.peak_memory_bytes = peak_memory_bytes(device_);
  summary_.speed = speed(state_.num_tokens, state_.seconds);
  if (profile_) summary_.kernels = profile_->kernels();
  nlohmann::json line = {{"event", "end"},
                         {"step", state_.step},
                         {"tokens", state_.num_tokens},
                         {"seconds", state_.seconds},
                         {"finished", state_.step == num_steps},
                         {"peak_memory_bytes", summary_.peak_memory_bytes}};
  line.update(summary_.speed);
  if (summary_.evaluation) line.update(to_json(*summary_.evaluation));
  record(line);
  return summary_;
}

/// Appends a line to the metrics, but none of a call that only comes to an end recorded before.
int64_t Trainer::last_step() const {
  const int64_t num_steps = recipe_.train.steps;
  return options_.stop_at > 0 ? std::min(options_.stop_at, num_steps) : num_steps;
}

void Trainer::start_profile() {
  constexpr int64_t kNeeded = StepProfile::kWarmUpSteps + StepProfile::kSteps;
  const int64_t num_left = std::max<int64_t>(last_step() - state_.step, 0);
  PLX_CHECK(num_left >= kNeeded, "a profile needs ", kNeeded, " steps, and ", num_left,
            " are left of the run");
  profile_.emplace(options_.profile, device_);
}

void Trainer::record(const nlohmann::json& line) {
  if (has_ended_before_ || !metrics_) return;
  try {
    metrics_->write(line);
  } catch (const std::exception& error) {
    PLX_FAIL(text_of(error), "; ", rescue());
  }
}

/// Runs work that leaves weights and optimizer alone; if it throws, saves before the run ends.
template <typename Work>
auto Trainer::or_rescue(const std::string& where, Work&& work) {
  try {
    return work();
  } catch (const LostRank& error) {
    throw LostRank(where + ": " + error.what() + "; " + rescue());
  } catch (const c10::OutOfMemoryError& error) {
    const int64_t peak_mib = peak_memory_bytes(device_) >> 20;
    // Room to save from; the step's gradients are lost anyway.
    gradients_.reset();
    model_->zero_grad();
    if (device_.is_cuda()) at::accelerator::emptyCache();
    PLX_FAIL(where, ": out of memory on ", device_.str(), ", of which the run had taken ",
             core::grouped(peak_mib), " MiB; train.micro_batch_size is ", micro_batch_size(),
             ", a smaller one or train.activation_checkpointing needs ", "less (",
             first_line(text_of(error)), "); ", rescue());
  } catch (const std::exception& error) {
    PLX_FAIL(where, ": ", text_of(error), "; ", rescue());
  }
}

/// The signal that any rank has received; the same on all, 0 for none.
int Trainer::agreed_signal() {
  const int received = InterruptScope::received();
  const auto counts = or_rescue("after step " + std::to_string(state_.step), [&] {
    return options_.ranks->sum({received == SIGINT ? 1.0 : 0, received == SIGTERM ? 1.0 : 0});
  });
  return counts[0] > 0 ? SIGINT : counts[1] > 0 ? SIGTERM : 0;
}

void Trainer::step() {
  const auto start = Clock::now();
  const Batch batch = or_rescue("step " + std::to_string(state_.step + 1), [&] {
    Batch drawn = data_.train->next(recipe_.train.batch_size);
    last_step_ = gradients_->compute(drawn);
    return drawn;
  });
  // Of the weights before this step: looked at here, since here the device is waited for anyway.
  if (!(last_step_.largest_weight_norm <= kUnusualNorm)) guard_weights();
  if (last_step_.first_bad) {
    const std::string outcome = rescue();
    stop_on_bad(state_.step + 1, *last_step_.first_bad, outcome);
  }
  take_step();
  state_.step += 1;
  state_.num_tokens += batch.tokens_BT.numel();
  state_.data = data_.train->state();
  const double seconds = seconds_since(start);
  state_.seconds += seconds;
  interval_.seconds += seconds;
  interval_.loss_sum += last_step_.loss;
  interval_.num_steps += 1;
  interval_.num_tokens += batch.tokens_BT.numel();
}

/// Where a rank is lost in the middle of it, some weights have moved and others not.
void Trainer::take_step() {
  try {
    optimizer_->step(schedule_.at(state_.step));
  } catch (const LostRank& error) {
    throw LostRank("step " + std::to_string(state_.step + 1) + ": " + error.what() +
                   "; the step was half done, so that its state cannot be saved; " +
                   newest_checkpoint());
  }
}

/// The last step is done, and there is no copy of the state before it. So the state is saved once
/// when a weight becomes unusually large, while no step can have made it bad yet.
void Trainer::guard_weights() {
  if (!first_weight_beyond(kUnusualNorm, model_)) return;
  if (const auto bad = first_weight_beyond(kLargestNorm, model_))
    stop_on_bad(state_.step, *bad, "that state is not saved; " + newest_checkpoint());
  if (!std::exchange(has_unusual_weights_, true)) save();
}

void Trainer::stop_on_bad(int64_t step, const std::string& what, const std::string& outcome) {
  if (!metrics_) throw optim::OtherRankTells();
  std::string lost;
  try {
    metrics_->write({{"event", "not_finite"}, {"step", step}, {"tensor", what}});
  } catch (const std::exception& error) {
    lost = "; " + text_of(error);
  }
  PLX_FAIL("step ", step, ": ", what, " is NaN, infinite or beyond ", kLargestNorm, "; ", outcome,
           lost);
}

/// Saves the state of the last finished step unless it is saved already, and deletes no older one.
/// Returns what became of it, for the message of the error that ends the run.
std::string Trainer::rescue() {
  if (!options_.ranks->is_first()) return "rank 0 saves the state before it, if it can";
  std::ostringstream text;
  text << "the state after step " << state_.step << " is ";
  try {
    write_checkpoint();
    text << "saved in " << summary_.checkpoint.string();
  } catch (const std::exception& error) {
    text << "not saved (" << text_of(error) << "); " << newest_checkpoint();
  }
  return text.str();
}

std::string Trainer::newest_checkpoint() const {
  return summary_.checkpoint.empty() ? "there is no checkpoint yet"
                                     : "the newest checkpoint is " + summary_.checkpoint.string();
}

void Trainer::log_step() {
  nlohmann::json line = {{"event", "train"},
                         {"step", state_.step},
                         {"tokens", state_.num_tokens},
                         {"loss", interval_.loss_sum / static_cast<double>(interval_.num_steps)},
                         {"lr", recipe_.optimizer.lr * schedule_.at(state_.step - 1).lr},
                         {"grad_norm", last_step_.grad_norm},
                         {"seconds", state_.seconds},
                         {"peak_memory_bytes", peak_memory_bytes(device_)}};
  line.update(speed(interval_.num_tokens, interval_.seconds));
  record(line);
  interval_ = {};
}

void Trainer::evaluate_now() {
  if (!data_.validation || recipe_.evaluation.num_sequences == 0) return;
  guard_weights();
  summary_.evaluation = or_rescue("evaluation after step " + std::to_string(state_.step), [&] {
    return evaluate(model_, *data_.validation,
                    {.num_sequences =
                         std::min(recipe_.evaluation.num_sequences, data_.num_validation_sequences),
                     .batch_size = micro_batch_size(),
                     .compute = compute_,
                     .with_accuracy = data_.with_accuracy,
                     .bytes_of_token = data_.bytes_of_token,
                     .ranks = options_.ranks});
  });
  nlohmann::json line = {
      {"event", "evaluation"}, {"step", state_.step}, {"tokens", state_.num_tokens}};
  line.update(to_json(*summary_.evaluation));
  record(line);
  std::ostringstream text;
  text << "step " << state_.step << ": validation loss " << summary_.evaluation->loss;
  if (const auto& bits = summary_.evaluation->bits_per_byte) text << ", bits per byte " << *bits;
  if (const auto& accuracy = summary_.evaluation->accuracy) text << ", accuracy " << *accuracy;
  progress_.note(text.str());
}

void Trainer::write_checkpoint() {
  if (saved_step_ == state_.step || !options_.ranks->is_first()) return;
  if (const auto bad = first_weight_beyond(kLargestNorm, model_))
    PLX_FAIL(*bad, " is NaN, infinite or beyond ", kLargestNorm);
  summary_.checkpoint = store_.save(model_, *optimizer_, state_, data_.tokenizer.get());
  saved_step_ = state_.step;
}

void Trainer::save() {
  guard_weights();
  try {
    write_checkpoint();
  } catch (const std::exception& error) {
    PLX_FAIL("the state after step ", state_.step, " is not saved: ", text_of(error), "; ",
             newest_checkpoint());
  }
  if (options_.ranks->is_first()) store_.prune(state_.step, recipe_.checkpoint.keep_last);
}

nlohmann::json Trainer::start_line() const {
  nlohmann::json line = {
      {"event", "start"},
      {"step", state_.step},
      {"steps", recipe_.train.steps},
      {"parameters", nn::num_parameters(*model_)},
      {"mixers", recipe_.model.fields.mixers},
      {"data", data_.description},
      {"tokens_per_step", recipe_.train.batch_size * recipe_.data.context_length},
      {"compute", dtype_name(compute_)},
      {"device", device_.str()},
      {"ranks", options_.ranks->size()},
      {"threads", at::get_num_threads()}};
  if (!device_name_.empty()) line["device_name"] = device_name_;
  if (!recipe_.logging.run.empty()) line["run"] = recipe_.logging.run;
  return line;
}

std::vector<std::string> Trainer::description() const {
  const nn::ModelConfig& config = recipe_.model.fields;
  const int size = options_.ranks->size();
  const int64_t rows = recipe_.train.batch_size / size, micro = micro_batch_size();
  const int64_t num_passes = (rows + micro - 1) / micro;
  std::ostringstream model, batch;
  model << "model      " << joined(config.mixers, ", ") << ": " << config.num_hidden_layers
        << " layers x " << config.hidden_size << ", " << config.num_attention_heads << " heads ("
        << config.num_key_value_heads << " key/value) x " << config.head_dim << ", FFN "
        << config.intermediate_size << ", vocabulary " << core::grouped(config.vocab_size) << ", "
        << core::grouped(nn::num_parameters(*model_)) << " parameters";
  batch << "batch      " << recipe_.train.batch_size << " sequences x "
        << recipe_.data.context_length << " tokens in " << num_passes << " forward passes"
        << (size > 1 ? " of each process, " : ", ") << dtype_name(compute_) << " on ";
  if (size > 1) batch << size << " x ";
  batch << device_.str() << ", " << at::get_num_threads() << " threads";
  std::vector<std::string> lines = {model.str(), "data       " + data_.description, batch.str()};
  for (const auto& group : optim::describe(plan_)) lines.push_back("optimizer  " + group);
  std::ostringstream schedule;
  schedule << "schedule   " << recipe_.schedule.kind << ", " << recipe_.train.steps << " steps";
  if (state_.step > 0) schedule << ", resumed at step " << state_.step;
  lines.push_back(schedule.str());
  return lines;
}

}  // namespace parallax::train
