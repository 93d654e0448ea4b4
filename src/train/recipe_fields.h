// The one list of a recipe's settings: reading, checking, comparing, printing and the help text all
// go through visit_sections(). The fields of [model] are those of config.json (nn/config.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <utility>

#include "train/recipe.h"

namespace parallax::train {

// With these no step overflows float32 as long as gradients and weights do not exceed kLargestNorm
// (step.h): a weight of 1e15 moves by lr * multiplier * 1e15 / eps = 1e36 at most. AdamW divides by
// 1 - beta^t.
inline constexpr double kLargestFactor = 1e3;
inline constexpr double kSmallestEps = 1e-15;
inline constexpr double kLargestBeta = 0.999999;

template <typename Section, typename Visitor>
void visit_data(Section& s, Visitor&& visit) {
  visit("kind", s.kind,
        {.help = "shards: text made by `plx prepare`; in_context_recall: the synthetic task",
         .choices = {"shards", "in_context_recall"}});
  visit("path", s.path, {.help = "folder of the shards", .may_change = true});
  visit("context_length", s.context_length,
        {.help = "tokens of a sequence; recall: its length, of which the last is only a target",
         .min = 2});
  visit("seed", s.seed, {.help = "seed of the data order", .min = 0});
}

template <typename Section, typename Visitor>
void visit_optimizer(Section& s, Visitor&& visit) {
  visit("name", s.name,
        {.help = "what trains the hidden matrices; AdamW trains the rest",
         .choices = {"muon", "adamw"}});
  visit("lr", s.lr, {.help = "peak learning rate", .min = 0, .max = kLargestFactor});
  visit("weight_decay", s.weight_decay,
        {.help = "decoupled weight decay", .min = 0, .max = kLargestFactor});
  visit("embedding_lr_multiplier", s.embedding_lr_multiplier,
        {.help = "times lr for embedding and head", .min = 0, .max = kLargestFactor});
  visit("norm_lr_multiplier", s.norm_lr_multiplier,
        {.help = "times lr for norm gains and biases", .min = 0, .max = kLargestFactor});
  visit("momentum", s.momentum, {.help = "of Muon", .min = 0, .max = 1});
  visit("nesterov", s.nesterov, {.help = "Muon steps along gradient and momentum"});
  visit("scaling", s.scaling,
        {.help = "size of Muon's step: sqrt(max(1, rows/cols)) or 0.2 sqrt(max(rows, cols))",
         .choices = {"original", "match_rms_adamw"}});
  visit("newton_schulz", s.newton_schulz,
        {.help = "coefficients of Muon's orthogonalisation",
         .choices = {"jordan", "polar_express", "exact"}});
  visit("newton_schulz_steps", s.newton_schulz_steps,
        {.help = "0: 5 for jordan, 8 for polar_express, 12 for exact", .min = 0, .max = 99});
  visit("newton_schulz_dtype", s.newton_schulz_dtype,
        {.help = "what it is computed in", .choices = {"float32", "bfloat16"}});
  visit("beta1", s.beta1, {.help = "of AdamW", .min = 0, .max = kLargestBeta});
  visit("beta2", s.beta2, {.help = "of AdamW", .min = 0, .max = kLargestBeta});
  visit("eps", s.eps, {.help = "of AdamW", .min = kSmallestEps, .max = kLargestFactor});
  visit("groups", s.groups,
        {.help = "exceptions: pattern, algorithm, lr_multiplier, weight_decay, row_splits"});
}

template <typename Section, typename Visitor>
void visit_schedule(Section& s, Visitor&& visit) {
  visit("kind", s.kind,
        {.help = "wsd: warm-up, stable, decay", .choices = {"wsd", "cosine", "constant"}});
  visit("warmup_steps", s.warmup_steps, {.help = "steps of linear warm-up", .min = 0});
  visit("decay_ratio", s.decay_ratio,
        {.help = "share of all steps that decay (wsd)", .min = 0, .max = 1});
  visit("decay_shape", s.decay_shape,
        {.help = "of the decay (wsd)", .choices = {"linear", "sqrt", "cosine"}});
  visit("min_lr_factor", s.min_lr_factor,
        {.help = "what the decay tends to, times lr", .min = 0, .max = 1});
  visit("weight_decay_gamma", s.weight_decay_gamma,
        {.help = "weight decay times (1 - t)^gamma during the decay, t from 0 to 1", .min = 0});
}

template <typename Section, typename Visitor>
void visit_train(Section& s, Visitor&& visit) {
  visit("steps", s.steps,
        {.help = "optimizer steps; the schedule stretches with it", .min = 1, .may_change = true});
  visit("batch_size", s.batch_size, {.help = "sequences of an optimizer step", .min = 1});
  visit("micro_batch_size", s.micro_batch_size,
        {.help = "sequences of one forward pass, whose gradients add up; 0: batch_size", .min = 0});
  visit("compute", s.compute,
        {.help = "dtype of the products; weights and optimizer state stay float32; auto: bfloat16 "
                 "where the machine has instructions for it",
         .choices = {"float32", "bfloat16", "auto"}});
  visit("clip_norm", s.clip_norm, {.help = "largest gradient norm; 0: no clipping", .min = 0});
  visit("activation_checkpointing", s.activation_checkpointing,
        {.help = "recompute layers in the backward pass to save memory", .may_change = true});
  visit("embedding_init_std", s.embedding_init_std,
        {.help = "spread of the initial embedding; 0: model.initializer_range", .min = 0});
  visit("seed", s.seed, {.help = "seed of the initial weights", .min = 0});
  visit("device", s.device,
        {.help = "auto: cuda where there is one and attention has kernels for it",
         .choices = {"auto", "cpu", "cuda"},
         .may_change = true});
  visit("deterministic", s.deterministic,
        {.help = "on CUDA: only kernels that repeat bit for bit; a CPU always does",
         .may_change = true});
  visit("timeout_seconds", s.timeout_seconds,
        {.help = "how long one of several processes waits for another before the run ends",
         .min = 1,
         .max = 1e6,
         .may_change = true});
}

template <typename Section, typename Visitor>
void visit_evaluation(Section& s, Visitor&& visit) {
  visit("every_steps", s.every_steps, {.help = "0: only at the end", .min = 0, .may_change = true});
  visit("num_sequences", s.num_sequences,
        {.help = "validation sequences, the same each time; 0: no evaluation",
         .min = 0,
         .may_change = true});
}

template <typename Section, typename Visitor>
void visit_checkpoint(Section& s, Visitor&& visit) {
  visit("every_steps", s.every_steps,
        {.help = "0: only at the end and when stopped", .min = 0, .may_change = true});
  visit("keep_last", s.keep_last,
        {.help = "older checkpoints are deleted", .min = 1, .may_change = true});
}

template <typename Section, typename Visitor>
void visit_logging(Section& s, Visitor&& visit) {
  visit("every_steps", s.every_steps,
        {.help = "steps per line of metrics.jsonl, which has their mean loss",
         .min = 1,
         .may_change = true});
  visit("run", s.run,
        {.help = "a name that the start line of metrics.jsonl carries", .may_change = true});
  visit(
      "peak_tflops", s.peak_tflops,
      {.help = "what model_flops_utilization is a share of, TFLOP/s of one device; 0: the maker's "
               "number, where the device is known",
       .min = 0,
       .may_change = true});
}

/// What a field of config.json means, where its name does not say it.
inline const char* model_field_help(std::string_view name) {
  constexpr std::pair<std::string_view, const char*> kMeanings[] = {
      {"max_position_embeddings", "longest sequence; data.context_length may not exceed it"},
      {"mixers", "token mixer of each layer, softmax or parallax; one name stands for all layers"},
      {"qk_norm", "RMSNorm on each head of q and k"},
      {"sliding_window", "keys that a query sees, itself included; null: all before it"},
      {"r_proj_bias", "parallax: a bias on the projection that makes r"},
      {"r_norm", "parallax: RMSNorm on each head of r"},
      {"r_rope", "parallax: rotary positions on r, as on q and k"},
      {"r_norm_init", "parallax: initial gain of r_norm; 0 starts as softmax attention exactly"},
  };
  for (const auto& [field, meaning] : kMeanings)
    if (field == name) return meaning;
  return "as in config.json";
}

/// The fields of [model].
template <typename Section, typename Visitor>
void visit_model(Section& s, Visitor&& visit) {
  visit("config", s.config,
        {.help = "a config.json to take the fields from, relative to the recipe",
         .may_change = true});
  visit("init_from", s.init_from,
        {.help = "a checkpoint folder (relative to the current one, as data.path) whose config and "
                 "weights the run starts from",
         .may_change = true});
  nn::visit_fields(s.fields, [&](const char* name, auto& field) {
    visit(name, field, {.help = model_field_help(name)});
  });
}

/// Calls visit_section(name, pass) for every section, where pass(visitor) calls
/// visitor(name, field, FieldInfo) for every field of it.
template <typename RecipeType, typename SectionVisitor>
void visit_sections(RecipeType& recipe, SectionVisitor&& visit_section) {
  visit_section("model", [&](auto&& visitor) { visit_model(recipe.model, visitor); });
  visit_section("data", [&](auto&& visitor) { visit_data(recipe.data, visitor); });
  visit_section("optimizer", [&](auto&& visitor) { visit_optimizer(recipe.optimizer, visitor); });
  visit_section("schedule", [&](auto&& visitor) { visit_schedule(recipe.schedule, visitor); });
  visit_section("train", [&](auto&& visitor) { visit_train(recipe.train, visitor); });
  visit_section("evaluation",
                [&](auto&& visitor) { visit_evaluation(recipe.evaluation, visitor); });
  visit_section("checkpoint",
                [&](auto&& visitor) { visit_checkpoint(recipe.checkpoint, visitor); });
  visit_section("logging", [&](auto&& visitor) { visit_logging(recipe.logging, visitor); });
}

}  // namespace parallax::train
