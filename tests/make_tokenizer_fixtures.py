#!/usr/bin/env python3
"""Writes the tokenizer fixtures: three byte-level BPE vocabularies trained by Hugging Face `tokenizers` (made with 0.20.3), and strings in
20 named classes (and one of invalid UTF-8) with the ids that it gives them.

    make_tokenizer_fixtures.py --out tests/data/tokenizer                       the stored ones
    make_tokenizer_fixtures.py --out DIR --per-class 500 --vocab 32000 --text BIG.txt    those of checks/tokenizer

cases.bin, little-endian: "HDTC", u32 classes, u32 cases; per class: u8 length, name; per case: u8 class, u32 bytes, the bytes, then for each
of gpt2, llama3, qwen2: u32 ids, the ids as u16. Ids include what the post-processor adds (llama3: a first <|begin_of_text|>)."""
import argparse
import json
import os
import random
import struct

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MODERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = {
    "gpt2": ["<|endoftext|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(name, text, vocab):
    t = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        t.pre_tokenizer = split(MODERN % ("{1,3}" if name == "llama3" else ""))
    if name == "qwen2":
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(text, trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIALS[name], show_progress=False,
                                                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if name == "llama3":
        t.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                                         special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])
    if name == "qwen2":
        t.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("lstr", lstrip=True, normalized=True),
                      AddedToken("rstr", rstrip=True, normalized=False), AddedToken("alone", single_word=True, normalized=True),
                      AddedToken("caf\u00e9s", normalized=True), AddedToken("<tool", normalized=False)])
    return t


def chars(*ranges):
    return [chr(c) for a, b in ranges for c in range(a, b + 1)]


ASCII = chars((0x61, 0x7A))
SCRIPTS = {
    "cjk": chars((0x4E00, 0x4E80), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x20000, 0x20010)),
    "cyrillic": chars((0x430, 0x44F), (0x410, 0x42F), (0x451, 0x451)),
    "arabic": chars((0x621, 0x63A), (0x641, 0x652), (0x660, 0x669)),
    "hebrew": chars((0x5D0, 0x5EA), (0x5B0, 0x5BC)),
    "devanagari": chars((0x905, 0x939), (0x93E, 0x94D), (0x966, 0x96F), (0x93C, 0x93C)),
    "jamo": chars((0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2), (0xAC00, 0xAC40)),
}
SPACES = [chr(c) for c in (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x200C), 0x2028, 0x2029, 0x202F, 0x205F,
                           0x2060, 0x3000, 0xFEFF, 0x1C, 0x1D, 0x1E, 0x1F)]
WORDS = ("the of and to in a is that it was for on are as with his they at be this from have or by one had not but what all were when we there "
         "can an your which their said if do will each about how up out them then she many some so these would other into has more her two like "
         "him see time could no make than first been its who now people my made over did down only way find use may water long little very "
         "after words called just where most know learning network gradient weaving thread loom heddle pattern").split()


