#!/usr/bin/env python3
"""The other side of checks/tokenizer: Hugging Face `tokenizers`, and the text that both sides get.

    text OUT BYTES               distinct lines: Debian's documents and manual pages, then generated words (Zipf and random) up to BYTES
    encode TOKENIZER FILE IDS    load, encode FILE line by line; "seconds bytes ids"; ids as i32 to the file IDS
    train KIND VOCAB OUT FILE    train on FILE's lines; "seconds bytes"
    same A B                     whether two tokenizer.json hold the same vocabulary and merges"""
import array
import glob
import gzip
import json
import os
import random
import sys
import time

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def documents():
    for pattern in ("/usr/share/common-licenses/*", "/usr/share/doc/**/*", "/usr/share/man/**/*", "/usr/share/perl/**/*.p[lmo]*", "/usr/lib/python3*/**/*.py"):
        for path in sorted(glob.glob(pattern, recursive=True)):
            if os.path.isfile(path) and not path.endswith((".pdf", ".png", ".js", ".svg")):
                try:
                    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
                        yield f.read(4 << 20)
                except OSError:
                    pass


def text(out, size):
    seen, done, r = set(), 0, random.Random(5)
    vocabulary = {}
    with open(out, "wb") as f:
        for d in documents():
            if b"\0" in d or d != d.decode(errors="ignore").encode():
                continue
            for line in d.splitlines(keepends=True):
                if done >= size * 4 // 5:
                    break
                if line in seen:
                    continue
                seen.add(line)
                f.write(line)
                done += len(line)
        words = ["".join(r.choice("etaoinshrdlucmfwypvbgkqjxz") for _ in range(r.randint(1, 11))) for _ in range(200000)]
        while done < size:
            line = " ".join(words[min(int(r.paretovariate(0.6)) - 1, 199999)] if r.random() < 0.9 else "%x" % r.getrandbits(40) for _ in range(14)) + "\n"
            if line not in seen:
                f.write(line.encode())
                done += len(line)
    print(done)


def encode(tokenizer, path, out):
    from tokenizers import Tokenizer
    with open(path, "rb") as f:
        data = f.read()
    batch = [x.decode(errors="replace") for x in data.split(b"\n")]
    batch = [x + "\n" for x in batch[:-1]] + [x for x in batch[-1:] if x]
    start, ids = time.time(), array.array("i")
    t = Tokenizer.from_file(tokenizer)
    for k in range(0, len(batch), 1000):
        for e in t.encode_batch(batch[k:k + 1000], add_special_tokens=False):
            ids.extend(e.ids)
    print("%.3f %d %d" % (time.time() - start, len(data), len(ids)))
    with open(out, "wb") as f:
        ids.tofile(f)


def train(kind, vocab, out, path):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE())
    pattern = None if kind == "gpt2" else PATTERN % ("{1,3}" if kind == "llama3" else "")
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if pattern is None else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=int(vocab), special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    start = time.time()
    t.train([path], trainer)
    print("%.3f %d" % (time.time() - start, os.path.getsize(path)))
    t.save(out)


def same(a, b):
    def load(path):
        with open(path) as f:
            m = json.load(f)["model"]
        return m["vocab"], [x.split(" ") if isinstance(x, str) else x for x in m["merges"]]
    (va, ma), (vb, mb) = load(a), load(b)
    first = next((i for i, (x, y) in enumerate(zip(ma, mb)) if x != y), min(len(ma), len(mb)))
    print("same" if va == vb and ma == mb else "different: %d and %d tokens, %d and %d merges, first difference at merge %d"
          % (len(va), len(vb), len(ma), len(mb), first))


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "text":
        text(arguments[0], int(arguments[1]))
    else:
        {"encode": encode, "train": train, "same": same}[command](*arguments)
