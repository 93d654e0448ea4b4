// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"

#include <array>
#include <iostream>
#include <string>

#include "core/env.h"
#include "parallax/error.h"

namespace parallax::core {
namespace {

constexpr std::array<std::string_view, 1> kTopicNames = {"dispatch"};

std::string_view topic_name(LogTopic topic) { return kTopicNames[static_cast<size_t>(topic)]; }

void check_topic(std::string_view given) {
  for (std::string_view known : kTopicNames)
    if (given == known) return;
  std::string allowed;
  for (std::string_view known : kTopicNames) allowed.append(" ").append(known);
  PLX_FAIL(env_name(Env::kLog), " names the topic '", given,
           "', which does not exist; topics:", allowed);
}

}  // namespace

bool log_enabled(LogTopic topic) {
  const std::string setting = env_value(Env::kLog);
  std::string_view rest = setting;
  bool enabled = false;
  while (!rest.empty()) {
    const std::string_view given = rest.substr(0, rest.find(','));
    check_topic(given);
    enabled |= given == topic_name(topic);
    rest.remove_prefix(given.size() < rest.size() ? given.size() + 1 : given.size());
  }
  return enabled;
}

void log_line(LogTopic topic, std::string_view message) {
  std::string line;
  line.append("parallax [").append(topic_name(topic)).append("]: ").append(message).append("\n");
  std::cerr << line << std::flush;
}

}  // namespace parallax::core
