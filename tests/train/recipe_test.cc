// Recipes: what is read, what is refused and in which words.
// SPDX-License-Identifier: Apache-2.0
#include "train/recipe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/atomic_file.h"
#include "nn/decoder.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;

class RecipeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("plx_recipe_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& text) {
    io::write_file(folder_ / name, text);
    return folder_ / name;
  }

  Recipe load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_recipe(write("recipe.toml", text), overrides);
  }

  /// The message that the text is refused with, without the folder.
  std::string refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
      load(text, overrides);
    } catch (const Error& error) {
      std::string message = error.what();
      if (const auto at = message.find(folder_.string() + "/"); at != std::string::npos)
        message.erase(at, folder_.string().size() + 1);
      return message;
    }
    return "(accepted)";
  }

  fs::path folder_;
};

constexpr const char* kRecall = "[data]\nkind = \"in_context_recall\"\n";

TEST_F(RecipeTest, ReadsEverySection) {
  const Recipe recipe = load(R"(
[model]
vocab_size = 16
mixers = ["softmax", "parallax"]
num_hidden_layers = 2
sliding_window = 64
rope_theta = 10000
[data]
kind = "in_context_recall"
context_length = 64
[optimizer]
lr = 1e-3
nesterov = false
[[optimizer.groups]]
pattern = "*.r_proj.weight"
algorithm = "adamw"
lr_multiplier = 0.5
[schedule]
kind = "cosine"
[train]
steps = 7
[evaluation]
num_sequences = 3
[checkpoint]
keep_last = 5
[logging]
every_steps = 9
)");
  EXPECT_EQ(recipe.model.fields.vocab_size, 16);
  EXPECT_EQ(recipe.model.fields.mixers, (std::vector<std::string>{"softmax", "parallax"}));
  EXPECT_EQ(recipe.model.fields.sliding_window, 64);
  EXPECT_EQ(recipe.model.fields.rope_theta, 1e4);
  EXPECT_EQ(recipe.data.context_length, 64);
  EXPECT_EQ(recipe.optimizer.lr, 1e-3);
  EXPECT_FALSE(recipe.optimizer.nesterov);
  ASSERT_EQ(recipe.optimizer.groups.size(), 1U);
  EXPECT_EQ(recipe.optimizer.groups[0].algorithm, optim::Algorithm::kAdamW);
  EXPECT_EQ(recipe.optimizer.groups[0].lr_multiplier, 0.5);
  EXPECT_EQ(recipe.schedule.kind, "cosine");
  EXPECT_EQ(recipe.train.steps, 7);
  EXPECT_EQ(recipe.evaluation.num_sequences, 3);
  EXPECT_EQ(recipe.checkpoint.keep_last, 5);
  EXPECT_EQ(recipe.logging.every_steps, 9);
}

TEST_F(RecipeTest, NamesLineAndNearestKeyOfAnUnknownOne) {
  EXPECT_EQ(refusal("[train]\nsteps = 3\nbatchsize = 4\n"),
            "recipe.toml:3: unknown key 'batchsize' in [train]; the nearest known one is "
            "'batch_size'");
  EXPECT_EQ(refusal("[optimiser]\nlr = 1\n"),
            "recipe.toml:1: unknown key 'optimiser' in the recipe; the nearest known one is "
            "'optimizer'");
  EXPECT_EQ(refusal("[model]\n\n\nhiden_size = 4\n"),
            "recipe.toml:4: unknown key 'hiden_size' in [model]; the nearest known one is "
            "'hidden_size'");
  EXPECT_EQ(refusal("[[optimizer.groups]]\npatern = \"*\"\n"),
            "recipe.toml:2: unknown key 'patern' in [[optimizer.groups]]; the nearest known one is "
            "'pattern'");
}

