#!/usr/bin/env python3
"""Writes tests/data/tokenizer/pieces.json: small vocabularies under settings that models other than those of make_tokenizer_fixtures.py have, with the ids (and decoded
texts) that Hugging Face `tokenizers` 0.20.3 gives. Needs sentencepiece 0.2.3 beside it.

    make_pieces_fixtures.py --out tests/data/tokenizer

"pre": one byte-level vocabulary ("tokens", "merges"), and for names of llama.cpp's pre-tokenizers [text, ids] with the patterns that the models' own tokenizer.json has.
"bases": tokenizer.json files; "json": [name, base, changed sections, [[text, ids, decoded], ...]] for Metaspace over SentencePiece's BPE, and for Unigram."""
import argparse
import base64
import json
import os
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from make_tokenizer_fixtures import CLASSES, Maker, make, training_text

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The patterns of the models' tokenizer.json, under the name that llama.cpp gives them.
PRES = {
    # falcon
    "falcon": [
        r"[\p{P}\$\+<=>\^~\|`]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[0-9][0-9][0-9]",
    ],
    # default
    "default": [
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
    # deepseek-llm
    "deepseek-llm": [
        r"[\r\n]",
        ('\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-'
         '\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+'),
        '\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+',
        r"\s+$",
        '[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+',
        r"\p{N}+",
    ],
    # deepseek-coder
    "deepseek-coder": [
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        '[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+',
        r"\p{N}",
    ],
    # deepseek-v3, hunyuan-dense, joyai-llm
    "deepseek-v3": [
        r"\p{N}{1,3}",
        '[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+',
        ('[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|'
         r"\s+"),
    ],
    # tekken
    "tekken": [
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p"
         r"{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ],
    # gpt-4o, llama4, kanana2, minimax-m2
    "gpt-4o": [
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu"
         r"}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+"),
    ],
    # bloom, poro-chat, gpt3-finnish
    "bloom": [
        ' ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+',
    ],
    # viking
    "viking": [
        ' ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+',
        r"\p{N}",
    ],
    # qwen35
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    # bailingmoe, bailingmoe2, llada-moe
    "bailingmoe": [
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ],
    # seed-coder
    "seed-coder": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    # minicpm5
    "minicpm5": [
        r"\p{N}{1,3}",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    # youtu
    "youtu": [
        '[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+',
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu"
         r"}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+("
         r"?!\S)|\s+"),
    ],
}

PRES.update({"gpt-2": [GPT2], "starcoder": [r"\p{N}", GPT2], "command-r": [r"\p{N}", GPT2], "dbrx": [LLAMA3], "stablelm2": [LLAMA3.replace("{1,3}", "")]})
META = "\u2581"


def some_texts(seed, per_class=1):
    maker = Maker(seed)
    texts = [make(maker, c) for c in CLASSES if c not in ("invalid_utf8", "long_words") for _ in range(per_class)]
    return texts + ["", " ", "  a  b ", "the loom's 1234567 e\u0301 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4\n\n x", "a" + META + "b", META, "Don'T THEY'LL'd 3.14 \u00e9\u00c9\u01c5\u02b0",
                    "\u3042\u30a2\u6f22\u5b57 mixed \u0442\u0435\u043a\u0441\u0442\u3002\uff01 $x_1`s` ~a|b^c"]


def pres(lines):
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    base.train_from_iterator([x[i:i + 40] for x in lines for i in range(0, len(x), 40)], trainers.BpeTrainer(vocab_size=700, show_progress=False,
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    j = json.loads(base.to_str())["model"]
    tokens = [t for t, _ in sorted(j["vocab"].items(), key=lambda kv: kv[1])]
    cases = {}
    for name, patterns in PRES.items():
        base.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
                                                     + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        base.model.ignore_merges = name in ("tekken", "minicpm5", "youtu")
        base.normalizer = normalizers.NFC() if name == "qwen35" else normalizers.Sequence([])
        cases[name] = [[s, base.encode(s).ids] for s in some_texts(11)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in j["merges"]]
    return {"tokens": tokens, "merges": merges, "cases": cases}


def llama(lines):
    """SentencePiece's BPE with bytes, as converters write it."""
    words = [META + w for x in lines for w in x.replace(META, "").split()]
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    specials = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    t.train_from_iterator([" ".join(words).replace(META, "")], trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False, limit_alphabet=120))
    j = json.loads(t.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"] if a["id"] < 3]
    j["decoder"] = json.loads(decoders.Sequence([decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]).__getstate__())
    return j


def unigram(lines, fallback):
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator([x for x in lines if x.isascii()][:500], trainers.UnigramTrainer(vocab_size=500, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    j = json.loads(t.to_str())
    j["model"]["unk_id"] = 2
    if fallback:
        j["model"]["vocab"] += [["<0x%02X>" % b, -20.0] for b in range(256)]
        j["model"]["byte_fallback"] = True
    j["decoder"] = json.loads(decoders.Metaspace().__getstate__())
    j["post_processor"] = json.loads(processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)]).__getstate__())
    return j


def charsmap():
    """A small table of normalizations, made by SentencePiece out of rules of its own kind (code points in hexadecimal)."""
    rules = {"FF21": "41", "FF41": "61", "FB01": "66 69", "65 301": "E9", "E9": "65", "3000": "20", "9": "20", "A": "20", "AD": "", "200B": "", "1F600": "3A 29", "41 30A": "C5",
             "3042": "30A2", "AC00": "1100 1161", "BD": "31 2044 32", "2160": "49", "B2": "32"}
    with tempfile.TemporaryDirectory() as d:
        with open(d + "/rules.tsv", "w") as f:
            f.writelines("%s\t%s\n" % rule for rule in rules.items())
        with open(d + "/text", "w") as f:
            f.writelines("the loom weaves %d threads of yarn\n" % i for i in range(50))
        sentencepiece.SentencePieceTrainer.train(input=d + "/text", model_prefix=d + "/m", vocab_size=40, model_type="bpe", normalization_rule_tsv=d + "/rules.tsv", minloglevel=2)
        with open(d + "/m.model", "rb") as f:
            raw = f.read()
    # ModelProto.normalizer_spec is field 3, NormalizerSpec.precompiled_charsmap field 2: both length-delimited
    return field(field(raw, 3), 2)


def varint(b, i):
    v = shift = 0
    while True:
        v |= (b[i] & 127) << shift
        shift, i = shift + 7, i + 1
        if b[i - 1] < 128:
            return v, i


def field(b, wanted):
    i = 0
    while i < len(b):
        key, i = varint(b, i)
        if key & 7 == 2:
            n, i = varint(b, i)
            if key >> 3 == wanted:
                return b[i:i + n]
            i += n
        elif key & 7 == 0:
            _, i = varint(b, i)
        else:
            i += 8 if key & 7 == 1 else 4
    raise ValueError(wanted)


def variants(lines):
    out, P = {}, pre_tokenizers

    def put(name, base_name, **changes):
        out[name] = (base_name, {key: json.loads(v.__getstate__()) if v is not None else None for key, v in changes.items()})

    bases = {"bpe": llama(lines)}
    base = bases["bpe"]
    added = {"id": None, "content": "[X]", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
    base["added_tokens"].append({**added, "id": len(base["model"]["vocab"])})
    for scheme in ("first", "always", "never"):
        for split in (False, True):
            put("bpe_metaspace_%s_%d" % (scheme, split), "bpe", pre_tokenizer=P.Metaspace(prepend_scheme=scheme, split=split))
    put("bpe_prepend", "bpe", pre_tokenizer=None, normalizer=normalizers.Sequence([normalizers.Prepend(META), normalizers.Replace(" ", META)]))
    pieces = [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()]
    put("bpe_gemma", "bpe", decoder=decoders.Sequence(pieces), pre_tokenizer=P.Split(" ", "merged_with_previous"), normalizer=normalizers.Replace(" ", META))
    for fallback in (False, True):
        kind = "unigram_%d" % fallback
        base = bases[kind] = unigram(lines, fallback)
        base["added_tokens"].append({**added, "id": len(base["model"]["vocab"])})
        if fallback:
            base["decoder"] = json.loads(decoders.Sequence(pieces + [decoders.Strip(" ", 1, 0)]).__getstate__())
        for scheme in ("first", "always", "never"):
            for split in (False, True):
                put("%s_%s_%d" % (kind, scheme, split), kind, pre_tokenizer=P.Metaspace(prepend_scheme=scheme, split=split),
                    **({} if fallback else {"decoder": decoders.Metaspace(prepend_scheme=scheme, split=split)}))
        if not fallback:
            table = json.dumps({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()})
            spaces, strip = normalizers.Replace(Regex(" {2,}"), META), normalizers.Strip(left=False, right=True)
            # Python cannot make a Precompiled of this table by itself: the sections go in as JSON
            put(kind + "_precompiled", kind)
            out[kind + "_precompiled"][1]["normalizer"] = json.loads(table)
            put(kind + "_t5", kind)
            out[kind + "_t5"][1]["normalizer"] = {"type": "Sequence", "normalizers": [json.loads(table), json.loads(strip.__getstate__()), json.loads(spaces.__getstate__())]}
        put(kind + "_whole", kind, pre_tokenizer=P.Sequence([P.WhitespaceSplit(), P.Metaspace()]))
    result = []
    for name, (base_name, changes) in out.items():
        t = Tokenizer.from_str(json.dumps({**bases[base_name], **changes}))
        cases = []
        for s in some_texts(5) + ["[X]", "a [X]  b", "[X] a[X]", " [X]a", "\uff21\uff41 \ufb01t e\u0301 A\u030a \u3042\uac00 x\u00ad\u200by \u00bd\u2160\u00b2 \U0001f600\tz\n ", "e\u0301\u0302 \u3000  \u3000end  ", "\x00\x7f", "\U0001f600\U0001f600 q\u0301"]:
            ids = t.encode(s).ids
            cases.append([s, ids, t.decode(ids)])
        result.append([name, base_name, changes, cases])
    return bases, result


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    a = p.parse_args()
    lines = training_text(7, None)
    with open(os.path.join(a.out, "pieces.json"), "w") as f:
        bases, cases = variants(lines)
        f.write(json.dumps({"pre": pres(lines), "bases": bases, "json": cases}, ensure_ascii=True, separators=(",", ":")))


if __name__ == "__main__":
    main()
