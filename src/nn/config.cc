// Reading, checking and writing config.json.
// SPDX-License-Identifier: Apache-2.0
#include "nn/config.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <type_traits>

#include "core/nearest_name.h"
#include "io/atomic_file.h"
#include "io/json_error.h"
#include "nn/mixers/registry.h"
#include "parallax/error.h"

namespace parallax::nn {
namespace {

using nlohmann::json;

constexpr std::string_view kOwnType = "parallax_qwen3";

/// A model family of transformers: what its files leave unsaid. All are softmax models whose
/// optional projections are fixed by the family.
struct Family {
  std::string_view model_type;
  std::string_view architecture;
  bool qk_norm;
  bool attention_bias;
  /// What head_dim is when absent; hidden_size / num_attention_heads if 0.
  int64_t head_dim;
};
constexpr std::array kFamilies = {
    Family{"qwen3", "Qwen3ForCausalLM", true, false, 128},
    Family{"qwen2", "Qwen2ForCausalLM", false, true, 0},
    Family{"llama", "LlamaForCausalLM", false, false, 0},
};
const Family* find_family(std::string_view model_type) {
  const auto* found = std::ranges::find(kFamilies, model_type, &Family::model_type);
  return found == kFamilies.end() ? nullptr : found;
}

/// Fields that only our own model type has: in a family's file they would mean nothing.
bool is_own_field(std::string_view name) {
  static constexpr std::array kNames = {"mixers", "qk_norm", "r_proj_bias",
                                        "r_norm", "r_rope",  "r_norm_init"};
  return std::ranges::find(kNames, name) != kNames.end();
}

/// Keys of transformers' files that are read below for what they imply, or that say nothing about
/// the function the model computes.
const std::set<std::string_view> kForeignKeys = {"attention_dropout",
                                                 "auto_map",
                                                 "dtype",
                                                 "hidden_act",
                                                 "layer_types",
                                                 "max_window_layers",
                                                 "mlp_bias",
                                                 "pad_token_id",
                                                 "pretraining_tp",
                                                 "quantization_config",
                                                 "rope_parameters",
                                                 "rope_scaling",
                                                 "torch_dtype",
                                                 "transformers_version",
                                                 "use_cache",
                                                 "use_sliding_window",
                                                 "r_gate"};

template <typename T>
constexpr std::string_view type_name() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, double>) return "a number";
  if constexpr (std::is_same_v<T, std::string>) return "a string";
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) return "an integer or a list of integers";
  return "a list of strings";
}

template <typename T>
bool has_type(const json& value) {
  if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  if constexpr (std::is_same_v<T, int64_t>) return value.is_number_integer();
  if constexpr (std::is_same_v<T, double>) return value.is_number();
  if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  if constexpr (std::is_same_v<T, std::vector<int64_t>>)
    return value.is_array() &&
           std::ranges::all_of(value, [](const json& item) { return item.is_number_integer(); });
  return value.is_array() &&
         std::ranges::all_of(value, [](const json& item) { return item.is_string(); });
}

template <typename T>
void read_value(const std::string& name, const json& value, T& field) {
  PLX_CHECK(has_type<T>(value), name, " must be ", type_name<T>(), ", got ", value.dump());
  field = value.get<T>();
}

template <typename T>
void read_value(const std::string& name, const json& value, std::optional<T>& field) {
  if (value.is_null()) {
    field.reset();
    return;
  }
  read_value(name, value, field.emplace());
}

/// One id stands for a list of it.
void read_value(const std::string& name, const json& value, std::vector<int64_t>& field) {
  if (value.is_number_integer()) {
    field = {value.get<int64_t>()};
  } else {
    read_value<std::vector<int64_t>>(name, value, field);
  }
}

/// The value of a key, or null.
const json& get(const json& file, std::string_view key) {
  static const json kNull;
  const auto found = file.find(key);
  return found == file.end() ? kNull : *found;
}

