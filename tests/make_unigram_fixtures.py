#!/usr/bin/env python3
"""Writes tests/data/gguf/unigram-*.gguf and unigram.json: unigram tokenizers in GGUF files ("t5"), and what llama.cpp and SentencePiece make of texts.

    python3 -m venv venv
    venv/bin/pip install gguf==0.19.0 sentencepiece==0.2.3 tokenizers==0.20.3 protobuf
    venv/bin/python tests/make_unigram_fixtures.py --reference REFERENCE

REFERENCE as in make_gguf_fixtures.py. One model is trained on text made here, with pieces of the user's, a control token and a small table of
normalizations; what stands in the files is its pieces, padded, with either value of add_space_prefix and remove_extra_whitespaces:

    t5       both, the table, eos behind a text        keep     a space in front; none are removed
    plain    neither, no table                         bare     no space in front; spaces are removed
    bytes    as keep, without the table; a second model, with byte pieces, bos before a text

unigram.json: {"texts": [text, ...], "ids": {name: [ids or null, ...]}, "decoded": {name: [text or null, ...]}, "json": a tokenizer.json of "bytes",
"json_ids": what `tokenizers` makes of that}.

Wanted are SentencePiece's ids for a text without added tokens, and llama.cpp's for others, which SentencePiece doesn't know in texts. llama.cpp differs
from SentencePiece in some points, and texts with added tokens in which it would are left out (null): it takes no notice of byte pieces, puts a space in
front of a text from which spaces are removed whatever add_space_prefix says, and none in front of what is only spaces; it doesn't normalize what begins
like a piece of the user's (no such texts here), and leaves a U+2581 of a text's own alone at its end, where SentencePiece removes it with the spaces
(here llama.cpp's ids are wanted). "decoded" is what SentencePiece decodes texts without added tokens to, where no piece is unknown.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import tempfile

import gguf
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

OUT = pathlib.Path(__file__).parent / "data" / "gguf"
META = "\u2581"
USER = ["<b>", META + META, "|||", "loomwork"]
CONTROL = ["<start>"]
RULES = {
    "FF21": "41",
    "FF41": "61",
    "FB01": "66 69",
    "65 301": "E9",
    "3000": "20",
    "9": "20",
    "A": "20",
    "AD": "",
    "200B": "",
    "1F600": "3A 29",
    "41 30A": "C5",
    "3042": "30A2",
    "AC00": "1100 1161",
    "BD": "31 2044 32",
    "2160": "49",
    "B2": "32",
    "A0": "20",
    "65 301 302": "EA",
    "74 3000": "2E",
}
PAD = 3


def training_text():
    rng = random.Random(3)
    words = [
        "loom",
        "weaves",
        "threads",
        "of",
        "yarn",
        "the",
        "a",
        "warp",
        "weft",
        "shuttle",
        "and",
        "cloth",
        "pattern",
        "colour",
        "spinning",
        "wheel",
        "is",
        "was",
        "under",
        "over",
        "between",
        "through",
        "bobbin",
        "heddle",
        "treadle",
        "reed",
        "beam",
        "1",
        "12",
        "3.5",
        "in",
        "it",
        "caf\u00e9",
        "na\u00efve",
        "don't",
        "I'll",
    ]
    parts = [
        "lo",
        "om",
        "we",
        "av",
        "es",
        "thr",
        "ead",
        "s",
        "ing",
        "ed",
        "pat",
        "tern",
        "er",
        "col",
        "our",
        "wh",
        "eel",
        "un",
        "der",
        "be",
        "tw",
        "een",
        "st",
        "a",
        "re",
    ]
    words += ["".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) for _ in range(150)]
    return [" ".join(rng.choice(words) for _ in range(rng.randint(3, 12))) + rng.choice([".", "!", "?", ","]) for _ in range(600)]


def train(folder, fallback):
    (folder / "text").write_text("\n".join(training_text()))
    (folder / "rules.tsv").write_text("".join("%s\t%s\n" % r for r in RULES.items()))
    out = folder / ("bytes" if fallback else "plain")
    table = dict(normalization_rule_name="identity") if fallback else dict(normalization_rule_tsv=str(folder / "rules.tsv"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(out),
        vocab_size=460 if fallback else 200,
        model_type="unigram",
        byte_fallback=fallback,
        minloglevel=2,
        user_defined_symbols=USER,
        control_symbols=CONTROL,
        character_coverage=0.995,
        **table
    )
    return pathlib.Path(str(out) + ".model").read_bytes()


def variant(model, prefix, merge, table):
    m = sentencepiece_model_pb2.ModelProto()
    m.ParseFromString(model)
    m.normalizer_spec.add_dummy_prefix = prefix
    m.normalizer_spec.remove_extra_whitespaces = merge
    if not table:
        m.normalizer_spec.precompiled_charsmap = b""
    return m


def write_gguf(path, m, bos, eos):
    pieces = list(m.pieces)
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("t5")
    w.add_tokenizer_pre("default")
    w.add_token_list([p.piece.encode() for p in pieces] + [b"[PAD%d]" % (len(pieces) + i) for i in range(PAD)])
    w.add_token_scores([p.score for p in pieces] + [-10000.0] * PAD)
    w.add_token_types([p.type for p in pieces] + [5] * PAD)
    w.add_add_space_prefix(m.normalizer_spec.add_dummy_prefix)
    w.add_remove_extra_whitespaces(m.normalizer_spec.remove_extra_whitespaces)
    if m.normalizer_spec.precompiled_charsmap:
        w.add_precompiled_charsmap(m.normalizer_spec.precompiled_charsmap)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(bos)
    w.add_add_eos_token(eos)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def texts():
    rng = random.Random(5)
    out = [
        "the loom weaves",
        " leading",
        "trailing ",
        "  two  spaces   three",
        "\ttab\nline\n\n\nend",
        "\u65e5\u672c\u8a9e",
        "caf\u00e9 cafe\u0301 e\u0301\u0302",
        "\U0001f600 x",
        "3.14159 1,000",
        "don't I'll",
        "a",
        "",
        "\n",
        " ",
        "   ",
        "<b>bold</b> <h1>",
        "a <b> b<b>c <b>  d ",
        META + " under " + META * 2 + " " + META * 3,
        "<0x0A>",
        "<start>hi<unk> </s>",
        " <start> the loom",
        "x" * 60,
        "a" * 41,
        "loom" * 30,
        "\x01\x7f",
        "\u200b\ufeffx",
        "\r\n\r\n",
        "[PAD201] [PAD]",
        "\uff21\uff41 \ufb01t A\u030a \u3042\uac00 x\u00ad\u200by \u00bd\u2160\u00b2 \tz\n ",
        "t\u3000\u3000t\u3000",
        "\u3000 \u00a0a\u00a0",
        "loomwork the loomworks",
        "zq zq\u65e5q z",
        "naive na\u00efve",
        "a\u00ad",
        "\u00ad",
        "\u00ad<b>\u00ad",
        "yarn\u00a0\u00a0yarn",
    ]
    alphabet = list("etaoinshrdlu   .,'\n") + ["\u00e9", "\u65e5", "\u0431", "\u2014", "\U0001f642", "e\u0301", "the ", "loom", " we", "\u3000", "\uff41", META]
    while len(out) < 130:
        out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))))
    return out


def llama(reference, model, strings):
    out = subprocess.run([reference, "tokens", model, "1"], input=b"".join(s.encode() + b"\0" for s in strings), capture_output=True, check=True).stdout
    return [[int(i) for i in line.split()] for line in out.decode().split("\n")[:-1]]


ADDED = USER + CONTROL + ["<unk>", "<s>", "</s>"]


def has_added(text):
    return any(p in text for p in ADDED + ["[PAD"])


def only_spaces(text):
    return any(part and not part.strip(" \u00ad") for part in re.split("|".join(map(re.escape, ADDED)), text))


def as_json(m):
    """As transformers converts a Llama model whose SentencePiece is a unigram one."""
    pieces = list(m.pieces)
    t = tokenizers.Tokenizer(tokenizers.models.Unigram([(p.piece, p.score) for p in pieces], 0, byte_fallback=True))
    j = json.loads(t.to_str())
    j["added_tokens"] = [
        dict(id=i, content=p.piece, single_word=False, lstrip=False, rstrip=False, normalized=False, special=p.type != 4)
        for i, p in enumerate(pieces)
        if p.type in (2, 3, 4) and META not in p.piece
    ]
    j["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": META}, {"type": "Replace", "pattern": {"String": " "}, "content": META}],
    }
    j["post_processor"] = {
        "type": "TemplateProcessing",
        "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    j["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": META}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return j


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--reference", required=True)
    a = p.parse_args()
    strings, ids, decoded, bytes_json = texts(), {}, {}, None
    with tempfile.TemporaryDirectory() as d:
        models = [train(pathlib.Path(d), fallback) for fallback in (False, True)]
    for name, fallback, prefix, merge, table, bos, eos in (
        ("t5", 0, 1, 1, 1, 0, 1),
        ("keep", 0, 1, 0, 1, 0, 0),
        ("plain", 0, 0, 0, 0, 0, 0),
        ("bare", 0, 0, 1, 1, 0, 0),
        ("bytes", 1, 1, 0, 0, 1, 0),
    ):
        m = variant(models[fallback], bool(prefix), bool(merge), table)
        path = OUT / ("unigram-%s.gguf" % name)
        write_gguf(path, m, bool(bos), bool(eos))
        sp = sentencepiece.SentencePieceProcessor(model_proto=m.SerializeToString())
        own = [None if has_added(s) or (merge and s.rstrip(" \u3000").endswith(META)) else sp.encode(s, add_bos=bool(bos), add_eos=bool(eos)) for s in strings]
        theirs = llama(a.reference, path, strings)
        odd = [name in ("bare", "bytes") or (name == "keep" and only_spaces(s)) for s in strings]
        ids[name] = [o if o is not None else None if x else t for o, t, x in zip(own, theirs, odd)]
        decoded[name] = [None if i is None or 0 in i else sp.decode(i) for i in own]
        both = [k for k in range(len(strings)) if own[k] is not None]
        print(name, len(both), "texts without added tokens; SentencePiece and llama.cpp differ in", [strings[k] for k in both if own[k] != theirs[k]])
        if name == "bytes":
            bytes_json = as_json(m)
    t = tokenizers.Tokenizer.from_str(json.dumps(bytes_json))
    with open(OUT / "unigram.json", "w") as f:
        json.dump(
            {"texts": strings, "ids": ids, "decoded": decoded, "json": bytes_json, "json_ids": [t.encode(s).ids for s in strings]}, f, separators=(",", ":")
        )
        f.write("\n")


if __name__ == "__main__":
    main()