TEST_F(RecipeTest, AKeyThatIsNearNoneNamesWhatThereIs) {
  EXPECT_EQ(refusal("[logging]\nlr = 1\n"),
            "recipe.toml:2: unknown key 'lr' in [logging]; the known ones are every_steps, run, "
            "peak_tflops; there is "
            "optimizer.lr");
}

TEST_F(RecipeTest, NamesLineAndTypeOfAWrongValue) {
  EXPECT_EQ(refusal("[train]\nsteps = 3.5\n"),
            "recipe.toml:2: train.steps is a whole number, given 3.5");
  EXPECT_EQ(refusal("[train]\nsteps = \"many\"\n"),
            "recipe.toml:2: train.steps is a whole number, given 'many'");
  EXPECT_EQ(refusal("[optimizer]\nnesterov = 1\n"),
            "recipe.toml:2: optimizer.nesterov is true or false, given 1");
  EXPECT_EQ(refusal("[optimizer]\nlr = \"0.1\"\n"),
            "recipe.toml:2: optimizer.lr is a number, given '0.1'");
  EXPECT_EQ(refusal("[optimizer]\nname = 3\n"),
            "recipe.toml:2: optimizer.name is a text in quotes, given 3");
  EXPECT_EQ(refusal("train = 3\n"), "recipe.toml:1: [train] is a section, given 3");
  EXPECT_EQ(refusal("[model]\nmixers = [1]\n"),
            "recipe.toml:2: model.mixers is a text in quotes, given 1");
}

TEST_F(RecipeTest, NamesLineAndRangeOfAValueOutOfIt) {
  EXPECT_EQ(refusal("[train]\nsteps = 0\n"),
            "recipe.toml:2: train.steps is 0, it must be 1 or more");
  EXPECT_EQ(refusal("[schedule]\ndecay_ratio = 1.5\n"),
            "recipe.toml:2: schedule.decay_ratio is 1.5, it must be 1 or less");
  EXPECT_EQ(refusal("[optimizer]\nlr = nan\n"),
            "recipe.toml:2: optimizer.lr is nan, it must be a number");
  EXPECT_EQ(refusal("[optimizer]\n\nname = \"sgd\"\n"),
            "recipe.toml:3: optimizer.name is 'sgd', it must be one of muon, adamw");
}

TEST_F(RecipeTest, RefusesWhatWouldOverflowInsideTheOptimizer) {
  const auto message = [&](const std::string& setting) { return refusal(kRecall, {setting}); };
  EXPECT_NE(message("optimizer.lr=1e38").find("optimizer.lr is 1e+38, it must be 1000 or less"),
            std::string::npos);
  for (const char* setting :
       {"optimizer.eps=0", "optimizer.eps=1e-40", "optimizer.eps=1e300", "optimizer.beta1=1",
        "optimizer.beta2=1", "optimizer.weight_decay=1e38", "optimizer.norm_lr_multiplier=1e38",
        "optimizer.embedding_lr_multiplier=1e38"})
    EXPECT_NE(message(setting).find(", it must be "), std::string::npos) << setting;
  for (const char* key : {"lr_multiplier", "weight_decay"})
    EXPECT_NE(refusal(std::string(kRecall) + "[[optimizer.groups]]\npattern = \"*\"\n" + key +
                      " = 1e38\n")
                  .find("it must be 1000 or less"),
              std::string::npos)
        << key;
}

TEST_F(RecipeTest, RefusesSequencesLongerThanTheModelsPositions) {
  const std::string model = "[model]\nmax_position_embeddings = 64\n";
  EXPECT_NE(refusal(model + kRecall + "context_length = 65\n")
                .find("data.context_length 65 exceeds model.max_position_embeddings 64"),
            std::string::npos);
  EXPECT_EQ(refusal(model + kRecall + "context_length = 64\n"), "(accepted)");
}