template <typename T>
T get_or(const json& file, const std::string& key, T fallback) {
  if (const json& value = get(file, key); !value.is_null()) read_value(key, value, fallback);
  return fallback;
}

/// The line of the file on which each key of the outermost object stands.
using KeyLines = std::map<std::string, int64_t>;

/// Walks over a text for the parser and counts the line ends it has passed.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* position, int64_t& line) : position_(position), line_(&line) {}
  reference operator*() const { return *position_; }
  CountingIterator& operator++() {
    *line_ += *position_++ == '\n';
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return position_ == other.position_; }

 private:
  const char* position_;
  int64_t* line_;
};

json parse_json(const std::string& text, KeyLines& lines) {
  int64_t line = 1;
  const auto note_key = [&](int depth, json::parse_event_t event, const json& parsed) {
    if (depth == 1 && event == json::parse_event_t::key) lines[parsed.get<std::string>()] = line;
    return true;
  };
  return json::parse(CountingIterator(text.data(), line),
                     CountingIterator(text.data() + text.size(), line), note_key);
}

void check_keys(const json& file, bool is_own, const KeyLines& lines) {
  const ModelConfig config;
  std::vector<std::string> own_names;
  visit_fields(config, [&](const char* name, const auto&) { own_names.emplace_back(name); });
  for (const auto& [key, value] : file.items()) {
    const bool known = std::ranges::find(own_names, key) != own_names.end();
    if (is_own) {
      if (known || kForeignKeys.contains(key)) continue;
      const std::string nearest = nearest_name(key, own_names);
      PLX_FAIL("line ", lines.at(key), ": unknown key \"", key, "\"",
               nearest.empty() ? std::string() : "; the nearest is \"" + nearest + "\"");
    } else {
      PLX_CHECK(!is_own_field(key), "line ", lines.at(key), ": key \"", key,
                "\" belongs to model_type ", kOwnType);
    }
  }
}

/// Refuses what changes the model's function and is not built here.
void check_unsupported(const json& file, const ModelConfig& config) {
  const auto act = get_or<std::string>(file, "hidden_act", "silu");
  PLX_CHECK(act == "silu", "hidden_act \"", act, "\" is not supported (only silu)");
  for (const char* key : {"mlp_bias", "r_gate"}) {
    const json& value = get(file, key);
    PLX_CHECK(value.is_null() || value == false, key, " is not built yet, got ", value.dump());
  }
  PLX_CHECK(get_or(file, "attention_dropout", 0.0) == 0.0, "attention_dropout is not supported");
  PLX_CHECK(get(file, "quantization_config").is_null(), "quantised checkpoints are not supported");
  const bool biased_output = config.model_type != "qwen2" && config.model_type != kOwnType;
  PLX_CHECK(!biased_output || !config.attention_bias, "attention_bias of a ", config.model_type,
            " model puts a bias on o_proj too, which is not supported");
}

/// RoPE's base: rope_theta at the top, or inside rope_parameters as transformers 5 writes it.
void read_rope(const json& file, ModelConfig& config) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const json& rope = get(file, key);
    if (rope.is_null()) continue;
    PLX_CHECK(rope.is_object(), key, " must be an object, got ", rope.dump());
    for (const auto& [name, value] : rope.items())
      PLX_CHECK(!value.is_object(), key, ": different RoPE per layer (\"", name,
                "\") is not supported");
    const auto type = get_or(rope, "rope_type", get_or<std::string>(rope, "type", "default"));
    PLX_CHECK(type == "default", key, ": RoPE type \"", type,
              "\" is not supported (only \"default\")");
    PLX_CHECK(get_or(rope, "partial_rotary_factor", 1.0) == 1.0, key,
              ": partial_rotary_factor is not supported");
    config.rope_theta = get_or(rope, "rope_theta", config.rope_theta);
  }
}

