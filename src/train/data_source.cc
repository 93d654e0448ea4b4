// What data sources share.
// SPDX-License-Identifier: Apache-2.0
#include "train/data_source.h"

#include <nlohmann/json.hpp>

#include "parallax/error.h"

namespace parallax::train {

int64_t count_in(const nlohmann::json& state, const char* key) {
  const auto found = state.find(key);
  PLX_CHECK(found != state.end() && found->is_number_integer() && found->get<int64_t>() >= 0,
            "data state: \"", key, "\" must be a count, the state is ", state.dump());
  return found->get<int64_t>();
}

}  // namespace parallax::train
