// A recipe once it is read: comparison, warnings, and what it means for the optimizer.
// SPDX-License-Identifier: Apache-2.0
#include "train/recipe.h"

#include <nlohmann/json.hpp>
#include <sstream>
#include <type_traits>

#include "train/recipe_fields.h"

namespace parallax::train {
namespace {

using Json = nlohmann::json;

template <typename T>
Json field_to_json(const T& field) {
  return field;
}

template <typename T>
Json field_to_json(const std::optional<T>& field) {
  return field ? Json(*field) : Json();
}

Json field_to_json(const std::vector<int64_t>& ids) { return nn::one_or_list(ids); }

Json field_to_json(const std::vector<optim::GroupRule>& rules) {
  Json list = Json::array();
  for (const auto& rule : rules) {
    Json entry = {{"pattern", rule.pattern}};
    if (rule.algorithm) entry["algorithm"] = optim::to_string(*rule.algorithm);
    if (rule.lr_multiplier) entry["lr_multiplier"] = *rule.lr_multiplier;
    if (rule.weight_decay) entry["weight_decay"] = *rule.weight_decay;
    if (rule.row_splits) entry["row_splits"] = *rule.row_splits;
    list.push_back(std::move(entry));
  }
  return list;
}

std::string range_text(const FieldInfo& info) {
  std::ostringstream text;
  if (!info.choices.empty()) {
    for (const auto& choice : info.choices)
      text << (&choice == &info.choices[0] ? "" : "|") << choice;
  } else if (std::isfinite(info.min) && std::isfinite(info.max)) {
    text << info.min << " to " << info.max;
  } else if (std::isfinite(info.min)) {
    text << info.min << " or more";
  }
  return text.str();
}

}  // namespace

Json to_json(const Recipe& recipe) {
  Json json;
  visit_sections(recipe, [&](const char* section, auto&& pass) {
    pass([&](const char* name, const auto& field, const FieldInfo&) {
      json[section][name] = field_to_json(field);
    });
  });
  return json;
}

std::vector<std::string> changeable_settings() {
  std::vector<std::string> settings;
  const Recipe recipe;
  visit_sections(recipe, [&](const char* section, auto&& pass) {
    pass([&](const char* name, const auto&, const FieldInfo& info) {
      if (info.may_change) settings.push_back(std::string(section) + "." + name);
    });
  });
  return settings;
}

std::vector<std::string> differences(const Json& saved, const Json& now) {
  std::vector<std::string> lines;
  const Recipe recipe;
  visit_sections(recipe, [&](const char* section, auto&& pass) {
    pass([&](const char* name, const auto&, const FieldInfo& info) {
      const Json before = saved.value(section, Json::object()).value(name, Json());
      const Json after = now.value(section, Json::object()).value(name, Json());
      if (info.may_change || before == after) return;
      lines.push_back(std::string(section) + "." + name + ": " + before.dump() +
                      " in the checkpoint, " + after.dump() + " now");
    });
  });
  return lines;
}

std::vector<std::string> warnings(const Recipe& recipe) {
  std::vector<std::string> sentences;
  const auto warn_if = [&](bool condition, const std::string& setting, const std::string& why) {
    if (condition && recipe.given.contains(setting))
      sentences.push_back(setting + " has no effect: " + why);
  };
  bool uses_muon = recipe.optimizer.name == "muon";
  for (const auto& rule : recipe.optimizer.groups)
    uses_muon = uses_muon || rule.algorithm == optim::Algorithm::kMuon;
  for (const char* key : {"momentum", "nesterov", "scaling", "newton_schulz", "newton_schulz_steps",
                          "newton_schulz_dtype"})
    warn_if(!uses_muon, std::string("optimizer.") + key, "nothing is trained by Muon");

  const auto& kind = recipe.schedule.kind;
  warn_if(kind != "wsd", "schedule.decay_ratio", "the schedule is " + kind);
  warn_if(kind != "wsd", "schedule.decay_shape", "the schedule is " + kind);
  const bool decays = kind == "cosine" || (kind == "wsd" && recipe.schedule.decay_ratio > 0);
  for (const char* key : {"min_lr_factor", "weight_decay_gamma"})
    warn_if(!decays, std::string("schedule.") + key, "the schedule has no decay");

  warn_if(recipe.data.kind == "in_context_recall", "data.path", "the task is generated");
  warn_if(recipe.evaluation.num_sequences == 0, "evaluation.every_steps",
          "evaluation.num_sequences is 0");
  warn_if(recipe.evaluation.every_steps > recipe.train.steps, "evaluation.every_steps",
          "it exceeds train.steps");
  warn_if(recipe.checkpoint.every_steps > recipe.train.steps, "checkpoint.every_steps",
          "it exceeds train.steps");

  for (const char* key : {"train.seed", "train.embedding_init_std"})
    warn_if(!recipe.model.init_from.empty(), key, "the weights come from model.init_from");

  const auto& mixers = recipe.model.fields.mixers;
  const bool has_parallax =
      std::find(mixers.begin(), mixers.end(), std::string("parallax")) != mixers.end();
  for (const char* key : {"r_proj_bias", "r_norm", "r_rope", "r_norm_init"})
    warn_if(!has_parallax, std::string("model.") + key, "no layer uses the parallax mixer");
  warn_if(!recipe.model.fields.r_norm, "model.r_norm_init", "model.r_norm is false");
  return sentences;
}

std::string describe_settings() {
  std::ostringstream text;
  const Recipe recipe;
  visit_sections(recipe, [&](const char* section, auto&& pass) {
    text << "[" << section << "]\n";
    pass([&](const char* name, const auto& field, const FieldInfo& info) {
      text << "  " << name << " = " << field_to_json(field).dump();
      const std::string range = range_text(info);
      text << "    # " << info.help << (range.empty() ? "" : " (" + range + ")") << '\n';
    });
  });
  return text.str();
}

optim::OptimizerOptions optimizer_options(const OptimizerSection& section) {
  return {.algorithm = optim::parse_algorithm(section.name),
          .lr = section.lr,
          .weight_decay = section.weight_decay,
          .embedding_lr_multiplier = section.embedding_lr_multiplier,
          .norm_lr_multiplier = section.norm_lr_multiplier,
          .muon = {.momentum = section.momentum,
                   .nesterov = section.nesterov,
                   .scaling = optim::parse_muon_scaling(section.scaling),
                   .newton_schulz = {.set = optim::parse_newton_schulz_set(section.newton_schulz),
                                     .num_steps = section.newton_schulz_steps,
                                     .dtype = section.newton_schulz_dtype == "bfloat16"
                                                  ? torch::kBFloat16
                                                  : torch::kFloat32}},
          .adamw = {.beta1 = section.beta1, .beta2 = section.beta2, .eps = section.eps},
          .rules = section.groups};
}

optim::ScheduleOptions schedule_options(const Recipe& recipe) {
  const ScheduleSection& section = recipe.schedule;
  return {.kind = optim::parse_schedule_kind(section.kind),
          .num_steps = recipe.train.steps,
          .warmup_steps = section.warmup_steps,
          .decay_ratio = section.decay_ratio,
          .decay_shape = optim::parse_decay_shape(section.decay_shape),
          .min_lr_factor = section.min_lr_factor,
          .weight_decay_gamma = section.weight_decay_gamma};
}

}  // namespace parallax::train
