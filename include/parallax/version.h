// The library's version.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#define PLX_VERSION "0.1.0"
