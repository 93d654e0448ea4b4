// Diagnostics on stderr, switched on by topic with PLX_LOG.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace parallax::core {

enum class LogTopic { kDispatch };

/// Whether PLX_LOG names the topic. Throws Error if PLX_LOG names a topic that does not exist.
bool log_enabled(LogTopic topic);

/// Prints "parallax [topic]: message" as one line, whether or not the topic is enabled: callers ask
/// log_enabled() first, so that nobody builds messages in vain.
void log_line(LogTopic topic, std::string_view message);

}  // namespace parallax::core