class Maker:
    """Random strings of each class; every class has strings from one character up."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def word(self, alphabet=ASCII, low=1, high=9):
        return "".join(self.r.choice(alphabet) for _ in range(self.r.randint(low, high)))

    def words(self, n, alphabet=None, sep=" "):
        return sep.join(self.r.choice(WORDS) if alphabet is None else self.word(alphabet) for _ in range(n))

    def n(self, low=1, high=12):
        return self.r.randint(low, high)

    def pick(self, items, low=1, high=20):
        return "".join(self.r.choice(items) for _ in range(self.r.randint(low, high)))

    def ascii_prose(self):
        s = self.words(self.n(2, 20))
        return s.capitalize() + self.r.choice([".", "!", "?", ", and then.", ": so;", ""])

    def contractions(self):
        ends = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'lL", "'x", "''s", "\u2019s", "'\u017f", "'l", "'r", "'v e", "'"]
        return "".join(self.r.choice(["I", "they", "WE", " it", " you", "don", "7", " ", "!"]) + self.r.choice(ends) + self.r.choice(["", " ", "a", "9"])
                       for _ in range(self.n(1, 6)))

    def digits(self):
        extra = ["\u00b2", "\u00bd", "\u2167", "\u0663", "\u0967", "\U0001d7d8", "\u3007"]
        return " ".join(self.r.choice(["", "$", "-", "x"]) + self.pick("0123456789", 1, 11) + self.r.choice(["", ".", ",", "%", "kg", *extra])
                        + self.pick("0123456789", 0, 4) for _ in range(self.n(1, 6)))

    def whitespace_runs(self):
        return "".join(self.r.choice([" " * self.n(1, 9), "\t" * self.n(1, 3), " \t", self.word(), "."]) for _ in range(self.n(1, 9)))

    def newline_mixes(self):
        return "".join(self.r.choice(["\n", "\r\n", "\r", "\n\n\n", " \n", "\n ", "\t\n  ", "!\n", self.word(), " " + self.word(), "7"])
                       for _ in range(self.n(1, 12)))

    def control_characters(self):
        return "".join(self.r.choice([chr(self.r.choice([*range(0, 32), 127, *range(128, 160)])), self.word(), " "]) for _ in range(self.n(1, 12)))

    def exotic_spaces(self):
        return "".join(self.r.choice([self.r.choice(SPACES), self.r.choice(SPACES), self.word(), "5", "-"]) for _ in range(self.n(1, 14)))

    def emoji(self):
        zwj, vs = "\u200d", "\ufe0f"
        some = ["\U0001f600", "\U0001f469" + zwj + "\U0001f4bb", "\U0001f468" + zwj + "\U0001f469" + zwj + "\U0001f467", "\u2764" + vs, "\U0001f44d\U0001f3fd",
                "\U0001f1e9\U0001f1ea", "1" + vs + "\u20e3", "\U0001fae0", "\u263a", "\U0001f3f4\U000e0067\U000e0062\U000e007f"]
        return "".join(self.r.choice([*some, *some, " ", self.word(), "!"]) for _ in range(self.n(1, 10)))

    def code(self):
        return "".join(self.r.choice(["if (", "x[i]", " += ", "->", "{\n    ", "}\n", "return ", "0x1F", "// ", self.word(), "_", "&&", "\tfor ", "\"%s\\n\"",
                                      ");\n", "<T>", "::", "#include <", "lambda x: ", "==", "\n\n        "]) for _ in range(self.n(2, 16)))

    def urls(self):
        return self.r.choice(["https://", "http://www.", "ftp://", "mailto:"]) + self.word() + "." + self.r.choice(["org", "com", "de", "\u0440\u0444"]) + "".join(
            self.r.choice(["/", "?", "&", "=", "%20", "#", "-", "_", "~", "."]) + self.word() + self.pick("0123456789", 0, 3) for _ in range(self.n(0, 7)))

    def accents(self):
        marks = chars((0x300, 0x31B), (0x323, 0x328))
        pieces = ["\u00e9", "e\u0301", "\u1ebf", "a\u0323\u0302", "a\u0302\u0323", "\u00f1", "n\u0303", "\u00c5", "\u212b", "A\u030a", "a\u0898\u0301", "caf\u00e9s", "cafe\u0301s",
                  "\u0344", "\u2126", "\uf900", "\u0f73", "\u1e0b\u0323", "\U0001d15e", "s\u0323\u0307", "\u09c7\u09be", "\U00011935\U00011930", "\u0c3c\u0301"]
        return "".join(self.r.choice([self.r.choice(pieces), self.word(), self.word() + self.r.choice(marks) + self.r.choice(marks), " "])
                       for _ in range(self.n(1, 10)))

    def mixed_scripts(self):
        return "".join(self.word(self.r.choice([ASCII, *SCRIPTS.values()])) + self.r.choice([" ", "", "", "\u00a0", "1", "-"]) for _ in range(self.n(2, 9)))

    def math_symbols(self):
        return "".join(self.r.choice(["\u2211", "\u222b", "\u2202", "\u221e", "\u2264", "\u2248", "\u03b1", "\u2192", "\U0001d465", "\u00b1", "x", "2", "^", " ", "(", ")", "=",
                                      "\u00d7", "\u2070", "\u1d62", "\u24b6", "\u20ac"]) for _ in range(self.n(1, 20)))

    def long_words(self):
        kind = self.n(0, 3)
        if kind == 0:
            return self.r.choice("ax=- .\u4e00") * self.n(30, 400)
        return self.word(self.r.choice([ASCII, list("ab"), SCRIPTS["cjk"]]), 49, 200) if kind == 1 else "".join(self.r.choice(WORDS) for _ in range(self.n(8, 30)))

    def noncharacters(self):
        edge = [0xD7FF, 0xE000, 0xF8FF, 0xFDD0, 0xFDEF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1FFFE, 0x10FFFF, 0xFB00, 0x7FF, 0x800, 0x7F, 0x80]
        return "".join(self.r.choice([chr(self.r.choice(edge)), chr(self.r.choice(edge)), self.word(), " "]) for _ in range(self.n(1, 10)))

    def special_tokens(self):
        some = [x for v in SPECIALS.values() for x in v] + ["<tool_call>", "<tool", "lstr", "rstr", "alone", "caf\u00e9s", "cafe\u0301s", "<|endof", "|>"]
        return "".join(self.r.choice([self.r.choice(some), self.r.choice(some), " ", "  ", "\n", self.word(), "\u00a0", "_", "."]) for _ in range(self.n(1, 9)))

    def any_characters(self):
        def one():
            while True:
                c = self.r.randint(0, self.r.choice([0x7F, 0x7FF, 0xFFFF, 0x1FFFF, 0x10FFFF]))
                if not 0xD800 <= c < 0xE000:
                    return chr(c)
        return "".join(one() for _ in range(self.n(1, 16)))

    def script(self, name):
        return self.words(self.n(1, 8), SCRIPTS[name], self.r.choice([" ", "", ", ", "\u3001"])) + self.r.choice(["", ".", "\u3002", "\u061f", "!"])

    def invalid_utf8(self):
        bad = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\x80", b"\xf5", b"\xe0\x80\x80", b"\xf0\x80\x80\x80",
               b"\xfe", b"\xc3\x28", b"\xe2\x28\xa1", b"\xf0\x9f\x98\x41"]
        return b"".join(self.r.choice([self.r.choice(bad), self.word().encode(), b" ", "\u00e9\u4e00".encode(), bytes([self.r.randint(0, 255)])])
                        for _ in range(self.n(1, 9)))


CLASSES = ["ascii_prose", "contractions", "digits", "whitespace_runs", "newline_mixes", "control_characters", "exotic_spaces", "emoji", "code", "urls", "accents",
           "mixed_scripts", "math_symbols", "long_words", "noncharacters", "special_tokens", "any_characters", "cjk", "cyrillic", "arabic", "hebrew", "devanagari",
           "jamo", "invalid_utf8"]


def make(maker, name):
    return maker.script(name) if name in SCRIPTS else getattr(maker, name)()


def training_text(seed, path):
    """Lines of every class, so that merges of all kinds are learnt; with --text, that file's lines as well."""
    m = Maker(seed)
    lines = [x if isinstance(x, str) else x.decode(errors="replace") for _ in range(60) for x in (make(m, c) for c in CLASSES if c != "special_tokens")]
    lines += [" ".join(m.r.choice(WORDS) for _ in range(12)) + "\n" for _ in range(400)]
    if path:
        with open(path, encoding="utf-8", errors="replace", newline="") as f:
            lines += f.readlines()
    return lines


