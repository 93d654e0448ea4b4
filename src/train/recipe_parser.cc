// Reading a recipe: TOML documents applied one after the other, each fault with its line.
// SPDX-License-Identifier: Apache-2.0
#include <toml++/toml.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <type_traits>

#include "core/nearest_name.h"
#include "parallax/error.h"
#include "train/recipe.h"
#include "train/recipe_fields.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;

template <typename T>
constexpr bool kIsNumber = std::is_same_v<T, int64_t> || std::is_same_v<T, double>;

/// A file or a --set option.
struct Origin {
  std::string name;
  bool has_lines = true;

  std::string at(const toml::source_region& region) const {
    return has_lines ? name + ":" + std::to_string(region.begin.line) : name;
  }
};

/// Where a setting stands, and what is wrong with it.
class Location {
 public:
  Location(const Origin& origin, std::string setting, const toml::source_region& region)
      : place_(origin.at(region)), setting_(std::move(setting)) {}

  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    PLX_FAIL(place_, ": ", setting_, " ", parts...);
  }

 private:
  std::string place_, setting_;
};

std::string as_toml(const toml::node& node) {
  std::ostringstream text;
  node.visit([&](const auto& value) {
    if constexpr (toml::is_value<decltype(value)>)
      text << value;
    else
      text << (node.is_table() ? "a table" : "an array");
  });
  return text.str();
}

// One convert() per type of field.
void convert(const toml::node& node, bool& field, const Location& at) {
  if (!node.is_boolean()) at.fail("is true or false, given ", as_toml(node));
  field = *node.value<bool>();
}

void convert(const toml::node& node, int64_t& field, const Location& at) {
  if (!node.is_integer()) at.fail("is a whole number, given ", as_toml(node));
  field = *node.value<int64_t>();
}

void convert(const toml::node& node, double& field, const Location& at) {
  if (!node.is_number()) at.fail("is a number, given ", as_toml(node));
  field = *node.value<double>();
}

void convert(const toml::node& node, std::string& field, const Location& at) {
  if (!node.is_string()) at.fail("is a text in quotes, given ", as_toml(node));
  field = *node.value<std::string>();
}

template <typename T>
void convert(const toml::node& node, std::optional<T>& field, const Location& at) {
  convert(node, field.emplace(), at);
}

template <typename T>
void convert(const toml::node& node, std::vector<T>& field, const Location& at) {
  field.clear();
  if (!node.is_array()) {
    convert(node, field.emplace_back(), at);  // one element may stand for itself
    return;
  }
  for (const auto& element : *node.as_array()) convert(element, field.emplace_back(), at);
}

template <typename T>
void check_range(const T& field, const FieldInfo& info, const Location& at) {
  if constexpr (kIsNumber<T>) {
    const auto value = static_cast<double>(field);
    if (value >= info.min && value <= info.max) return;
    std::ostringstream range;
    if (value < info.min) range << info.min << " or more";
    if (value > info.max) range << info.max << " or less";
    at.fail("is ", field, ", it must be ", range.str().empty() ? "a number" : range.str());
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (info.choices.empty() ||
        std::find(info.choices.begin(), info.choices.end(), field) != info.choices.end())
      return;
    std::ostringstream choices;
    for (const auto& choice : info.choices)
      choices << (&choice == &info.choices[0] ? "" : ", ") << choice;
    at.fail("is '", field, "', it must be one of ", choices.str());
  }
}

std::string listed(const std::vector<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

/// "; there is optimizer.lr" for "lr": the settings of any section that have this name.
std::string settings_named(const std::string& key) {
  std::vector<std::string> settings;
  Recipe recipe;
  visit_sections(recipe, [&](const char* section, auto&& pass) {
    pass([&](const char* name, auto&, const FieldInfo&) {
      if (name == key) settings.push_back(std::string(section) + "." + name);
    });
  });
  return settings.empty() ? "" : "; there is " + listed(settings);
}

void check_known(const toml::table& table, const std::vector<std::string>& known,
                 const Origin& origin, const std::string& where) {
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string nearest = nearest_name(name, known);
    PLX_FAIL(origin.at(key.source()), ": unknown key '", name, "' in ", where,
             nearest.empty() ? "; the known ones are " + listed(known)
                             : "; the nearest known one is '" + nearest + "'",
             settings_named(name));
  }
}

optim::GroupRule read_group(const toml::table& table, const Origin& origin) {
  check_known(table, {"pattern", "algorithm", "lr_multiplier", "weight_decay", "row_splits"},
              origin, "[[optimizer.groups]]");
  const auto read = [&](const char* name, auto& field, const FieldInfo& info = {}) {
    const toml::node* node = table.get(name);
    if (node == nullptr) return false;
    const Location at(origin, std::string("optimizer.groups.") + name, node->source());
    convert(*node, field, at);
    check_range(field, info, at);
    return true;
  };
  optim::GroupRule rule;
  if (!read("pattern", rule.pattern))
    PLX_FAIL(origin.at(table.source()), ": a group of [[optimizer.groups]] needs a pattern");
  std::string algorithm;
  if (read("algorithm", algorithm, {.choices = {"muon", "adamw"}}))
    rule.algorithm = optim::parse_algorithm(algorithm);
  double number = 0;
  if (read("lr_multiplier", number, {.min = 0, .max = kLargestFactor})) rule.lr_multiplier = number;
  if (read("weight_decay", number, {.min = 0, .max = kLargestFactor})) rule.weight_decay = number;
  std::vector<int64_t> row_splits;
  if (read("row_splits", row_splits)) rule.row_splits = row_splits;
  return rule;
}

/// Applies documents to a recipe, later ones over earlier ones.
class Reader {
 public:
  Reader(Recipe& recipe, const std::optional<fs::path>& resumed)
      : recipe_(recipe), resumed_(resumed) {}

