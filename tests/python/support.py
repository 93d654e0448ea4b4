# SPDX-License-Identifier: Apache-2.0
"""What the Python tests share: where the repository is and where its built programs are."""

import os
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]


def build_path(relative: str) -> Path:
    """A built file, such as "tests/tools/plx_tokenize_tool" or "apps/plx/plx".

    Looked up in build/release, or in PLX_BUILD_DIR when that is set. A file that is missing fails
    the test: what was not built was not tested.
    """
    build_dir = Path(os.environ.get("PLX_BUILD_DIR", REPO_ROOT / "build" / "release"))
    path = build_dir / relative
    if not path.exists():
        raise AssertionError(
            f"{path} is not built. Run `cmake --preset release && ninja -C build/release`, "
            "or point PLX_BUILD_DIR at a build folder."
        )
    return path
