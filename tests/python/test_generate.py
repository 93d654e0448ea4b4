# SPDX-License-Identifier: Apache-2.0
"""plx generate, plx eval and plx info, run as a user runs them, on small random checkpoints.

The softmax checkpoint is written by transformers, which is then the reference for greedy text and
for perplexity. The Parallax checkpoint is the same one with r_proj and r_norm added.
"""

import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import build_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE, EOS, POSITIONS = 257, 256, 256


def plx(*arguments, stdin=None, status=0):
    """Runs plx, checks its exit status, and returns its output as bytes."""
    done = subprocess.run(
        [str(build_path("apps/plx/plx")), *map(str, arguments)],
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the models are tiny
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr.decode()
    done.message = done.stderr.decode()
    return done


def generate(checkpoint, *arguments, **options):
    """The results of plx generate --json, a dict per text."""
    done = plx("generate", checkpoint, *arguments, "--json", **options)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        attention_bias=False,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def softmax(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("softmax")
    model.save_pretrained(folder)
    text = tmp_path_factory.mktemp("text") / "a.txt"
    text.write_text("any")
    plx("prepare", "--output", text.parent / "tokens", text)
    (text.parent / "tokens" / "tokenizer.json").rename(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def parallax(softmax, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallax")
    config = json.loads((softmax / "config.json").read_text())
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim max_position_embeddings rms_norm_eps initializer_range "
        "tie_word_embeddings eos_token_id"
    )
    config = {name: config[name] for name in kept.split()}
    config |= {"model_type": "parallax_qwen3", "architectures": ["ParallaxQwen3ForCausalLM"]}
    config |= {"mixers": ["parallax", "parallax"], "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(softmax / "model.safetensors")
    random = np.random.default_rng(0)
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        shape = tensors[f"{prefix}.q_proj.weight"].shape
        tensors[f"{prefix}.r_proj.weight"] = random.normal(0, 0.2, shape).astype(np.float32)
        tensors[f"{prefix}.r_norm.weight"] = np.full(16, 0.25, dtype=np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(params=["softmax", "parallax"])
def checkpoint(request):
    return request.getfixturevalue(request.param)


PROMPTS = ["def f(x):\n", "a", "The quick brown fox jumps over the lazy dog. " * 3, "caf\u00e9"]


@pytest.mark.parametrize("flags", [(), ("--start-token",)], ids=["", "start_token"])
@pytest.mark.parametrize("prompt", [*PROMPTS, ""])
def test_greedy_equals_transformers(softmax, model, prompt, flags):
    ids = list(prompt.encode())
    if flags or not ids:
        ids = [EOS, *ids]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=EOS
        )
    (result,) = generate(softmax, "--prompt", prompt, "--max-tokens", 30, *flags)
    assert result["tokens"] == expected[0, len(ids) :].tolist()
    assert result["num_prompt_tokens"] == len(ids)


def test_text_is_the_tokens_decoded(checkpoint):
    options = ("--max-tokens", 200, "--temperature", 1.5, "--samples", 4, "--ignore-eos")
    for result in generate(checkpoint, "--prompt", "x", *options):
        data = bytes(token for token in result["tokens"] if token != EOS)
        assert result["text"] == data.decode(errors="replace")
        assert len(result["tokens"]) == 200 and result["finish_reason"] == "max_tokens"


def test_batch_equals_single_prompts(checkpoint):
    flags = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    sampling = ("--temperature", 0.7, "--top-k", 50, "--seed", 5, "--max-tokens", 20)
    for options in (("--max-tokens", 20), sampling):
        batch = generate(checkpoint, *flags, *options)
        assert [result["prompt"] for result in batch] == PROMPTS
        for prompt, result in zip(PROMPTS, batch, strict=True):
            (alone,) = generate(checkpoint, "--prompt", prompt, *options)
            assert (result["tokens"], result["text"]) == (alone["tokens"], alone["text"])


def test_seeds_are_reproducible(checkpoint):
    def tokens(seed, samples=1):
        options = ("--temperature", 1, "--seed", seed, "--samples", samples, "--max-tokens", 20)
        return [result["tokens"] for result in generate(checkpoint, "--prompt", "x", *options)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)
    assert tokens(3, samples=2) == tokens(3) + tokens(4)


def test_streaming_writes_the_text_and_nothing_else(checkpoint):
    # A hot random model gives invalid and cut characters; a stop string tests what is held back.
    for stop in ((), ("--stop", "e", "--stop", "\x11q")):
        for seed in range(2):
            options = ("--prompt", "x", "--max-tokens", 120, "--temperature", 1.3, "--seed", seed)
            options += stop
            (result,) = generate(checkpoint, *options)
            for flag in ("--stream", "--no-stream"):
                done = plx("generate", checkpoint, *options, flag)
                assert done.stdout == result["text"].encode() + b"\n"
                assert "tokens/s" in done.message


def test_streamed_writes_are_whole_characters(checkpoint, tmp_path):
    command = [build_path("apps/plx/plx"), "generate", checkpoint, "--prompt", "x", "--seed", 1]
    command += ["--max-tokens", 100, "--temperature", 1.5, "--ignore-eos"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    while piece := process.stdout.read(1 << 16):
        piece.decode()  # raises if a write ends inside a character
    assert process.wait() == 0


def test_stop_strings_end_the_text(checkpoint):
    options = ("--prompt", "x", "--max-tokens", 100, "--temperature", 1, "--seed", 2)
    (free,) = generate(checkpoint, *options, "--ignore-eos")
    text = free["text"]
    stop = next(text[i : i + 2] for i in range(4, len(text)) if text[i : i + 2].isascii())
    (result,) = generate(checkpoint, *options, "--ignore-eos", "--stop", stop, "--stop", "never!")
    assert result["text"] == text[: text.index(stop)]
    assert result["finish_reason"] == "stop_string"


def test_prompts_come_from_files_and_standard_input(checkpoint, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"from a file\n")
    (from_flag,) = generate(checkpoint, "--prompt", "from a file\n", "--max-tokens", 9)
    (from_file,) = generate(checkpoint, "--prompt-file", path, "--max-tokens", 9)
    (from_stdin,) = generate(checkpoint, "--max-tokens", 9, stdin=b"from a file\n")
    assert from_flag["tokens"] == from_file["tokens"] == from_stdin["tokens"]


def test_the_checkpoint_may_follow_the_options(checkpoint):
    done = plx("generate", "--prompt", "a", "--stop", "b", "--max-tokens", 3, checkpoint)
    assert done.stdout


def test_several_texts_have_headings_and_echo_has_the_prompt(checkpoint):
    done = plx("generate", checkpoint, "--prompt", "AA", "--prompt", "BB", "--echo")
    assert done.stdout.startswith(b"==> 1 <==\nAA")
    assert b"\n==> 2 <==\nBB" in done.stdout
    done = plx("generate", checkpoint, "--prompt", "AA", "--echo", "--max-tokens", 2)
    assert done.stdout.startswith(b"AA")


def test_log_probabilities(softmax, model):
    (result,) = generate(softmax, "--prompt", "abc", "--max-tokens", 8, "--log-probabilities")
    ids = [*b"abc", *result["tokens"]]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [log_probs[i - 1, ids[i]].item() for i in range(3, len(ids))]
    assert result["log_probabilities"] == pytest.approx(expected, abs=1e-4)


def test_bfloat16_runs(checkpoint):
    (result,) = generate(checkpoint, "--prompt", "a", "--dtype", "bfloat16", "--max-tokens", 8)
    assert result["tokens"]


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_configs_list_more_end_tokens(softmax, tmp_path, name):
    (free,) = generate(softmax, "--prompt", "a", "--max-tokens", 20)
    end = free["tokens"][4]
    more = {"eos_token_id": [EOS, end]}
    edited_copy(softmax, tmp_path, **(more if name == "config.json" else {}))
    (tmp_path / "generation_config.json").write_text(json.dumps(more if name[0] == "g" else {}))
    (result,) = generate(tmp_path, "--prompt", "a", "--max-tokens", 20)
    assert result["finish_reason"] == "end_of_text"
    assert result["tokens"] == free["tokens"][: free["tokens"].index(end) + 1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--temperature", "-1"), "--temperature"),
        (("--temperature", "hot"), "--temperature"),
        (("--top-k", "-1"), "--top-k"),
        (("--top-p", "0"), "--top-p"),
        (("--top-p", "1.1"), "--top-p"),
        (("--min-p", "2"), "--min-p"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--samples", "0"), "--samples"),
        (("--seed", "-1"), "--seed"),
        (("--dtype", "int4"), "--dtype"),
        (("--prompt-file", "/nowhere/x"), "--prompt-file"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_bad_options_are_usage_errors(softmax, arguments, word):
    done = plx("generate", softmax, "--prompt", "a", *arguments, status=2)
    assert word in done.message
    assert done.stdout == b""


def edited_copy(source, target, **fields):
    """A checkpoint whose config differs in the given fields; the weights are shared."""
    config = json.loads((source / "config.json").read_text()) | fields
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    return target


def test_run_time_faults_are_one_line_and_status_1(softmax, tmp_path):
    def message(folder, *arguments):
        done = plx("generate", folder, *arguments, status=1)
        assert done.message.startswith("plx: ") and done.message.count("\n") == 1
        assert done.stdout == b""
        return done.message

    assert "no checkpoint folder" in message(tmp_path / "nowhere", "--prompt", "a")
    assert "config.json" in message(tmp_path, "--prompt", "a")
    assert "at most 245 new tokens" in message(softmax, "--prompt", "x" * 11, "--max-tokens", 246)
    assert "max_position_embeddings" in message(softmax, "--prompt", "x" * 256)
    assert "stop string is empty" in message(softmax, "--prompt", "a", "--stop", "")
    assert "--stream" in message(softmax, "--prompt", "a", "--prompt", "b", "--stream")


def test_a_tokenizer_that_does_not_match_is_refused(softmax, tmp_path):
    (tmp_path / "wide").mkdir()
    wide = edited_copy(softmax, tmp_path / "wide", vocab_size=300)
    done = plx("generate", wide, "--prompt", "a", status=1)
    assert "no tokenizer.json" in done.message and "257" in done.message
    (tmp_path / "narrow").mkdir()
    narrow = edited_copy(softmax, tmp_path / "narrow")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([build_path.__doc__ * 4], trainer)
    tokenizer.save(str(narrow / "tokenizer.json"))
    done = plx("generate", narrow, "--prompt", "a", status=1)
    assert "vocab_size is 257" in done.message and "up to 299" in done.message


def test_an_assumed_byte_tokenizer_is_noted(softmax, parallax, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text")
    for command in (("generate", "--prompt", "a", "--max-tokens", 1), ("eval", "--data", text)):
        note = f"plx: note: no tokenizer.json in {parallax}; as the model has 257 ids, they are"
        assert plx(command[0], parallax, *command[1:]).message.count(note) == 1
        assert "note" not in plx(command[0], softmax, *command[1:]).message


def warnings_of(command, *arguments):
    lines = plx(command, *arguments).message.splitlines()
    return [line.split()[2] for line in lines if line.startswith("plx: warning: ")]


def test_options_without_effect_are_warned_of(softmax, tmp_path):
    prompt = (softmax, "--prompt", "a", "--max-tokens", 1)
    filters = ("--top-k", 3, "--top-p", 0.9, "--min-p", 0.1, "--seed", 1)
    names = ["--top-k", "--top-p", "--min-p", "--seed"]
    assert warnings_of("generate", *prompt, *filters) == names
    assert warnings_of("generate", *prompt, *filters, "--temperature", 1) == []
    assert warnings_of("generate", *prompt, "--samples", 2) == ["--samples"]
    assert warnings_of("generate", *prompt, "--samples", 1) == []
    assert warnings_of("generate", *prompt, "--samples", 2, "--temperature", 1) == []
    assert warnings_of("generate", *prompt, "--log-probabilities") == ["--log-probabilities"]
    assert warnings_of("generate", *prompt, "--echo", "--json") == ["--echo"]
    text, lines, shards = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "shards"
    text.write_text("some text")
    lines.write_text('{"field": "some text"}')
    options = ("--field", "field", "--split", "train")
    assert warnings_of("eval", softmax, "--data", text, *options) == ["--split", "--field"]
    assert warnings_of("eval", softmax, "--data", lines, *options) == ["--split"]
    arguments = ("-o", shards, "--validation-fraction", 0, "--seed", 1, "--field", "field")
    assert warnings_of("prepare", *arguments, text) == ["--field", "--seed"]
    assert warnings_of("eval", softmax, "--data", shards, *options) == ["--field"]


def test_an_empty_split_names_the_other(softmax, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    plx("prepare", "-o", tmp_path / "shards", "--validation-fraction", 0, text)
    message = plx("eval", softmax, "--data", tmp_path / "shards", status=1).message
    assert "split validation of" in message and "--split train has 10" in message


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_results_that_are_lost_are_an_error(softmax, tmp_path, command):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    options = {"generate": ["--prompt-file", text, "--max-tokens", 2], "eval": ["--data", text]}
    arguments = [build_path("apps/plx/plx"), command, softmax, *options[command]]
    for more in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*map(str, arguments), *more], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 1
        assert done.stderr.decode().splitlines()[-1].startswith("plx: cannot write to standard out")


def reference_nats(model, document, context):
    """Sum of -log p over disjoint windows; the first token follows EOS, others the one before."""
    ids = [EOS, *document]
    total = 0.0
    for start in range(0, len(document), context):
        window = torch.tensor([ids[start : start + context + 1]])
        with torch.no_grad():
            log_probs = model(window[:, :-1]).logits[0].double().log_softmax(-1)
        total -= log_probs.gather(1, window[0, 1:, None]).sum().item()
    return total


DOCUMENTS = ["To be, or not to be: " * 8, "na\u00efve caf\u00e9 \U0001f600\n", "z"]


@pytest.fixture(params=["folder", "jsonl", "shards"])
def corpus(request, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    if request.param == "jsonl":
        path = folder / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
        return path
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    if request.param == "folder":
        return folder
    shards = tmp_path / "shards"
    plx("prepare", "--output", shards, "--validation-fraction", 0, folder)
    return shards


@pytest.mark.parametrize("context", [64, 256])
def test_eval_equals_transformers(softmax, model, corpus, context):
    options = ("--context", context, "--split", "train", "--json")
    result = json.loads(plx("eval", softmax, "--data", corpus, *options).stdout)
    documents = [text.encode() for text in DOCUMENTS]
    num_bytes = sum(map(len, documents))
    nats = sum(reference_nats(model, document, context) for document in documents)
    assert result["documents"] == 3
    assert result["tokens"] == result["bytes"] == num_bytes
    assert result["loss"] == pytest.approx(nats / num_bytes, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(nats / num_bytes), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(nats / num_bytes / math.log(2), rel=1e-5)


def test_eval_prints_a_table_that_can_be_piped(checkpoint, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(DOCUMENTS[0])
    done = plx("eval", checkpoint, "--data", path)
    for row in ("perplexity", "bits per byte", "tokens/s"):
        assert row in done.stdout.decode()


def test_eval_refuses_bad_input(softmax, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(bytes(range(256)) * 4)
    empty = tmp_path / "empty.txt"
    empty.touch()

    def message(*arguments, status):
        return plx("eval", softmax, *arguments, status=status).message

    assert "--data" in message(status=2)
    assert "--data" in message("--data", tmp_path / "nowhere", status=2)
    assert "--context" in message("--data", text, "--context", 0, status=2)
    assert "max_position_embeddings" in message("--data", text, "--context", 999, status=1)
    assert "stride" in message("--data", text, "--context", 8, "--stride", 9, status=1)
    assert "binary.txt" in message("--data", binary, status=1)
    assert "empty" in message("--data", empty, status=1)


def test_eval_refuses_tokens_of_another_tokenizer(softmax, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text " * 20)
    shards = tmp_path / "shards"
    plx("prepare", "--output", shards, "--validation-fraction", 0, text)
    manifest = json.loads((shards / "manifest.json").read_text())
    changed = json.dumps(manifest).replace(manifest["tokenizer"]["fingerprint"], "0" * 16)
    (shards / "manifest.json").write_text(changed)
    done = plx("eval", softmax, "--data", shards, "--split", "train", status=1)
    assert "tokenizer" in done.message


def test_info_names_machine_backends_and_reasons():
    info = json.loads(plx("info", "--json").stdout)
    assert info["version"] and info["machine"]["cores"] >= 1
    assert info["machine"]["memory_bytes"] > 1 << 20
    names = [backend["name"] for backend in info["backends"]]
    assert "reference" in names
    for backend in info["backends"]:
        operations = {case["operation"] for case in backend["cases"]}
        assert operations == {"forward", "backward", "decode"}
        for case in backend["cases"]:
            assert case["supported"] or case["reason"]
            first, last = case["head_dims"]
            assert 1 <= first <= last <= 256
    assert "PLX_BACKEND" in {variable["name"] for variable in info["environment"]}
    text = plx("info").stdout.decode()
    assert all(f"backend {name}" in text for name in names)


@pytest.mark.parametrize("command", ["generate", "eval", "info"])
def test_help_has_an_example(command):
    text = plx(command, "--help").stdout.decode()
    assert "Example:" in text and f"plx {command}" in text
