# SPDX-License-Identifier: Apache-2.0
"""The CMake presets and the Makefile's use of them."""

import json
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRESETS = {
    preset["name"]: preset
    for preset in json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
}


def resolved(name):
    """(build folder, cache variables) of a preset with what it inherits."""
    preset = PRESETS[name]
    folder, variables = resolved(preset["inherits"]) if "inherits" in preset else (None, {})
    folder = preset.get("binaryDir", folder)
    return folder, variables | preset.get("cacheVariables", {})


def test_presets_of_one_folder_set_the_same_variables():
    # A variable that only one of them sets stays in the folder's cache and reaches the others.
    sharing = defaultdict(list)
    for name in PRESETS:
        folder, variables = resolved(name)
        sharing[folder.replace("${presetName}", name)].append(set(variables))
    assert sum(len(sets) > 1 for sets in sharing.values()) == 1  # release and ci
    for folder, sets in sharing.items():
        assert all(names == sets[0] for names in sets), folder


def test_warnings_are_errors_in_ci_alone():
    for name in ("release", "kernels"):
        assert resolved(name)[1]["PLX_WERROR"] == "OFF"
    assert resolved("ci")[1]["PLX_WERROR"] == "ON"


def test_only_one_folder_builds_what_python_loads():
    # Else whichever was built last would be what the Python tests see.
    folders = set()
    for name in (name for name, preset in PRESETS.items() if not preset.get("hidden")):
        folder, variables = resolved(name)
        if "OFF" not in (variables.get("PLX_TORCH"), variables.get("PLX_PYTHON_PACKAGE")):
            folders.add(folder.replace("${presetName}", name))
    assert folders == {"${sourceDir}/build/release"}


def test_make_ci_builds_the_shared_folder_with_one_preset():
    # Alternating presets would rebuild everything each time.
    makefile = (ROOT / "Makefile").read_text()
    rules = {
        match[1]: (match[2], match[3])
        for match in re.finditer(r"^([\w-]+):([^=\n]*)\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    }
    for target in ("lint", "ci"):
        needs, recipe = rules[target]
        assert not {"build", "test", "test-slow", "demo"} & set(needs.split())
        for call in re.findall(r"\$\(MAKE\) (.*)", recipe):
            assert call in ("sanitize", "cuda") or call.endswith(" PRESET=ci"), call
    for target in ("sanitize", "cuda"):  # folders of their own
        assert "release" not in rules[target][1]
