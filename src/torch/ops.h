// What a C++ program refers to so that the op library stays linked.
// SPDX-License-Identifier: Apache-2.0
#pragma once

/// "parallax", the namespace of the ops in Torch's dispatcher. The ops are found by name at run
/// time; a program that takes the namespace from here refers to libparallax_torch.so, which a
/// linker that runs with --as-needed would otherwise drop.
extern "C" const char* const parallax_torch_ops;
