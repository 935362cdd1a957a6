#!/usr/bin/env python3
"""Writes tests/data/quant: blocks of every GGUF type, with the numbers that the Python package `gguf` reads in them, and rows with the blocks that it
makes of them.

    python3 -m venv venv
    venv/bin/pip install gguf==0.19.0 safetensors
    venv/bin/python tests/make_quant_fixtures.py

TYPE.blocks u8 [blocks, bytes], TYPE.values f32 [blocks, elements]; and for the types that Heddle writes: TYPE.rows f32, TYPE.quantized u8.
Of 12 blocks of a type the first five have special scales: zero, the largest f16, a negative one, the least subnormal, a larger subnormal.
"""
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).parent / "data" / "quant"
# Where the f16 scales of a block lie.
TYPES = {"F16": [], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
         "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}
SPECIAL = [0.0, 65504.0, -0.03125, 2.0 ** -24, 3.1e-5]
WRITTEN = ["F16", "BF16", "Q4_0", "Q8_0"]


def random_blocks(rng, name, count):
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if elements == 1:
        x = np.concatenate([np.array(SPECIAL + [-1.5, 1.0, -0.0], np.float32), rng.normal(0, 2, 24).astype(np.float32)])
        return gguf.quants.quantize(x.reshape(1, -1), kind).view(np.uint8), kind
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in TYPES[name]:
        scales = np.concatenate([SPECIAL, rng.normal(0, 0.01, count - len(SPECIAL))]).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks, kind


def rows(rng):
    x = rng.normal(0, 1, (8, 32)).astype(np.float32)
    x[0] = 0
    x[1] *= 1e-6
    x[2] *= 1000
    x[3, 1:] = 0
    x[4] = np.arange(32) - 15.5
    x[5, 7] = x[5, 3] = 4.0
    x[5, 9] = -4.0
    return x


def main():
    rng = np.random.default_rng(11)
    out = {}
    for name in TYPES:
        blocks, kind = random_blocks(rng, name, 12)
        out[name + ".blocks"] = blocks
        out[name + ".values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    for name in WRITTEN:
        x = rows(rng)
        out[name + ".rows"] = x
        out[name + ".quantized"] = np.ascontiguousarray(gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])).view(np.uint8)
    ROOT.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, ROOT / "reference.safetensors")


main()