/// Qwen's files say in three keys which layers slide, and Llama has no such thing; here all layers
/// do or none.
void read_sliding_window(const json& file, ModelConfig& config) {
  const bool is_own = config.model_type == kOwnType;
  if (config.model_type == "llama" || !get_or(file, "use_sliding_window", is_own)) {
    config.sliding_window.reset();
    return;
  }
  int64_t num_sliding = 0;
  if (const json& types = get(file, "layer_types"); !types.is_null()) {
    std::vector<std::string> names;
    read_value("layer_types", types, names);
    for (const std::string& name : names) {
      PLX_CHECK(name == "full_attention" || name == "sliding_attention", "layer_types: \"", name,
                "\" is not supported");
      num_sliding += name == "sliding_attention";
    }
  } else {
    const auto first = get_or<int64_t>(file, "max_window_layers", is_own ? 0 : 28);
    num_sliding = std::max<int64_t>(config.num_hidden_layers - first, 0);
  }
  if (num_sliding == 0) config.sliding_window.reset();
  PLX_CHECK(num_sliding == 0 || num_sliding == config.num_hidden_layers, "sliding_window on ",
            num_sliding, " of ", config.num_hidden_layers,
            " layers is not supported (all layers or none)");
}

ModelConfig family_defaults(const Family& family) {
  ModelConfig config;
  config.model_type = family.model_type;
  config.architectures = {std::string(family.architecture)};
  config.rope_theta = 1e4;
  config.tie_word_embeddings = false;
  config.mixers = {"softmax"};
  config.qk_norm = family.qk_norm;
  config.attention_bias = family.attention_bias;
  return config;
}

/// Fields whose null or absence has a meaning of its own.
void read_derived_sizes(const json& file, const Family* family, ModelConfig& config) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"})
    PLX_CHECK(file.contains(key), key, " is missing");
  if (get(file, "num_key_value_heads").is_null())
    config.num_key_value_heads = config.num_attention_heads;
  const bool divide = family != nullptr && family->head_dim == 0;
  if (get(file, "head_dim").is_null() && divide && config.num_attention_heads > 0)
    config.head_dim = config.hidden_size / config.num_attention_heads;
}

ModelConfig parse_config(const json& file, const KeyLines& lines) {
  PLX_CHECK(file.is_object(), "not a JSON object");
  const auto model_type = get_or<std::string>(file, "model_type", std::string(kOwnType));
  const Family* family = find_family(model_type);
  PLX_CHECK(family != nullptr || model_type == kOwnType, "model_type \"", model_type,
            "\" is not supported (", kOwnType, ", qwen3, qwen2, llama)");
  check_keys(file, family == nullptr, lines);
  ModelConfig config = family != nullptr ? family_defaults(*family) : ModelConfig();
  visit_fields(config, [&](const std::string& name, auto& field) {
    const auto found = file.find(name);
    if (found == file.end()) return;
    constexpr bool is_optional =
        std::is_same_v<std::decay_t<decltype(field)>, std::optional<int64_t>>;
    if (name == "bos_token_id" && found->is_array() && !found->empty())
      read_value(name, found->front(), field);  // a text can begin with one only
    else if (is_optional || !found->is_null())  // null means absent
      read_value(name, *found, field);
  });
  read_derived_sizes(file, family, config);
  read_rope(file, config);
  read_sliding_window(file, config);
  check_unsupported(file, config);
  config.validate();
  return config;
}

}  // namespace

const std::string& ModelConfig::mixer_of(int64_t layer_idx) const {
  return mixers.size() == 1 ? mixers.front() : mixers.at(static_cast<size_t>(layer_idx));
}