O200K = "|".join([r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}",
                  r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def variants(text):
    """One small vocabulary under many settings: [name, tokenizer.json as an object, [[text, ids], ...]]."""
    P, byte_level = pre_tokenizers, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = P.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    base.train_from_iterator(text, trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "</s>"], show_progress=False,
                                                       initial_alphabet=P.ByteLevel.alphabet()))
    plain = json.loads(base.to_str())
    out = {}

    def put(name, change):
        j = json.loads(json.dumps(plain))
        change(j)
        out[name] = j

    def pretok(name, p):
        put(name, lambda j: j.update(pre_tokenizer=json.loads(p.__getstate__())))

    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            pretok("split_string_%s_%d" % (behavior, invert), P.Sequence([P.Split("e", behavior, invert=invert), byte_level]))
            pretok("split_regex_%s_%d" % (behavior, invert), P.Sequence([P.Split(Regex(r"\s|\d+"), behavior, invert=invert), byte_level]))
    pretok("empty_matches", P.Sequence([P.Split(Regex(r"x*"), "isolated"), byte_level]))
    pretok("prefix_space", P.ByteLevel(add_prefix_space=True))
    pretok("digits_one", P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)]))
    pretok("digits_run", P.Sequence([P.Digits(individual_digits=False), P.ByteLevel(add_prefix_space=True)]))
    pretok("whitespace", P.Sequence([P.Whitespace(), byte_level]))
    pretok("whitespace_split", P.Sequence([P.WhitespaceSplit(), P.ByteLevel(add_prefix_space=True, use_regex=False)]))
    pretok("o200k", P.Sequence([P.Split(Regex(O200K), "isolated"), byte_level]))
    pretok("words", P.Sequence([P.Split(Regex(r"\w+|\W"), "isolated"), byte_level]))
    pretok("no_split", byte_level)
    put("prepend_replace", lambda j: j.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "he"}, "content": "she "}, {"type": "Prepend", "prepend": "_"}, {"type": "NFC"}]}))
    put("roberta", lambda j: j.update(post_processor={"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True,
                                                      "add_prefix_space": False}))
    put("ignore_merges", lambda j: (j["model"].update(ignore_merges=True), j["model"]["vocab"].update({"\u0120loom": 340, "ee e": 341})))
    for k, (unk, fuse) in enumerate(((None, False), ("<s>", False), ("<s>", True))):
        def remove(j, unk=unk, fuse=fuse):
            vocab, gone = j["model"]["vocab"], ("z", "q", "\u0128")
            j["model"]["vocab"] = {x: i for x, i in vocab.items() if not any(g in x for g in gone)}
            j["model"]["merges"] = [m for m in j["model"]["merges"] if not any(g in "".join(m) for g in gone)]
            j["model"].update(unk_token=unk, fuse_unk=fuse)
        put("unknown_%d" % k, remove)
    put("merge_twice", lambda j: j["model"]["merges"].append(j["model"]["merges"][3]))
    maker, result = Maker(3), []
    for name, j in out.items():
        t = Tokenizer.from_str(json.dumps(j))
        texts = [make(maker, c) for c in CLASSES if c not in ("invalid_utf8", "long_words")] + ["xxaxx eee 12 34", "zzqz q a z\u0006", "the loom ee e"]
        result.append([name, j, [[s, t.encode(s).ids] for s in texts]])
    return result


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--per-class", type=int, default=100)
    p.add_argument("--vocab", type=int, default=1200)
    p.add_argument("--text")
    p.add_argument("--seed", type=int, default=7)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    lines = training_text(a.seed, a.text)
    made = [train(name, lines, a.vocab) for name in SPECIALS]
    for name, t in zip(SPECIALS, made):
        t.save(os.path.join(a.out, name + ".json"), pretty=False)
    if not a.text:
        with open(os.path.join(a.out, "variants.json"), "w") as f:
            f.write(json.dumps(variants(lines), ensure_ascii=True, separators=(",", ":")))
        text = os.path.join(a.out, "train.txt")
        with open(text, "w", encoding="utf-8", newline="") as f:
            f.writelines(lines[::8] + lines[-300:])
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = split(MODERN % "{1,3}")
        t.train([text], trainers.BpeTrainer(vocab_size=1500, special_tokens=["<|endoftext|>"], show_progress=False,
                                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        t.decoder = decoders.ByteLevel()
        t.save(os.path.join(a.out, "trained.json"), pretty=False)
    maker = Maker(a.seed + 1)
    cases = [(k, make(maker, c)) for k, c in enumerate(CLASSES) for _ in range(a.per_class)]
    with open(os.path.join(a.out, "cases.bin"), "wb") as f:
        f.write(b"HDTC" + struct.pack("<II", len(CLASSES), len(cases)))
        for c in CLASSES:
            f.write(bytes([len(c)]) + c.encode())
        for k, s in cases:
            raw = s if isinstance(s, bytes) else s.encode()
            f.write(struct.pack("<BI", k, len(raw)) + raw)
            for t in made:
                ids = t.encode(raw.decode(errors="replace")).ids
                f.write(struct.pack("<I%dH" % len(ids), len(ids), *ids))
    print("tokenizers", tokenizers.__version__, len(cases), "cases,", len(CLASSES), "classes")


if __name__ == "__main__":
    main()
