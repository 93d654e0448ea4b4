# SPDX-License-Identifier: Apache-2.0
"""The C++ tokenizers against the `tokenizers` package.

Small tokenizers with the pipelines of Qwen, Llama-3, GPT-2 and SmolLM2 are trained here; then both
readers encode the same bytes and every id must be equal. Only characters that Python's unicodedata
knows are drawn: the engines carry different Unicode versions, and a character that one of them has
no properties for may be cut differently.
"""

import json
import os
import random
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from support import build_path
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def isolated(pattern):
    split = pre.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


# name: (normalizer, pre-tokenizer, ignore_merges)
PIPELINES = {
    "qwen": (normalizers.NFC(), isolated(QWEN), False),
    "llama3": (None, isolated(LLAMA3), True),
    "gpt2": (None, pre.ByteLevel(add_prefix_space=False, use_regex=True), False),
    "gpt2_prefix_space": (None, pre.ByteLevel(add_prefix_space=True, use_regex=True), False),
    "smollm2": (
        None,
        pre.Sequence(
            [
                pre.Digits(individual_digits=True),
                pre.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        ),
        False,
    ),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|end"]
ADDED = [
    AddedToken("<think>", normalized=False),
    AddedToken("caf\u00e9!", normalized=True),
    AddedToken("<mask>", lstrip=True, normalized=False),
    AddedToken("<pad>", rstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
]


def is_known_to_all(char):
    """Assigned in Python's Unicode version (14), with a combining class that `tokenizers` knows.

    Its NFC has the tables of Unicode 9: it does not order the 98 combining marks that came later.
    """
    if unicodedata.category(char) in ("Cn", "Cs", "Co"):
        return False
    nfc = normalizers.NFC().normalize_str
    orders = ("a" + char + "\u0334", "a\u0345" + char)
    return not unicodedata.combining(char) or all(
        nfc(text) == unicodedata.normalize("NFC", text) for text in orders
    )


KNOWN = [char for char in map(chr, range(0x110000)) if is_known_to_all(char)]
MARKS = [c for c in KNOWN if unicodedata.combining(c)]
SPACES = [c for c in KNOWN if c.isspace()] + ["\u180e", "\u200b", "\ufeff"]
NUMBERS = [c for c in KNOWN if unicodedata.category(c).startswith("N")]
FRAGMENTS = [
    *("'s", "'S", "'\u017f", "'t", "'RE", "'ve", "'M", "'ll", "'Ll", "'d", "'x", "\u2019s"),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\n\n\n",
        " \n ",
        "\r",
        " " * 40,
        "\t" * 9,
        "\u00a0",
        "\u3000",
    ),
    *("0", "7", "42", "1234567", "3.14159", "0x1F", "\u0663", "\u00bd", "\u2167", "\u96f6"),
    *("e\u0301", "a\u0323\u0302", "a\u0302\u0323", "\u1e9b\u0323", "\u212b", "\u2126", "\uac01"),
    *("\u1100\u1161\u11a8", "\u0958", "\u0344", "\U0001d15e", "n\u0303", "\u0340", "\u2adc"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea"),
    *("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155"),
    *("\u043f\u0440\u0438\u0432\u0435\u0442", "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e"),
    *("def f(x):\n    return x\n", "{}[]();", "!=", "->", "...", "_", "<", "<|", "|>", "\x00"),
    *("caf\u00e9!", "cafe\u0301!", "<think>", "<mask>", "<pad>", "<both>", *SPECIAL),
    *("word", "The", "internationalisation", "camelCase", "SHOUT", "\u00df", "\ufb01"),
]
BAD_BYTES = [
    *(b"\x80", b"\xff", b"\xc0\xaf", b"\xc3", b"\xe0\x80\x80", b"\xe2\x82", b"\xed\xa0\x80"),
    *(b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xf0\x80", b"\xe2\x28\xa1"),
]


def mixed_bytes(rng, num_pieces):
    """Fragments, random words, random characters and invalid UTF-8, in random order."""
    pieces = []
    for _ in range(num_pieces):
        kind = rng.random()
        if kind < 0.55:
            piece = rng.choice(FRAGMENTS).encode()
        elif kind < 0.75:
            letters = rng.choices("abcdefghijklmnopqrstuvwxyzETAOINSHRDLU", k=rng.randint(1, 9))
            piece = (rng.choice(["", " "]) + "".join(letters)).encode()
        elif kind < 0.85:
            piece = "".join(rng.choices(KNOWN, k=rng.randint(1, 4))).encode()
        elif kind < 0.90:
            piece = ("o" + "".join(rng.choices(MARKS, k=rng.randint(1, 4)))).encode()
        elif kind < 0.94:
            piece = "".join(rng.choices(SPACES, k=rng.randint(1, 5))).encode()
        elif kind < 0.97:
            piece = "".join(rng.choices(NUMBERS, k=rng.randint(1, 6))).encode()
        else:
            piece = rng.choice(BAD_BYTES)
        pieces.append(piece)
    return b"".join(pieces)


def library_sources(num_bytes):
    """The first num_bytes of the standard library's sources, in a fixed order."""
    contents = b""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        contents += path.read_bytes()
        if len(contents) >= num_bytes:
            break
    return contents[:num_bytes]


def run_tool(*arguments):
    """Runs plx_tokenize_tool; the finished process, with its exit status unchecked."""
    command = [build_path("tests/tools/plx_tokenize_tool"), *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


class Encoder:
    """One tokenizer.json, read by both sides."""

    def __init__(self, path, folder):
        self.path, self.folder = path, folder
        self.theirs = Tokenizer.from_file(str(path)) if Path(path).exists() else None

    def tool(self, contents, mode):
        source, target = self.folder / "in", self.folder / "out"
        source.write_bytes(contents)
        finished = run_tool(self.path, source, target, mode)
        assert finished.returncode == 0, finished.stderr
        return target.read_bytes()

    def ids(self, contents, mode="encode"):
        return np.frombuffer(self.tool(contents, mode), dtype=np.int32)

    def decode(self, ids):
        return self.tool(np.asarray(ids, dtype=np.int32).tobytes(), "decode")

    def expected(self, contents, mode="encode"):
        self.theirs.encode_special_tokens = mode == "plain"
        text = contents.decode(errors="replace")
        return np.array(self.theirs.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def assert_equal(self, contents, mode="encode"):
        ids, expected = self.ids(contents, mode), self.expected(contents, mode)
        if np.array_equal(ids, expected):
            return
        length = min(len(ids), len(expected))
        differing = np.nonzero(ids[:length] != expected[:length])[0]
        first = int(differing[0]) if len(differing) else length
        around = slice(max(first - 3, 0), first + 5)
        tokens = [[self.theirs.id_to_token(i) for i in side[around]] for side in (ids, expected)]
        raise AssertionError(f"token {first}: got {tokens[0]}, `tokenizers` has {tokens[1]}")


@pytest.fixture(scope="module", params=PIPELINES)
def encoder(request, tmp_path_factory):
    """A tokenizer trained with one of the pipelines."""
    normalizer, pre_tokenizer, ignore_merges = PIPELINES[request.param]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    rng = random.Random(1)
    corpus = [library_sources(400_000).decode(errors="replace")]
    corpus += [mixed_bytes(rng, 2000).decode(errors="replace") for _ in range(10)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL[1:]])
    tokenizer.add_tokens(ADDED)
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Encoder(folder / "tokenizer.json", folder)


def test_more_than_a_megabyte_of_mixed_text_gives_equal_ids(encoder):
    contents = library_sources(600_000) + mixed_bytes(random.Random(2), 90_000)
    assert len(contents) > 1_000_000
    encoder.assert_equal(contents)


def test_special_tokens_as_plain_text_give_equal_ids(encoder):
    encoder.assert_equal(mixed_bytes(random.Random(3), 5000), mode="plain")


def without_stripping_tokens(path, folder):
    """A copy whose added tokens take no white space with them: such tokens forbid all cuts."""
    description = json.loads(path.read_text())
    kept = [t for t in description["added_tokens"] if not t["lstrip"] and not t["rstrip"]]
    first = min(t["id"] for t in description["added_tokens"] if t["id"] >= 2000)
    for number, token in enumerate(t for t in kept if t["id"] >= first):
        token["id"] = first + number
    description["added_tokens"] = kept
    target = folder / "cuttable.json"
    target.write_text(json.dumps(description))
    return target


@pytest.mark.parametrize("piece_bytes", [64, 1000, 70_000])
def test_pieces_of_a_text_give_the_ids_of_the_whole(encoder, piece_bytes):
    path = without_stripping_tokens(encoder.path, encoder.folder)
    cuttable = Encoder(path, encoder.folder)
    rng = random.Random(f"pieces {piece_bytes}")
    parts = [library_sources(150_000), mixed_bytes(rng, 10_000), "".join(FRAGMENTS).encode() * 20]
    for contents in parts:
        whole = cuttable.ids(contents, "plain")
        finished = run_tool(path, cuttable.folder / "in", cuttable.folder / "out", "pieces",
                            piece_bytes)  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        pieces = np.frombuffer((cuttable.folder / "out").read_bytes(), dtype=np.int32)
        assert np.array_equal(pieces, whole)
        if encoder.folder.name.startswith("gpt2_prefix_space"):
            continue  # a space would be put before each piece, so there is none but the whole
        if piece_bytes < 70_000 or contents is parts[0]:
            assert int(finished.stdout.split()[0]) > len(contents) / piece_bytes / 20


def smollm2_tokenizer():
    """SmolLM2's own tokenizer.json: PLX_TEST_SMOLLM2 names it, or Hugging Face's cache has it."""
    if named := os.environ.get("PLX_TEST_SMOLLM2"):
        path = Path(named)
        return path / "tokenizer.json" if path.is_dir() else path
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = cache.glob("models--HuggingFaceTB--SmolLM2-*/snapshots/*/tokenizer.json")
    return next(iter(sorted(found)), None)


def test_the_tokenizer_of_smollm2_gives_equal_ids(tmp_path):
    path = smollm2_tokenizer()
    if path is None:
        pytest.skip("no SmolLM2 tokenizer.json: PLX_TEST_SMOLLM2 is unset, no model is cached")
    encoder = Encoder(path, tmp_path)
    rng = random.Random(9)
    for contents in (library_sources(600_000), mixed_bytes(rng, 20_000)):
        encoder.assert_equal(contents)
        encoder.assert_equal(contents, mode="plain")


def test_every_known_character_alone_and_with_neighbours_gives_equal_ids(encoder):
    encoder.assert_equal("\n".join(KNOWN).encode())
    encoder.assert_equal("".join(f"a{c}b {c}1{c}\n" for c in KNOWN[:8_000]).encode())


def test_long_runs_give_equal_ids(encoder):
    runs = ["a", " ", "\n", "\r\n", " \n", "7", "\u4f60", "e\u0301", "!", "'s", "\t "]
    encoder.assert_equal("x".join(run * 5000 for run in runs).encode())
    encoder.assert_equal(("a" + "\u0301\u0323" * 3000).encode())


def test_all_short_byte_strings_decode_as_python_does(encoder):
    # Every pair of bytes, and every triple of those that steer the decoder.
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1]
    edges += [0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    triples = [bytes([a, b, c]) for a in edges for b in edges for c in edges]
    encoder.assert_equal(b"|".join(pairs + triples))


def test_the_end_of_a_text_may_cut_a_character(encoder):
    for contents in (b"", b"a", b"ab\xe2", b"ab\xe2\x82", b"\xf0\x9f\x98", b" ", b"\xc3\n"):
        encoder.assert_equal(contents)


def test_decoding_gives_back_the_text(encoder):
    # Added tokens that take white space with them give back less, so they stay out of this text.
    stripping = [token.content for token in ADDED if token.lstrip or token.rstrip]
    fragments = "".join(fragment for fragment in FRAGMENTS if fragment not in stripping)
    text = " " + library_sources(50_000).decode(errors="replace") + fragments
    for content in [*SPECIAL, *(token.content for token in ADDED)]:
        text = text.replace(content, "")
    expected = text if encoder.theirs.normalizer is None else unicodedata.normalize("NFC", text)
    assert encoder.decode(encoder.ids(text.encode())).decode() == expected


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_gives_equal_ids(encoder, seed):
    rng = random.Random(f"fuzz {seed}")
    contents = mixed_bytes(rng, 20_000)
    encoder.assert_equal(contents)
    flipped = bytearray(contents)
    for _ in range(len(flipped) // 50):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    encoder.assert_equal(bytes(flipped))


def test_pairs_as_strings_and_as_lists_are_the_same_merges(encoder):
    description = json.loads(encoder.path.read_text())
    merges = description["model"]["merges"]
    assert isinstance(merges[0], list)
    description["model"]["merges"] = [" ".join(merge) for merge in merges]
    path = encoder.folder / "string_merges.json"
    path.write_text(json.dumps(description))
    contents = mixed_bytes(random.Random(4), 2000)
    assert np.array_equal(Encoder(path, encoder.folder).ids(contents), encoder.ids(contents))


def test_a_vocabulary_that_lacks_bytes_drops_them_as_tokenizers_does(tmp_path):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    Encoder(tmp_path / "tokenizer.json", tmp_path).assert_equal("axbcab \u00e9 bab".encode())


PATTERNS = [
    # Patterns of other byte-level tokenizers, and constructs that the engines disagree on.
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:[sdmt]|ll|ve|re)|\p{N}{1,3}|[^\r\n\p{L}\p{N}]?+\p{L}++|\s++",
    r"\s|\S{,3}x|\d+\D|\v|\x{e9}|\u00df|[\d\s]{2,}?|\P{L}\p{^N}|\p{Han}+|(?<=a)b|(?>c+)d|.\n",
]


@pytest.mark.parametrize("behavior", ["isolated", "removed"])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_split_patterns_cut_as_in_tokenizers(tmp_path, pattern, behavior, invert):
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre.ByteLevel.alphabet()))}
    # Every pair of letters merges, so that each cut between letters shows in the ids.
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\u0120\u010a'"
    merges = [(first, second) for first in letters for second in letters]
    for first, second in merges:
        vocab[first + second] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre.Split(Regex(pattern), behavior=behavior, invert=invert)
    tokenizer.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json", tmp_path)
    encoder.assert_equal(library_sources(30_000) + mixed_bytes(random.Random(5), 10_000))


def test_the_byte_tokenizer_keeps_every_byte(tmp_path):
    encoder = Encoder("bytes", tmp_path)
    contents = (
        mixed_bytes(random.Random(6), 5000) + bytes(range(256)) + random.Random(7).randbytes(4096)
    )
    ids = encoder.ids(contents, mode="plain")
    assert ids.tolist() == list(contents)
    assert encoder.decode(ids) == contents


def test_the_byte_tokenizer_file_means_the_same_to_tokenizers(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(Encoder("bytes", tmp_path).tool(b"", "serialize"))
    encoder = Encoder(tmp_path / "tokenizer.json", tmp_path)
    text = mixed_bytes(random.Random(8), 3000).decode(errors="replace").encode()
    encoder.assert_equal(text)
    assert encoder.ids(b"a<|endoftext|>\xff").tolist() == [97, 256, 255]


def test_the_tool_reports_a_broken_file_in_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    finished = run_tool(tmp_path, tmp_path / "tokenizer.json", tmp_path / "out")
    assert finished.returncode == 1
    assert "is not JSON" in finished.stderr and len(finished.stderr.splitlines()) == 1
