"""The rules of CONTRIBUTING.md that a program can check: layers, lengths, paths, leftovers."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A folder of src/ includes itself and the groups before its own.
LAYERS = [
    {"core"},
    {"reference", "cpu", "cuda"},
    {"backends.cc", "row_backends.h", "row_backends.cc"},
    {"torch"},
    {"io", "text", "nn", "optim", "mad"},
    {"generate", "evaluate", "train"},
]
# Arrows inside one group, each with its reason.
ALLOWED = {
    ("text", "io"): "tokenizers and corpora are files",
    ("nn", "io"): "checkpoints are files",
    ("optim", "io"): "optimizer state is files",
    ("train", "evaluate"): "the trainer evaluates as it goes",
}

# Hard limits in lines, the first that matches; the aims are lower (CONTRIBUTING.md).
FILE_LIMITS = [
    (r"^tests/.*\.(cc|py)$", 700),
    (r"^apps/.*\.cc$", 300),
    (r"\.(h|cuh)$", 300),
    (r"\.(cc|cu|py)$", 600),
    (r"\.cmake$|CMakeLists\.txt$", 110),
]
FUNCTION_LIMIT = 80
# path or path:function -> why it may be longer.
EXCEPTIONS: dict[str, str] = {}
ARGUMENT_LIMIT = 6
# path:function -> why it may have more arguments.
OP_SCHEMA = "its arguments are those of an op's schema"
MANY_ARGUMENTS = {
    "src/torch/ops.cc:forward_kernel": OP_SCHEMA,
    "src/torch/ops.cc:backward_kernel": OP_SCHEMA,
    "src/torch/ops.cc:decode_kernel": OP_SCHEMA,
    "tests/cuda_emulation/runtime.cc:encode": "it stands for the driver's cuTensorMapEncodeTiled",
    "python/parallax/_fake.py:attention_forward": OP_SCHEMA,
    "python/parallax/_fake.py:attention_backward": OP_SCHEMA,
    "python/parallax/_fake.py:decode": OP_SCHEMA,
    "src/cpu/tile/norm_rope.h:norm_backward_row": "inlined; the numbers of one row and its sizes",
    "src/cpu/tile/rows.h:load_rows": "inlined; a struct for four sizes would be its only use",
}


def listed(*patterns):
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in names.splitlines() if (ROOT / name).is_file()]


CPP = listed("*.h", "*.cc", "*.cuh", "*.cu")
PYTHON = listed("*.py")
CMAKE = listed("*.cmake", "*CMakeLists.txt")
DOCS = listed("*.md")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def layer_of(folder):
    return next((i for i, group in enumerate(LAYERS) if folder in group), None)


@pytest.mark.parametrize("name", [n for n in CPP if n.startswith("src/")])
def test_includes_point_to_lower_layers(name):
    folder = name.split("/")[1]
    own = layer_of(folder)
    assert own is not None, f"{name}: {folder} is in no layer; add it to LAYERS"
    for number, line in enumerate(text_of(name).splitlines(), 1):
        match = re.match(r'#include "([a-z_0-9]+)/', line)
        if not match or match[1] in (folder, "parallax"):
            continue
        other = layer_of(match[1])
        assert other is not None, f"{name}:{number}: {line}: not a folder of src/"
        allowed = other < own or (folder, match[1]) in ALLOWED
        assert allowed, f"{name}:{number}: {folder} may not include {match[1]}"


@pytest.mark.parametrize("name", [n for n in CPP if re.match("include/|src/(core|cpu|ref)", n)])
def test_kernel_library_needs_no_torch(name):
    for number, line in enumerate(text_of(name).splitlines(), 1):
        assert not re.match(r"#include <(torch|ATen|c10|cuda)", line), f"{name}:{number}: {line}"


def test_public_headers_include_only_public_headers():
    for name in (n for n in CPP if n.startswith("include/")):
        for number, line in enumerate(text_of(name).splitlines(), 1):
            quoted = re.match(r'#include "(.*)"', line)
            assert not quoted or quoted[1].startswith("parallax/"), f"{name}:{number}: {line}"


def test_getenv_has_one_home():
    product = [n for n in CPP if n.startswith(("src/", "apps/", "include/"))]
    assert [n for n in product if "getenv(" in text_of(n)] == ["src/core/env.cc"]


@pytest.mark.parametrize("name", CPP + PYTHON + CMAKE)
def test_file_length(name):
    limit = next((lines for pattern, lines in FILE_LIMITS if re.search(pattern, name)), None)
    if limit is None or name in EXCEPTIONS:
        return
    length = len(text_of(name).splitlines())
    assert length <= limit, f"{name} has {length} lines, the limit is {limit}"


def cpp_functions(lines):
    """(name, first line, number of lines) of functions at namespace or class level.

    The formatter puts a function's closing brace under the first character of its head. A head is a
    line at column 0 or 2 with an open parenthesis, whose declaration ends in an opening brace.
    """
    others = "namespace|class|struct|enum|union|extern|using|return|for |while |if |switch "
    head = re.compile(rf"^( ? ?)(?!{others})[\w~].*\(")
    for start, line in enumerate(lines):
        match = head.match(line)
        if not match:
            continue
        ends = (i for i in range(start, len(lines)) if lines[i].endswith(("{", ";", "}")))
        opening = next(ends, None)
        if opening is None or not lines[opening].endswith("{"):
            continue
        closings = (match[1] + "}", match[1] + "};")
        end = next((i for i in range(opening + 1, len(lines)) if lines[i] in closings), None)
        if end is not None:
            yield line.split("(")[0].split()[-1], start + 1, end - start + 1


@pytest.mark.parametrize("name", [n for n in CPP if not n.startswith("tests/")])
def test_cpp_function_length(name):
    for function, first, length in cpp_functions(text_of(name).splitlines()):
        if f"{name}:{function}" not in EXCEPTIONS:
            where = f"{name}:{first}: {function}"
            assert length <= FUNCTION_LIMIT, f"{where} has {length} lines of {FUNCTION_LIMIT}"


def num_cpp_arguments(head):
    """Top-level commas between the parentheses of a function's head, text from its name on."""
    depth, count, empty = 0, 1, True
    for character in head[head.index("(") + 1 :]:
        if character in "([{<":
            depth += 1
        elif character in ")]}>":
            if depth == 0:
                break
            depth -= 1
        elif character == "," and depth == 0:
            count += 1
        empty = empty and character.isspace()
    return 0 if empty else count


