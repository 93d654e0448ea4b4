// SPDX-License-Identifier: Apache-2.0
#include <span>
#include <string>
#include <vector>

#include "parallax/backend.h"
#include "support/attention_case.h"
#include "support/cpu_backends.h"
#include "support/cuda_backends.h"

namespace parallax::testing {

const std::vector<TestedBackend>& tested_backends() {
  static const std::vector<TestedBackend> list = [] {
    std::vector<TestedBackend> result;
    for (const Backend* backend : backends())
      if (backend->device_type() == DeviceType::kCpu)
        result.push_back({std::string(backend->name()), backend});
    for (const Backend* backend : std::span(cpu_backends()).subspan(1))
      result.push_back({backend->description(), backend});
    result.insert(result.end(), cuda_backends().begin(), cuda_backends().end());
    return result;
  }();
  return list;
}

const std::vector<TestedRowOps>& tested_row_ops() {
  static const std::vector<TestedRowOps> list = [] {
    std::vector<TestedRowOps> result = cpu_row_ops();
    result.insert(result.end(), cuda_row_ops().begin(), cuda_row_ops().end());
    return result;
  }();
  return list;
}

}  // namespace parallax::testing
