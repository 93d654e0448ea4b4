# SPDX-License-Identifier: Apache-2.0
"""Learns a byte-level BPE with the package `tokenizers`: the program behind BpeLearner.

plx carries this text and runs it as `python -c TEXT VOCAB_SIZE`. It writes one line of JSON before
it reads, {"untrained": tokenizer.json} or {"error": reason}, and one at its end, {"trained":
tokenizer.json}. It reads texts, each after its length (8 bytes, little-endian); a length of 0 ends
them.
"""

import json
import signal
import struct
import sys

# As Qwen cuts text, so that no token goes across words, digits or line ends. There is no
# normalisation: decoding gives back the text, byte for byte.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_TOKEN = "<|endoftext|>"


def reply(name, value):
    print(json.dumps({name: value}), flush=True)


def read_texts(stream):
    def read(count):
        data = stream.read(count)
        if len(data) < count:
            sys.exit(1)  # plx has ended
        return data

    while size := struct.unpack("<Q", read(8))[0]:
        yield read(size).decode(errors="replace")


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends plx too, which has nothing to say
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
        from tokenizers.trainers import BpeTrainer
    except ImportError as error:
        reply("error", str(error))
        sys.exit(1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    reply("untrained", tokenizer.to_str())
    trainer = BpeTrainer(
        vocab_size=int(sys.argv[1]),
        special_tokens=[AddedToken(END_TOKEN, normalized=False, special=True)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_texts(sys.stdin.buffer), trainer)
    reply("trained", tokenizer.to_str())


main()