def cpp_argument_counts(name):
    lines = text_of(name).splitlines()
    for function, first, length in cpp_functions(lines):
        head = "\n".join(lines[first - 1 : first + length])
        yield function, first, num_cpp_arguments(re.sub(r"/\*.*?\*/|//[^\n]*", "", head))


def python_functions(name):
    nodes = ast.walk(ast.parse(text_of(name)))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("name", CPP)
def test_cpp_argument_count(name):
    for function, first, count in cpp_argument_counts(name):
        if f"{name}:{function}" not in MANY_ARGUMENTS:
            where = f"{name}:{first}: {function}"
            assert count <= ARGUMENT_LIMIT, f"{where} has {count} arguments of {ARGUMENT_LIMIT}"


@pytest.mark.parametrize("name", [n for n in PYTHON if not n.startswith("tests/")])
def test_python_argument_count(name):
    # What must be named is Python's options struct. A test's parameters are the columns of a table.
    for node in python_functions(name):
        count = len(node.args.posonlyargs + node.args.args)
        if f"{name}:{node.name}" not in MANY_ARGUMENTS:
            where = f"{name}:{node.lineno}: {node.name}"
            assert count <= ARGUMENT_LIMIT, f"{where} has {count} arguments of {ARGUMENT_LIMIT}"


def test_listed_exceptions_are_needed():
    for where in MANY_ARGUMENTS:
        name, function = where.split(":")
        counts = (
            [n for f, _, n in cpp_argument_counts(name) if f == function]
            if name in CPP
            else [len(node.args.args) for node in python_functions(name) if node.name == function]
        )
        assert counts and max(counts) > ARGUMENT_LIMIT, f"{where} needs no exception"


@pytest.mark.parametrize("name", PYTHON)
def test_python_function_length(name):
    for node in python_functions(name):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        where = f"{name}:{node.lineno}: {node.name}"
        assert length <= FUNCTION_LIMIT, f"{where} has {length} lines of {FUNCTION_LIMIT}"


@pytest.mark.parametrize("name", CPP)
def test_cpp_file_head(name):
    lines = text_of(name).splitlines()
    assert lines and lines[0].startswith("//"), f"{name}: line 1 must say what the file does"
    licence = "// SPDX-License-Identifier: Apache-2.0"
    assert licence in lines[:14], f"{name}: no SPDX line in its head"
    if name.endswith((".h", ".cuh")):
        assert "#pragma once" in lines, f"{name}: no #pragma once"


@pytest.mark.parametrize("name", CPP + PYTHON + CMAKE + DOCS + ["Makefile", *listed("scripts/*")])
def test_leftovers(name):
    leftover = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b(?!\(#\d+\))")
    for number, line in enumerate(text_of(name).splitlines(), 1):
        where = f"{name}:{number}"
        assert not leftover.search(line), f"{where}: a leftover without an issue number"
        if name in CPP + PYTHON:
            assert len(line) <= 100, f"{where}: over 100 columns"
        if name in CPP:
            assert line.isascii(), f"{where}: not ASCII"
            banned = name.endswith((".h", ".cuh")) and re.search(r"\busing namespace\b", line)
            assert not banned, f"{where}: using namespace in a header"


def test_paths_in_docs_exist():
    folders = "src|include|apps|docs|tests|cmake|python|recipes|scripts|examples|bench"
    path = re.compile(rf"`((?:{folders})/[\w./-]*)`")
    found = [(name, match) for name in DOCS for match in path.findall(text_of(name))]
    missing = [f"{name}: {match}" for name, match in found if not (ROOT / match).exists()]
    assert not missing, "docs name paths that do not exist: " + ", ".join(missing)


def test_links_in_docs_exist():
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")
    found = [(name, match) for name in DOCS for match in link.findall(text_of(name))]
    missing = [f"{n}: {m}" for n, m in found if not ((ROOT / n).parent / m).exists()]
    assert not missing, "dead links: " + ", ".join(missing)