void ModelConfig::validate() const {
  const auto check_positive = [](const char* name, auto value) {
    PLX_CHECK(value > 0, name, " must be positive, got ", value);
  };
  check_positive("vocab_size", vocab_size);
  check_positive("hidden_size", hidden_size);
  check_positive("intermediate_size", intermediate_size);
  check_positive("num_hidden_layers", num_hidden_layers);
  check_positive("num_attention_heads", num_attention_heads);
  check_positive("num_key_value_heads", num_key_value_heads);
  check_positive("max_position_embeddings", max_position_embeddings);
  check_positive("rms_norm_eps", rms_norm_eps);
  check_positive("rope_theta", rope_theta);
  PLX_CHECK(initializer_range >= 0, "initializer_range must not be negative, got ",
            initializer_range);
  PLX_CHECK(num_attention_heads % num_key_value_heads == 0, "num_attention_heads ",
            num_attention_heads, " must be a multiple of num_key_value_heads ",
            num_key_value_heads);
  PLX_CHECK(head_dim >= 2 && head_dim <= 256 && head_dim % 2 == 0,
            "head_dim must be even (RoPE turns pairs) and from 2 to 256, got ", head_dim);
  PLX_CHECK(!sliding_window || *sliding_window >= 1, "sliding_window must be at least 1, got ",
            sliding_window.value_or(0));
  PLX_CHECK(mixers.size() == 1 || static_cast<int64_t>(mixers.size()) == num_hidden_layers,
            "mixers must name one mixer or one for each of the ", num_hidden_layers,
            " layers, got ", mixers.size());
  for (const std::string& mixer : mixers) check_mixer_name(mixer);
  const auto check_token = [this](const char* name, int64_t id) {
    PLX_CHECK(id >= 0 && id < vocab_size, name, " ", id, " is outside the vocabulary of ",
              vocab_size);
  };
  if (bos_token_id) check_token("bos_token_id", *bos_token_id);
  for (const int64_t id : eos_token_ids) check_token("eos_token_id", id);
  PLX_CHECK(r_norm_init >= 0 && r_norm_init <= 1, "r_norm_init must be from 0 to 1, got ",
            r_norm_init);

  const Family* family = find_family(model_type);
  PLX_CHECK(family != nullptr || model_type == kOwnType, "model_type \"", model_type,
            "\" is not supported (", kOwnType, ", qwen3, qwen2, llama)");
  if (family == nullptr) return;
  const bool is_plain = mixers == std::vector<std::string>{"softmax"};
  PLX_CHECK(is_plain && qk_norm == family->qk_norm && attention_bias == family->attention_bias,
            "model_type ", model_type, " fixes mixers, qk_norm and attention_bias; use ", kOwnType,
            " for other choices");
}

ModelConfig load_config_file(const std::filesystem::path& path) {
  const std::string text = io::read_file(path);
  try {
    KeyLines lines;
    const json file = parse_json(text, lines);
    return parse_config(file, lines);
  } catch (const std::exception& error) {  // JSON syntax, or our own checks
    PLX_FAIL(path.string(), ": ", io::plain_what(error));
  }
}

ModelConfig load_config(const std::filesystem::path& folder) {
  return load_config_file(folder / "config.json");
}

nlohmann::ordered_json one_or_list(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? nlohmann::ordered_json(ids.front()) : nlohmann::ordered_json(ids);
}

std::string to_json(const ModelConfig& config) {
  const bool is_own = find_family(config.model_type) == nullptr;
  nlohmann::ordered_json file;
  visit_fields(config, [&]<typename T>(const char* name, const T& field) {
    if (!is_own && is_own_field(name)) return;
    if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
      file[name] = field ? nlohmann::ordered_json(*field) : nlohmann::ordered_json();
    } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
      file[name] = one_or_list(field);
    } else {
      file[name] = field;
    }
  });
  // What transformers needs beside these to compute the same function.
  file["hidden_act"] = "silu";
  file["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", config.rope_theta}};
  file["use_sliding_window"] = config.sliding_window.has_value();
  if (config.sliding_window) file["max_window_layers"] = 0;
  return file.dump(2) + "\n";
}

void save_config(const ModelConfig& config, const std::filesystem::path& folder) {
  config.validate();
  io::write_file(folder / "config.json", to_json(config));
}

}  // namespace parallax::nn
