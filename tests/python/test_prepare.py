# SPDX-License-Identifier: Apache-2.0
"""`plx prepare` end to end: the bytes on disk against what this file says they should be."""

import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import sysconfig
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from support import REPO_ROOT, build_path

EOS = 256
MASK = (1 << 64) - 1


def plx_prepare(*arguments, cwd=REPO_ROOT, **options):
    command = [str(build_path("apps/plx/plx")), "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, **options)


def prepared(*arguments, **options):
    result = plx_prepare(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result


def refused(*arguments, **options):
    """The one line on stderr of a run that must fail."""
    result = plx_prepare(*arguments, **options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("plx: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def read_split(folder, split, token_bytes=2):
    """The documents of a split as lists of ids, every header, size and checksum checked."""
    info = json.loads((folder / "manifest.json").read_text())["splits"][split]
    parts = [np.zeros(0, dtype=f"<u{token_bytes}")]
    for idx, shard in enumerate(info["shards"]):
        assert shard["file"] == f"{split}-{idx:05}.bin"
        data = (folder / shard["file"]).read_bytes()
        assert data[:24] == struct.pack("<8sIIQ", b"PLXTOKEN", 1, token_bytes, shard["tokens"])
        assert len(data) == 24 + token_bytes * shard["tokens"]
        assert f"{zlib.crc32(data[24:]):08x}" == shard["crc32"]
        parts.append(np.frombuffer(data[24:], dtype=f"<u{token_bytes}"))
    tokens = np.concatenate(parts)
    assert len(tokens) == info["tokens"]
    ends = np.flatnonzero(tokens == EOS)
    assert len(tokens) == 0 or ends[-1] == len(tokens) - 1
    documents = [part[part != EOS].tolist() for part in np.split(tokens, ends)[:-1]]
    assert len(documents) == info["documents"]
    return documents


def read_texts(folder, split):
    return [bytes(document) for document in read_split(folder, split)]


def mix64(value):
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def hash64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return mix64(value)


def expected_split(documents, fraction, seed):
    """The rule of the program for corpora that leave neither side empty."""
    unique = list(dict.fromkeys(document for document in documents if document))
    largest = max(unique, key=len)  # held back to the end, the first of equals
    order = []
    held = None
    for document in unique:
        if held is None:
            held = document
        elif len(document) > len(held):
            order.append(held)
            held = document
        else:
            order.append(document)
    assert held == largest
    sides = {"train": [], "validation": []}
    for document in [*order, held]:
        position = mix64(hash64(document) ^ mix64(seed)) / 2**64
        sides["validation" if position < fraction else "train"].append(document)
    assert sides["train"] and sides["validation"]
    return sides


def make_folder(path, count=60):
    """A folder with subfolders, duplicates, an empty file and a binary file; its documents."""
    rng = np.random.default_rng(0)
    files = {}
    for idx in range(count):
        words = " ".join(f"w{word}" for word in rng.integers(0, 999, rng.integers(1, 60)))
        files[f"{'abc'[idx % 3]}/{idx % 5}/file{idx}.txt"] = f"{idx}: {words}\n".encode()
    files["b/copy.txt"] = files["a/0/file0.txt"]
    files["c/utf8.txt"] = "naïve 漢字 😀\n".encode()
    files["c/latin1.txt"] = "a long enough line with one déjà\n".encode("latin-1")
    files["empty.txt"] = b""
    files["b/image.png"] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    in_order = sorted(files, key=lambda name: os.fsencode(path / name))
    return [files[name] for name in in_order if name != "b/image.png"]


def test_folder_becomes_the_shards_that_the_rule_says(tmp_path):
    documents = make_folder(tmp_path / "in")
    result = prepared(
        "-o", tmp_path / "out", "--validation-fraction", 0.2, "--seed", 7, "--shard-tokens", 500,
        tmp_path / "in",
    )  # fmt: skip
    expected = expected_split(documents, 0.2, 7)
    for split in ("train", "validation"):
        assert read_texts(tmp_path / "out", split) == expected[split]
        info = json.loads((tmp_path / "out/manifest.json").read_text())["splits"][split]
        assert info["text_bytes"] == sum(map(len, expected[split]))
        assert all(shard["tokens"] == 500 for shard in info["shards"][:-1])
        tokens, num_bytes = info["tokens"], info["text_bytes"]
        row = rf"{split} +{info['documents']} +{tokens} +{num_bytes} +{num_bytes / tokens:.3f} "
        assert re.search(row, result.stdout), result.stdout
    assert "left out: 1 duplicates, 1 empty, 1 not text" in result.stdout
    warning = f"plx: warning: left out, not text: {tmp_path}/in/b/image.png\n"
    assert warning in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_threads_and_repeats_change_nothing(tmp_path):
    make_folder(tmp_path / "in")
    for name, threads in (("one", 1), ("four", 4)):
        prepared("-o", tmp_path / name, "--threads", threads, tmp_path / "in")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "four" / file.name).read_bytes()


def test_json_lines_of_a_named_field(tmp_path):
    texts = [f'document {idx} with "quotes" and 漢字 😀\n' for idx in range(50)]
    lines = [json.dumps({"id": idx, "content": text}) for idx, text in enumerate(texts)]
    lines[3] = json.dumps({"content": texts[3]}, ensure_ascii=False)
    (tmp_path / "in.jsonl").write_text("\n\n".join([*lines, lines[7]]), encoding="utf-8")
    prepared("-o", tmp_path / "out", "--field", "content", "--validation-fraction", 0.2,
             tmp_path / "in.jsonl")  # fmt: skip
    expected = expected_split([text.encode() for text in texts], 0.2, 0)
    for split in ("train", "validation"):
        assert read_texts(tmp_path / "out", split) == expected[split]


PEAK_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory_of_prepare(tmp_path, num_lines, *arguments, json_lines=True):
    """Kilobytes that preparing so many lines of 1 kB takes at most, as JSON lines or one text."""
    file = tmp_path / f"{num_lines}.{'jsonl' if json_lines else 'txt'}"
    with open(file, "wb") as lines:
        for idx in range(num_lines):
            text = b"%08d%s" % (idx, b" xyz" * 245)
            lines.write(b'{"text": "%s"}\n' % text if json_lines else text + b"\n")
    command = [
        build_path("apps/plx/plx"),
        "prepare",
        "--threads",
        "1",
        "-o",
        tmp_path / "out",
        *arguments,
        file,
    ]
    run = [sys.executable, "-c", PEAK_MEMORY, *command]
    peak = subprocess.run(run, capture_output=True, check=True, timeout=300).stdout
    splits = json.loads((tmp_path / "out/manifest.json").read_text())["splits"]
    num_documents = num_lines if json_lines else 2  # one text, cut for validation
    assert sum(split["documents"] for split in splits.values()) == num_documents
    return int(peak)


def test_json_lines_are_streamed(tmp_path):
    """20 batches and 80 MB more of text take a fraction of that in memory."""
    more = peak_memory_of_prepare(tmp_path, 100_000) - peak_memory_of_prepare(tmp_path, 20_000)
    assert more < 20_000, f"{more} kB more for 80 MB more of text"


@pytest.mark.parametrize(("tokenizer", "small", "large"), [("bytes", 20, 100), ("bpe", 20, 40)])
def test_a_text_file_is_streamed(tmp_path, tokenizer, small, large):
    """Many megabytes more of one text take less than 20 more of memory: 80, and 20 for BPE."""
    arguments = []
    if tokenizer == "bpe":
        save_small_bpe(tmp_path / "tokenizer.json")
        arguments = ["--tokenizer", tmp_path]
    low, high = (
        peak_memory_of_prepare(tmp_path, count * 1000, *arguments, json_lines=False)
        for count in (small, large)
    )
    assert high - low < 20_000, f"{high - low} kB more for {large - small} MB more of text"


def test_a_large_text_gives_the_tokens_of_the_whole(tmp_path):
    """Several pieces of a BPE tokenizer, against `tokenizers` on the whole file."""
    tokenizer = save_small_bpe(tmp_path / "tokenizer.json")
    line = "the 3 words\u00e9 of  line {}  \u6f22\u5b57 \n\n   and 'll 12345 more\tof it\n"
    text = "".join(line.format(idx) for idx in range(130_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert (tmp_path / "a.txt").stat().st_size > 8 << 20
    prepared("-o", tmp_path / "out", "--tokenizer", tmp_path, "--validation-fraction", 0,
             "--threads", 2, tmp_path / "a.txt")  # fmt: skip
    data = (tmp_path / "out/train-00000.bin").read_bytes()[24:]
    expected = [*tokenizer.encode(text).ids, tokenizer.token_to_id("<|endoftext|>")]
    assert np.array_equal(np.frombuffer(data, dtype="<u2"), expected)


def test_single_file_is_cut_at_a_line_near_its_end(tmp_path):
    text = "".join(f"line {idx:04}\n" for idx in range(1000)).encode()
    (tmp_path / "book.txt").write_bytes(text)
    prepared("-o", tmp_path / "out", "--validation-fraction", 0.1, tmp_path / "book.txt")
    assert read_texts(tmp_path / "out", "train") == [text[:9000]]
    assert read_texts(tmp_path / "out", "validation") == [text[9000:]]


def test_fraction_zero_holds_nothing_out(tmp_path):
    (tmp_path / "a.txt").write_text("only")
    prepared("-o", tmp_path / "out", "--validation-fraction", 0, tmp_path / "a.txt")
    assert read_texts(tmp_path / "out", "train") == [b"only"]
    assert read_texts(tmp_path / "out", "validation") == []


def save_small_bpe(path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the words of a line, and more of it"] * 5, trainer)
    tokenizer.save(str(path))
    return tokenizer


def test_trained_tokenizer_is_used_and_copied(tmp_path):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    documents = make_folder(tmp_path / "in")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text.decode(errors="replace") for text in documents], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prepared("-o", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer.json",
             "--validation-fraction", 0, tmp_path / "in/c/utf8.txt")  # fmt: skip
    eos = tokenizer.token_to_id("<|endoftext|>")
    data = (tmp_path / "out/train-00000.bin").read_bytes()[24:]
    expected = tokenizer.encode("naïve 漢字 😀\n").ids + [eos]
    assert np.frombuffer(data, dtype="<u2").tolist() == expected
    copied = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert copied["model"] == json.loads((tmp_path / "tokenizer.json").read_text())["model"]


def test_another_end_token_is_named(tmp_path):
    """A tokenizer with [EOS]: refused with what is looked for, taken when it is named."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        show_progress=False,
        special_tokens=["[EOS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["no merges"], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("some text")
    arguments = ("-o", tmp_path / "out", "--tokenizer", tmp_path, "--validation-fraction", 0)
    message = refused(*arguments, tmp_path / "a.txt")
    assert "none of <|endoftext|>, <|end_of_text|>, </s>, <eos>" in message
    assert "--end-token" in message
    assert "no special token [END]" in refused(
        *arguments, "--end-token", "[END]", tmp_path / "a.txt"
    )
    prepared(*arguments, "--end-token", "[EOS]", tmp_path / "a.txt")
    eos = tokenizer.token_to_id("[EOS]")
    data = (tmp_path / "out/train-00000.bin").read_bytes()
    assert f'"eos_id": {eos}' in (tmp_path / "out/manifest.json").read_text()
    assert np.frombuffer(data[24:], dtype="<u2")[-1] == eos


def test_python_sources_from_any_folder(tmp_path):
    result = prepared("-o", "py", "--python-sources", cwd=tmp_path)
    train, validation = (read_texts(tmp_path / "py", split) for split in ("train", "validation"))
    assert train and validation and not set(train) & set(validation)
    assert len(set(train)) == len(train)
    argparse = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()
    assert argparse in train or argparse in validation
    assert sum(map(len, train)) > 2_000_000, result.stdout


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.txt", b"", "corpus is empty"),
        ("a.txt", b"abc\0def", "a.txt: not a text file"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'a.jsonl:1: no field "text"'),
        ("a.txt", b"x", "too small to hold out validation"),
    ],
)
def test_bad_corpora_are_refused_and_nothing_is_written(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    assert message in refused("-o", tmp_path / "out", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_inputs_and_outputs_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    assert "no input" in refused("-o", tmp_path / "out")
    assert "none: No such file" in refused("-o", tmp_path / "out", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "empty: no files" in refused("-o", tmp_path / "out", tmp_path / "empty")
    assert "must not lie in the input" in refused("-o", tmp_path / "out", tmp_path)
    assert "a.txt/out: Not a directory" in refused("-o", tmp_path / "a.txt/out", tmp_path / "a.txt")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("kept")
    assert "would be replaced" in refused("-o", tmp_path / "home", tmp_path / "a.txt")
    assert (tmp_path / "home/precious").read_text() == "kept"
    assert plx_prepare(tmp_path / "a.txt").returncode == 2  # no --output


def test_a_folder_of_tokens_with_files_of_others_is_refused_and_kept(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    out = tmp_path / "out"
    prepared("-o", out, "--shard-tokens", 100, tmp_path / "a.txt")
    prepared("-o", out, tmp_path / "a.txt")  # fewer shards than before: all the old ones were ours
    (out / "run").mkdir()
    (out / "run/model").write_text("kept")
    message = refused("-o", out, tmp_path / "a.txt")
    assert "holds run beside prepared tokens" in message and "name a new folder" in message
    assert (out / "run/model").read_text() == "kept"


def test_an_output_that_is_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/tokens").mkdir()
    link = tmp_path / "tokens"
    link.symlink_to(tmp_path / "disk/tokens")
    for _ in range(2):
        prepared("-o", link, tmp_path / "a.txt")
        assert link.is_symlink()
        assert (tmp_path / "disk/tokens/manifest.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["tokens"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100_000)

    def fill_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    message = refused("-o", tmp_path / "out", tmp_path / "a.txt", preexec_fn=fill_disk)
    assert "train-00000.bin: File too large" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_kill_leaves_no_folder_that_looks_complete_and_the_next_run_cleans_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # keeps the run waiting for its second input
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    command = [build_path("apps/plx/plx"), "prepare", "-o", tmp_path / "out",
               tmp_path / "a.txt", tmp_path / "pipe"]  # fmt: skip
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".out.staging-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".out.staging-*"))
    assert not (tmp_path / "out").exists()
    prepared("-o", tmp_path / "out", tmp_path / "a.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "a.txt", "out"}


def test_help_explains_itself():
    result = plx_prepare("--help")
    assert result.returncode == 0
    for word in ("--output", "--python-sources", ".jsonl", "Examples:"):
        assert word in result.stdout
