#!/usr/bin/python3
"""The peer of bench_train: GPT-2 by hand in plain PyTorch 1.13, the same step (forward, backward, AdamW) on random tokens.

    peer_torch_train.py layers=12 width=768 heads=12 vocab=50257 batch=4 sequence=256 precision=f32|bf16 threads=2

It prints "ready 0", then answers each line on standard input as bench_train serve=1 does: "run N" with "ran SECONDS PEAK_BYTES". Of AdamW's
two ways in PyTorch (a loop over tensors, foreach) it takes the faster. What the process is to be told from outside (which OpenBLAS, MALLOC_*,
OMP_*) is the driver's affair: checks/src/train_speed.c tries several.
"""
import math
import os
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width, heads, mask):
        super().__init__()
        self.heads, self.mask = heads, mask
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).split(d, dim=2))
        scores = (q * (1.0 / math.sqrt(d // self.heads))) @ k.transpose(2, 3)
        p = F.softmax(scores.masked_fill(self.mask, float("-inf")), dim=-1)
        return self.proj((p @ v).transpose(1, 2).reshape(b, t, d))

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, layers, width, heads, vocab, sequence):
        super().__init__()
        mask = torch.ones(sequence, sequence, dtype=torch.bool).triu(1)
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(1024, width)
        self.blocks = nn.ModuleList(Block(width, heads, mask) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            nn.init.normal_(p, std=0.02) if p.dim() > 1 else None

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class Trainer:
    def __init__(self, o):
        torch.manual_seed(7)
        self.model = GPT2(o["layers"], o["width"], o["heads"], o["vocab"], o["sequence"])
        self.ids, self.targets = torch.randint(o["vocab"], (2, o["batch"], o["sequence"]))
        self.bf16 = o["precision"] == "bf16"
        self.optimizer = None

    def backward(self):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(self.ids, self.targets)
        loss.backward()
        return loss

    def use(self, foreach):
        parameters = list(self.model.parameters())
        groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1}, {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, foreach=foreach)

    def choose_optimizer(self):
        """The faster of the two ways, by the second of two updates each."""
        seconds = {}
        self.backward()
        for foreach in (False, True):
            self.use(foreach)
            for _ in range(2):
                begin = time.perf_counter()
                self.optimizer.step()
                seconds[foreach] = time.perf_counter() - begin
            self.optimizer = None
        self.use(min(seconds, key=seconds.get))
        return seconds

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward()
        self.optimizer.step()
        return loss


def peak_bytes():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))


def main():
    o = dict(layers=12, width=768, heads=12, vocab=50257, batch=4, sequence=256, precision="f32", threads=2, foreach="choose")
    for word in sys.argv[1:]:
        key, value = word.split("=")
        o[key] = type(o[key])(value)
    torch.set_num_threads(o["threads"])
    trainer = Trainer(o)
    # Trying both ways takes memory that a step would not: where the peak counts, the way is given.
    if o["foreach"] == "choose":
        seconds = trainer.choose_optimizer()
    else:
        trainer.use(o["foreach"] == "1")
        seconds = {}
    foreach = trainer.optimizer.defaults["foreach"]
    if not math.isfinite(trainer.step().item()):
        sys.exit("peer_torch_train: the loss is not a number")
    print("ready 0", int(bool(foreach)), *(f"{v:.3f}" for v in seconds.values()), flush=True)
    for line in sys.stdin:
        if not line.startswith("run "):
            break
        begin = time.perf_counter()
        for _ in range(int(line[4:])):
            trainer.step()
        print(f"ran {time.perf_counter() - begin:.6f} {peak_bytes()}", flush=True)
    os._exit(0)


main()
