// THE list of token mixers. A new one is a file in this folder and a line here.
// SPDX-License-Identifier: Apache-2.0
#include "nn/mixers/registry.h"

#include <array>
#include <string_view>

#include "nn/mixers/parallax.h"
#include "nn/mixers/softmax.h"
#include "parallax/error.h"

namespace parallax::nn {
namespace {

struct Entry {
  std::string_view name;
  std::shared_ptr<TokenMixer> (*make)(const MixerOptions& options);
};

template <typename Mixer>
std::shared_ptr<TokenMixer> make(const MixerOptions& options) {
  return std::make_shared<Mixer>(options);
}

constexpr std::array kMixers = {
    Entry{"softmax", make<SoftmaxMixer>},
    Entry{"parallax", make<ParallaxMixer>},
};

const Entry& find_entry(const std::string& name) {
  std::string known;
  for (const Entry& entry : kMixers) {
    if (entry.name == name) return entry;
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  PLX_FAIL("unknown token mixer \"", name, "\"; there are: ", known);
}

}  // namespace

std::vector<std::string> mixer_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kMixers) names.emplace_back(entry.name);
  return names;
}

void check_mixer_name(const std::string& name) { find_entry(name); }

std::shared_ptr<TokenMixer> make_mixer(const MixerOptions& options) {
  return find_entry(options.config.mixer_of(options.layer_idx)).make(options);
}

}  // namespace parallax::nn
