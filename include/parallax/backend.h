// What a backend is, and how one is chosen.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "parallax/attention.h"

namespace parallax {

/// Whether a backend can run a call, and if not, why.
struct Support {
  bool ok = true;
  std::string reason;

  static Support yes() { return {}; }
  static Support no(std::string why) { return {false, std::move(why)}; }
  explicit operator bool() const { return ok; }
};

/// One implementation of the public functions. Arguments have passed validation before any of these
/// is called; supports() says whether this backend has the case, and the run functions may assume
/// it.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  /// One line for people: instruction set, device, what it is for.
  virtual std::string description() const = 0;
  /// Whose memory it computes in.
  virtual DeviceType device_type() const { return DeviceType::kCpu; }

  virtual Support supports(const ForwardArgs& args) const = 0;
  virtual Support supports(const BackwardArgs& args) const = 0;
  virtual Support supports(const DecodeArgs& args) const = 0;
  virtual Support supports(const MergeArgs& args) const = 0;

  /// Of execution.workspace, for a supported call.
  virtual int64_t workspace_bytes(const ForwardArgs& /*args*/) const { return 0; }
  virtual int64_t workspace_bytes(const BackwardArgs& /*args*/) const { return 0; }
  virtual int64_t workspace_bytes(const DecodeArgs& /*args*/) const { return 0; }

  virtual void forward(const ForwardArgs& args) const = 0;
  virtual void backward(const BackwardArgs& args) const = 0;
  virtual void decode(const DecodeArgs& args) const = 0;
  virtual void merge(const MergeArgs& args) const = 0;
};

/// Every backend of this build, fastest first.
std::span<const Backend* const> backends();

/// The first backend that supports the call, of those that PLX_BACKEND names: one, or with "cuda"
/// all whose names begin with "cuda_". Throws parallax::Error with every such backend's reason if
/// none does, and with the list of names if there is no such backend. PLX_LOG=dispatch prints the
/// choice.
const Backend& find_backend(const ForwardArgs& args);
const Backend& find_backend(const BackwardArgs& args);
const Backend& find_backend(const DecodeArgs& args);
const Backend& find_backend(const MergeArgs& args);

}  // namespace parallax
