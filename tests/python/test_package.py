# SPDX-License-Identifier: Apache-2.0
"""The Python package as a whole: version, surface, example, and a build that is missing."""

import re
import shutil
import subprocess
import sys

import parallax
import pytest
from support import REPO_ROOT


def run(*command, cwd=REPO_ROOT):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_version_is_the_library_version():
    header = (REPO_ROOT / "include" / "parallax" / "version.h").read_text()
    assert parallax.__version__ == re.search(r'PLX_VERSION "(.*)"', header)[1]


def test_every_public_name_exists_and_is_documented():
    for name in parallax.__all__:
        assert getattr(parallax, name).__doc__, name


def test_the_example_runs():
    result = run(REPO_ROOT / "examples" / "minimal_attention.py")
    assert result.returncode == 0, result.stderr
    assert "difference" in result.stdout


@pytest.mark.parametrize(
    ("library", "message"),
    [(None, "is not built"), (b"not a library", "does not load into torch")],
    ids=["missing", "broken"],
)
def test_a_library_that_cannot_be_loaded_is_an_import_error_with_advice(tmp_path, library, message):
    package = tmp_path / "parallax"
    shutil.copytree(
        REPO_ROOT / "python" / "parallax", package, ignore=shutil.ignore_patterns("_lib")
    )
    if library is not None:
        (package / "_lib").mkdir()
        (package / "_lib" / "libparallax_torch.so").write_bytes(library)
    result = run("-c", "import parallax", cwd=tmp_path)
    assert result.returncode == 1
    assert "ImportError: parallax:" in result.stderr
    assert message in result.stderr