TEST_F(RecipeTest, TheListOfSettingsSaysWhatParallaxFieldsMean) {
  std::istringstream text(describe_settings());
  int num_fields = 0;
  for (std::string line; std::getline(text, line);) {
    for (const char* field : {"mixers", "qk_norm", "sliding_window", "r_proj_bias", "r_norm",
                              "r_rope", "r_norm_init"}) {
      if (!line.starts_with("  " + std::string(field) + " = ")) continue;
      EXPECT_EQ(line.find("as in config.json"), std::string::npos) << line;
      ++num_fields;
    }
  }
  EXPECT_EQ(num_fields, 7);
}

TEST_F(RecipeTest, TheTextDemoReadsWhatMakeDemoPrepares) {
  for (const char* name : {"demo_text_softmax.toml", "demo_text_parallax.toml"})
    EXPECT_EQ(load_recipe(fs::path(PLX_RECIPES_DIR) / name).data.path, "runs/demo/corpus");
  const std::string demo = io::read_file(fs::path(PLX_RECIPES_DIR) / "../scripts/demo.py");
  EXPECT_NE(demo.find("default=ROOT / \"runs/demo\""), std::string::npos);
  EXPECT_NE(demo.find("corpus = output / \"corpus\""), std::string::npos);
}

TEST_F(RecipeTest, NamesTheLineOfASyntaxError) {
  EXPECT_EQ(refusal("[train]\nsteps = \n").substr(0, 25), "recipe.toml:2: not TOML: ");
  EXPECT_EQ(refusal("[train]\nsteps = 1\nsteps = 2\n").substr(0, 25), "recipe.toml:3: not TOML: ");
}

TEST_F(RecipeTest, RefusesWhatDoesNotFitTogether) {
  const std::string recall = kRecall;
  EXPECT_NE(refusal(recall + "[train]\nbatch_size = 6\nmicro_batch_size = 4\n").find("multiple"),
            std::string::npos);
  EXPECT_NE(refusal(recall + "[train]\nsteps = 10\n[schedule]\nwarmup_steps = 9\n").find("warm-up"),
            std::string::npos);
  EXPECT_NE(refusal("[train]\nsteps = 5\n").find("data.path is missing"), std::string::npos);
  EXPECT_NE(refusal(recall + "[model]\nnum_key_value_heads = 3\n"), "(accepted)");
  EXPECT_NE(refusal("base = \"recipe.toml\"\n").find("include one another"), std::string::npos);
  EXPECT_THROW(load_recipe(folder_ / "absent.toml"), Error);
}

TEST_F(RecipeTest, BaseIsOverriddenKeyByKeyAndThenBySet) {
  write("base.toml", std::string(kRecall) + "[train]\nsteps = 5\nbatch_size = 6\nseed = 7\n");
  const Recipe recipe =
      load("base = \"base.toml\"\n[train]\nbatch_size = 8\n",
           {"train.seed=9", "optimizer.name=adamw", "model.mixers=[\"softmax\"]"});
  EXPECT_EQ(recipe.train.steps, 5);
  EXPECT_EQ(recipe.train.batch_size, 8);
  EXPECT_EQ(recipe.train.seed, 9);
  EXPECT_EQ(recipe.optimizer.name, "adamw");
  EXPECT_EQ(recipe.model.fields.mixers, std::vector<std::string>{"softmax"});
}

TEST_F(RecipeTest, RefusesBadOverridesAsItDoesFiles) {
  EXPECT_EQ(refusal(kRecall, {"train.step=3"}),
            "--set train.step=3: unknown key 'step' in [train]; the nearest known one is 'steps'");
  EXPECT_NE(refusal(kRecall, {"steps"}).find("section.key=value"), std::string::npos);
  EXPECT_NE(refusal(kRecall, {"steps=3"}).find("section.key=value"), std::string::npos);
}