  void apply_file(const fs::path& path) {
    PLX_CHECK(fs::is_regular_file(path), "there is no recipe ", path.string());
    const Origin origin{path.string()};
    const toml::table document = parse(origin, [&] { return toml::parse_file(path.string()); });
    if (const toml::node* base = document.get("base")) {
      std::string name;
      convert(*base, name, Location(origin, "base", base->source()));
      PLX_CHECK(++depth_ <= kMaxDepth, path.string(), ": base files include one another");
      apply_file(path.parent_path() / name);
    }
    apply(document, origin, path.parent_path());
  }

  void apply_override(const std::string& text) {
    const size_t equals = text.find('='), dot = text.find('.');
    PLX_CHECK(equals != std::string::npos && dot < equals, "--set takes section.key=value, given '",
              text, "'");
    const Origin origin{"--set " + text, /*has_lines=*/false};
    const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
    toml::table document;
    try {
      document = toml::parse(key + " = " + value);
    } catch (const toml::parse_error&) {  // a word without quotes
      document = parse(origin, [&] { return toml::parse(key + " = '" + value + "'"); });
    }
    apply(document, origin, fs::current_path());
  }

 private:
  static constexpr int kMaxDepth = 8;

  template <typename Parse>
  static toml::table parse(const Origin& origin, Parse&& parse_document) {
    try {
      return parse_document();
    } catch (const toml::parse_error& error) {
      PLX_FAIL(origin.at(error.source()), ": not TOML: ", error.description());
    }
  }

  void apply(const toml::table& document, const Origin& origin, const fs::path& folder) {
    std::vector<std::string> sections = {"base"};
    visit_sections(recipe_, [&](const char* name, auto&& pass) {
      sections.emplace_back(name);
      const toml::node* node = document.get(name);
      if (node == nullptr) return;
      const Location at(origin, std::string("[") + name + "]", node->source());
      if (!node->is_table()) at.fail("is a section, given ", as_toml(*node));
      if (sections.back() == "model") load_config(*node->as_table(), origin, folder);
      apply_section(*node->as_table(), origin, name, pass);
    });
    check_known(document, sections, origin, "the recipe");
  }

  /// The fields that a config.json states come before those that the section states itself.
  void load_config(const toml::table& table, const Origin& origin, const fs::path& folder) {
    for (const char* key : {"config", "init_from"}) {
      const toml::node* node = table.get(key);
      if (node == nullptr) continue;
      std::string path;
      convert(*node, path, Location(origin, std::string("model.") + key, node->source()));
      recipe_.model.fields = key == std::string("config")
                                 ? nn::load_config_file(folder / path)
                                 : nn::load_config(resumed_.value_or(path));
    }
  }

  template <typename Pass>
  void apply_section(const toml::table& table, const Origin& origin, const std::string& section,
                     Pass&& pass) {
    std::vector<std::string> known;
    pass([&](const char* name, auto&, const FieldInfo&) { known.emplace_back(name); });
    check_known(table, known, origin, "[" + section + "]");
    pass([&](const char* name, auto& field, const FieldInfo& info) {
      const toml::node* node = table.get(name);
      if (node == nullptr) return;
      const std::string setting = section + "." + name;
      const Location at(origin, setting, node->source());
      if constexpr (std::is_same_v<std::decay_t<decltype(field)>, std::vector<optim::GroupRule>>) {
        if (!node->is_array_of_tables()) at.fail("are tables: [[optimizer.groups]]");
        for (const auto& group : *node->as_array())
          field.push_back(read_group(*group.as_table(), origin));
      } else {
        convert(*node, field, at);
        check_range(field, info, at);
      }
      recipe_.given.insert(setting);
    });
  }

  Recipe& recipe_;
  const std::optional<fs::path>& resumed_;
  int depth_ = 0;
};

void validate(const Recipe& recipe, const std::string& origin) {
  PLX_CHECK(recipe.model.init_from.empty() || recipe.model.config.empty(), origin,
            ": model.config and model.init_from exclude each other");
  if (!recipe.model.init_from.empty()) {
    for (const auto& setting : recipe.given)
      PLX_CHECK(!setting.starts_with("model.") || setting == "model.init_from", origin, ": ",
                setting, " cannot be set beside model.init_from, whose config.json says it");
  }
  PLX_CHECK(recipe.train.batch_size % recipe.micro_batch_size() == 0, origin, ": train.batch_size ",
            recipe.train.batch_size, " is not a multiple of train.micro_batch_size ",
            recipe.micro_batch_size());
  PLX_CHECK(recipe.data.kind != "shards" || !recipe.data.path.empty(), origin,
            ": data.path is missing: the folder that `plx prepare` made");
  PLX_CHECK(recipe.data.context_length <= recipe.model.fields.max_position_embeddings, origin,
            ": data.context_length ", recipe.data.context_length,
            " exceeds model.max_position_embeddings ", recipe.model.fields.max_position_embeddings);
  PLX_CHECK(recipe.train.embedding_init_std == 0 || recipe.model.fields.initializer_range > 0,
            origin, ": train.embedding_init_std needs model.initializer_range above 0");
  try {
    recipe.model.fields.validate();
    optim::Schedule{schedule_options(recipe)};
  } catch (const Error& error) {
    PLX_FAIL(origin, ": ", error.what());
  }
}

}  // namespace

Recipe load_recipe(const fs::path& path, const std::vector<std::string>& overrides,
                   const std::optional<fs::path>& resumed) {
  Recipe recipe;
  Reader reader(recipe, resumed);
  reader.apply_file(path);
  for (const auto& text : overrides) reader.apply_override(text);
  validate(recipe, path.string());
  return recipe;
}

}  // namespace parallax::train
