# SPDX-License-Identifier: Apache-2.0
"""`plx prepare --train-bpe`: its tokenizer against the package's, and what is refused."""

import json
import os
import subprocess

import numpy as np
import pytest
from support import REPO_ROOT, build_path
from test_prepare import make_folder, plx_prepare, prepared, refused
from test_tokenizer import QWEN, Encoder, isolated, library_sources, mixed_bytes
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers import pre_tokenizers as pre

END = "<|endoftext|>"
# The large file of `sources` is trained on, others are held out.
SPLIT = ("--validation-fraction", 0.3, "--seed", 1)


def trained_by_the_package(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = isolated(QWEN)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=[AddedToken(END, normalized=False, special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Some of the standard library, one file longer than a piece, and Latin-1; with its tokens."""
    folder = tmp_path_factory.mktemp("sources")
    make_folder(folder / "in")
    (folder / "in/large.py").write_bytes(library_sources(1_500_000))
    run = prepared("-o", folder / "out", "--train-bpe", 2000, *SPLIT, folder / "in")
    assert "tokenizer: learning up to 2000 tokens" in run.stderr
    assert "vocabulary 2000" in run.stdout
    return folder


def documents_of(folder, split, tokenizer):
    """The documents of a split as texts; every token of the package's own making."""
    end = tokenizer.token_to_id(END)
    info = json.loads((folder / "manifest.json").read_text())
    assert info["eos_id"] == end and info["vocab_size"] == tokenizer.get_vocab_size()
    (shard,) = info["splits"][split]["shards"]
    tokens = np.frombuffer((folder / shard["file"]).read_bytes()[24:], dtype="<u2")
    parts = np.split(tokens, np.flatnonzero(tokens == end))
    texts = []
    for number, part in enumerate(parts[:-1]):
        ids = part[min(number, 1) :].tolist()  # without the end of the document before
        texts.append(tokenizer.decode(ids, skip_special_tokens=False))
        assert tokenizer.encode(texts[-1]).ids == ids
    return texts


def test_the_tokenizer_is_the_one_that_the_package_learns_from_the_train_split(sources):
    tokenizer = Tokenizer.from_file(str(sources / "out/tokenizer.json"))
    texts = {split: documents_of(sources / "out", split, tokenizer) for split in
             ("train", "validation")}  # fmt: skip
    assert len(texts["train"]) > 20 and len(texts["validation"]) > 5
    originals = {path.read_bytes().decode(errors="replace")
                 for path in (sources / "in").rglob("*.*")}  # fmt: skip
    assert set(texts["train"]) | set(texts["validation"]) <= originals
    expected = trained_by_the_package(texts["train"], 2000)
    assert json.loads(tokenizer.to_str()) == json.loads(expected.to_str())


def test_cpp_encodes_exactly_as_the_package_does(sources, tmp_path):
    import random

    encoder = Encoder(sources / "out/tokenizer.json", tmp_path)
    contents = library_sources(400_000) + mixed_bytes(random.Random(5), 30_000)
    for mode in ("encode", "plain"):
        encoder.assert_equal(contents, mode)
    text = contents.decode(errors="replace")
    assert encoder.decode(encoder.ids(contents, "plain")).decode().replace(END, "") == text.replace(
        END, ""
    )


def test_repeats_and_threads_give_the_same_bytes(sources, tmp_path):
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    prepared("-o", tmp_path / "out", "--train-bpe", 2000, *SPLIT,
             "--threads", 1, sources / "in", env=environment)  # fmt: skip
    for file in (sources / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_the_tokenizer_is_read_again_and_goes_into_checkpoints(sources, tmp_path):
    (tmp_path / "more.txt").write_text("import os\n\n\ndef more(text):\n    return text\n" * 50)
    prepared("-o", tmp_path / "more", "--tokenizer", sources / "out", tmp_path / "more.txt")
    trained = (sources / "out/tokenizer.json").read_bytes()
    assert (tmp_path / "more/tokenizer.json").read_bytes() == trained
    model = "vocab_size=2000 hidden_size=32 intermediate_size=32 num_hidden_layers=1 head_dim=16 "
    model += "num_attention_heads=2 num_key_value_heads=2"
    settings = [f"--set=model.{setting}" for setting in model.split()]
    settings += ["--set=data.context_length=16", "--set=train.batch_size=2", "--steps=1"]
    command = [build_path("apps/plx/plx"), "train", REPO_ROOT / "recipes/demo_text_parallax.toml",
               "--data", tmp_path / "more", "-o", tmp_path / "run", *settings]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "run/latest/tokenizer.json").read_bytes() == trained


def test_a_text_with_few_pairs_gives_fewer_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("abc abc\n" * 10)
    run = prepared("-o", tmp_path / "out", "--train-bpe", 400, tmp_path / "a.txt")
    assert "no more pairs to merge: 260 tokens, not 400" in run.stderr
    assert json.loads((tmp_path / "out/manifest.json").read_text())["vocab_size"] == 260


def test_what_cannot_be_learnt_from_is_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text\n" * 50)
    arguments = ("-o", tmp_path / "out", "--train-bpe")
    for wrong in (256, 0, -1, 2**20 + 1, "many"):
        result = plx_prepare(*arguments, wrong, text)
        assert result.returncode == 2
        assert "from 257 to 1048576 is needed" in result.stderr
    assert "excludes" in plx_prepare(*arguments, 300, "--tokenizer", "bytes", text).stderr
    assert "excludes" in plx_prepare(*arguments, 300, "--end-token", "</s>", text).stderr
    assert "none: No such file" in refused(*arguments, 300, tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    message = refused(*arguments, 300, text, tmp_path / "pipe")
    assert "pipe: neither a file nor a folder" in message and "twice" in message
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "pipe"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("kept")
    assert "would be replaced" in refused(*arguments, 300, text)
    assert (tmp_path / "out/precious").read_text() == "kept"


def with_package(folder, source):
    """The environment in which Python finds this text instead of the package."""
    (folder / "tokenizers").mkdir(parents=True)
    (folder / "tokenizers/__init__.py").write_text(source)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_python_without_the_package_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    environment = with_package(tmp_path / "none", "raise ImportError('no such thing here')")
    message = refused("-o", tmp_path / "out", "--train-bpe", 300, tmp_path / "a.txt",
                      env=environment)  # fmt: skip
    assert "pip install tokenizers" in message and message.count("no such thing here") == 2
    assert not (tmp_path / "out").exists()


def test_a_python_that_ends_early_is_told_and_nothing_is_left(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    # The package itself, but for the training.
    source = f"""
import importlib, sys
sys.path.remove({str(tmp_path / "early")!r})
del sys.modules["tokenizers"]
real = importlib.import_module("tokenizers")
class Trainer:
    def __init__(self, **options):
        sys.exit(5)
import tokenizers.trainers
tokenizers.trainers.BpeTrainer = Trainer
"""
    environment = with_package(tmp_path / "early", source)
    result = plx_prepare("-o", tmp_path / "out", "--train-bpe", 300, tmp_path / "a.txt",
                         env=environment)  # fmt: skip
    assert result.returncode == 1
    assert "ended by itself with status 5" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "early"}


def test_include_and_utf8_only_say_what_they_leave_out(tmp_path):
    make_folder(tmp_path / "in")
    run = prepared("-o", tmp_path / "out", "--include", "*.txt", "--utf8-only", tmp_path / "in")
    assert "left out: 1 duplicates, 1 empty, 0 not text, 1 not UTF-8\n" in run.stdout
    assert f"left out, not UTF-8: {tmp_path}/in/c/latin1.txt\n" in run.stderr
    (tmp_path / "named.txt").write_text("some text\n" * 50)
    run = prepared("-o", tmp_path / "out", "--include", "*.py", tmp_path / "named.txt")
    assert "--include has no effect: no input is a folder" in run.stderr