TEST_F(RecipeTest, WarnsAboutSettingsWithoutEffectOnlyWhereTheyAreStated) {
  EXPECT_TRUE(warnings(load(kRecall)).empty());
  const auto sentences = warnings(load(std::string(kRecall) + R"(path = "x"
[model]
mixers = ["softmax"]
r_norm_init = 0
[optimizer]
name = "adamw"
scaling = "original"
[schedule]
kind = "constant"
decay_ratio = 0.1
min_lr_factor = 0.1
[checkpoint]
every_steps = 5000
)"));
  EXPECT_EQ(sentences, (std::vector<std::string>{
                           "optimizer.scaling has no effect: nothing is trained by Muon",
                           "schedule.decay_ratio has no effect: the schedule is constant",
                           "schedule.min_lr_factor has no effect: the schedule has no decay",
                           "data.path has no effect: the task is generated",
                           "checkpoint.every_steps has no effect: it exceeds train.steps",
                           "model.r_norm_init has no effect: no layer uses the parallax mixer"}));
}

TEST_F(RecipeTest, DifferencesNameWhatMayNotChangeAndPassOverWhatMay) {
  const auto saved = to_json(load(kRecall));
  EXPECT_TRUE(differences(saved, to_json(load(std::string(kRecall) +
                                              "[train]\nsteps = 9\n[logging]\nevery_steps = 2\n")))
                  .empty());
  const auto lines = differences(
      saved, to_json(load(std::string(kRecall) +
                          "seed = 8\n[model]\nmixers = [\"softmax\"]\n[optimizer]\nlr = 0.5\n"
                          "[[optimizer.groups]]\npattern = \"*\"\nweight_decay = 0.0\n")));
  EXPECT_EQ(lines, (std::vector<std::string>{
                       "model.mixers: [\"parallax\"] in the checkpoint, [\"softmax\"] now",
                       "data.seed: 1 in the checkpoint, 8 now",
                       "optimizer.lr: 0.02 in the checkpoint, 0.5 now",
                       "optimizer.groups: [] in the checkpoint, "
                       "[{\"pattern\":\"*\",\"weight_decay\":0.0}] now"}));
}

TEST_F(RecipeTest, TheRecipesOfTheRepositoryLoadWithoutWarnings) {
  int num_recipes = 0;
  for (const auto& entry : fs::directory_iterator(PLX_RECIPES_DIR)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".toml") || name.ends_with("_base.toml")) continue;
    const Recipe recipe = load_recipe(entry.path());
    EXPECT_EQ(warnings(recipe), std::vector<std::string>{}) << entry.path();
    ++num_recipes;
  }
  EXPECT_GE(num_recipes, 10);
}

TEST_F(RecipeTest, TwinsDifferInTheMixerOnly) {
  for (const std::string pair :
       {"demo_recall_@", "demo_text_@", "python_124m_@", "qwen3_0p6b_@_muon"}) {
    const auto twin = [&](const std::string& mixer) {
      auto name = pair;
      name.replace(name.find('@'), 1, mixer);
      auto json = to_json(load_recipe(fs::path(PLX_RECIPES_DIR) / (name + ".toml")));
      EXPECT_EQ(json["model"]["mixers"], nlohmann::json::array({mixer}));
      for (const char* key : {"mixers", "config", "model_type", "architectures", "r_norm_init"})
        json["model"].erase(key);
      return json;
    };
    EXPECT_EQ(twin("softmax"), twin("parallax"));
  }
}

TEST_F(RecipeTest, ParametersOfTheTwinsAreThoseThatTheirFilesState) {
  const auto count = [](const char* name) {
    const Recipe recipe = load_recipe(fs::path(PLX_RECIPES_DIR) / name);
    return nn::num_parameters(
        *nn::Decoder(recipe.model.fields, nn::DecoderOptions{.device = torch::kMeta}));
  };
  EXPECT_EQ(count("python_124m_softmax.toml"), 125'851'392);
  EXPECT_EQ(count("python_124m_parallax.toml"), 125'851'392 + 7'079'424);
  EXPECT_EQ(count("python_124m_parallax_equal.toml"), 125'851'392 + 12 * 128);
}

}  // namespace
}  // namespace parallax::train
