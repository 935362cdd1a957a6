#!/usr/bin/env python3
"""Writes tests/data/models: small models as Hugging Face directories, with what PyTorch computes from them.

Made with Debian 12's python3-torch (1.13.0) and transformers 4.46.3:

    python3 -m venv --system-site-packages venv
    venv/bin/pip install 'transformers==4.46.3' 'numpy<2' safetensors
    venv/bin/python tests/make_model_fixtures.py

logits/NAME/       config.json and weights (f32, bf16 or f16, one in shards), and reference.safetensors:
                   lengths i32 [sequences], tokens i32 [sum of lengths], logits f32 [sum of lengths, vocabulary], computed in f32.
curve/NAME/        the model before training, and reference.safetensors:
                   tokens i32 [steps, batch, length + 1] (inputs are all but the last of a row, targets all but the first),
                   loss f64 [steps] before each step's update, hyper f64 [lr, beta1, beta2, eps, weight decay, clip (0: none)],
                   and every tensor after the last step under its own name. Decay is on tensors of rank 2 only.
"""
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM)

ROOT = pathlib.Path(__file__).parent / "data" / "models"


def randomize(model, gain):
    """Numbers that make every parameter matter: matrices keep their input's scale, norms and biases are not ones and zeros."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            fan_in = p.shape[0] if "c_" in name else p.shape[1]
            p.data.normal_(0, 1.0 if "embed_tokens" in name or "wte" in name else gain * fan_in ** -0.5)
        elif "bias" in name:
            p.data.normal_(0, 0.2)
        else:
            p.data.normal_(1, 0.2)


def save(model, directory, dtype=torch.float32, shard="1GB"):
    shutil.rmtree(directory, ignore_errors=True)
    model.to(dtype).save_pretrained(directory, safe_serialization=True, max_shard_size=shard)


def make_logits(name, model, lengths=(23, 14), dtype=torch.float32, shard="1GB"):
    directory = ROOT / "logits" / name
    randomize(model, 1.0)
    save(model, directory, dtype, shard)
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32, attn_implementation="eager").eval()
    tokens, logits = [], []
    with torch.no_grad():
        for n in lengths:
            t = torch.randint(0, model.config.vocab_size, (n,))
            tokens.append(t)
            logits.append(model(t[None], use_cache=False).logits[0])
    save_file({"lengths": torch.tensor(lengths, dtype=torch.int32), "tokens": torch.cat(tokens).to(torch.int32),
               "logits": torch.cat(logits).contiguous()}, directory / "reference.safetensors")


def curve_tokens(steps, batch, length, vocab):
    """A sequence that repeats every 13 tokens, seen from a different place by each row of each step."""
    pattern = [(5 * i * i + 3 * i + 1) % vocab for i in range(13)]
    rows = [[[pattern[(7 * s + 3 * b + i) % 13] for i in range(length + 1)] for b in range(batch)] for s in range(steps)]
    return torch.tensor(rows)


def make_curve(name, model, clip, steps=20, batch=3, length=17, lr=5e-3, betas=(0.9, 0.95), eps=1e-6, decay=0.1):
    directory = ROOT / "curve" / name
    save(model, directory)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
                                  lr=lr, betas=betas, eps=eps)
    tokens = curve_tokens(steps, batch, length, model.config.vocab_size)
    losses = []
    model.train()
    for step in range(steps):
        x, y = tokens[step, :, :-1], tokens[step, :, 1:]
        logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    print(name, "loss", losses[0], "->", losses[-1])
    out = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    out["tokens"] = tokens.to(torch.int32)
    out["loss"] = torch.tensor(losses, dtype=torch.float64)
    out["hyper"] = torch.tensor([lr, *betas, eps, decay, clip], dtype=torch.float64)
    save_file(out, directory / "reference.safetensors")


def llama(**kw):
    base = dict(vocab_size=101, hidden_size=48, intermediate_size=70, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager")
    return {**base, **kw}


def make_families():
    """As the families' own files are, with windows and caps small enough to matter; SmolLM's and Qwen 2.5's with the keys that theirs have."""
    torch.manual_seed(21)
    small = dict(vocab_size=67, hidden_size=32, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 max_position_embeddings=64, attn_implementation="eager")
    make_logits("gemma2", Gemma2ForCausalLM(Gemma2Config(**{**small, "num_hidden_layers": 4}, head_dim=10, query_pre_attn_scalar=12, sliding_window=5,
                                                         attn_logit_softcapping=2.0, final_logit_softcapping=25.0)), dtype=torch.bfloat16)
    make_logits("gemma2-head", Gemma2ForCausalLM(Gemma2Config(**{**small, "num_hidden_layers": 2}, head_dim=16, query_pre_attn_scalar=16, sliding_window=9,
                                                              attn_logit_softcapping=3.0, final_logit_softcapping=20.0)), dtype=torch.bfloat16)
    make_logits("phi3", Phi3ForCausalLM(Phi3Config(**small, sliding_window=7, pad_token_id=0, eos_token_id=3)), dtype=torch.bfloat16)
    make_logits("phi3-full", Phi3ForCausalLM(Phi3Config(**{**small, "num_key_value_heads": 4, "num_hidden_layers": 2}, tie_word_embeddings=True, pad_token_id=0,
                                                        eos_token_id=3)), dtype=torch.float16)
    make_logits("mistral", MistralForCausalLM(MistralConfig(**{**small, "num_hidden_layers": 2}, head_dim=12, sliding_window=None, rope_theta=1e6)),
                dtype=torch.bfloat16)
    make_logits("smollm", LlamaForCausalLM(LlamaConfig(**{**small, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 2},
                                                       tie_word_embeddings=True, rope_theta=100000.0, is_llama_config=True, rope_interleaved=False,
                                                       bos_token_id=1, eos_token_id=2, pad_token_id=2)), dtype=torch.bfloat16)
    make_logits("qwen2.5", Qwen2ForCausalLM(Qwen2Config(**{**small, "num_hidden_layers": 2}, rope_theta=1e6, use_sliding_window=False, sliding_window=131072,
                                                        max_window_layers=28, tie_word_embeddings=False)), dtype=torch.bfloat16)


def make_long():
    """Phi-3's long models: up to the length trained on, and beyond; and in Llama's form, which 4.46 takes to be beyond."""
    small = dict(vocab_size=67, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 max_position_embeddings=64, attn_implementation="eager")
    scaling = dict(short_factor=[1.0, 1.15, 1.35, 1.7], long_factor=[1.05, 2.3, 4.1, 7.9])
    for name, lengths in (("phi3-short", (16, 11)), ("phi3-long", (17, 29))):
        torch.manual_seed(22)
        make_logits(name, Phi3ForCausalLM(Phi3Config(**small, original_max_position_embeddings=16, rope_scaling=dict(type="longrope", **scaling),
                                                     pad_token_id=0, eos_token_id=3)), lengths, dtype=torch.bfloat16)
    torch.manual_seed(23)
    make_logits("llama-long", LlamaForCausalLM(LlamaConfig(**small, original_max_position_embeddings=16,
                                                           rope_scaling=dict(rope_type="longrope", **scaling))), (17, 29), dtype=torch.bfloat16)


def main():
    make_families()
    make_long()
    torch.manual_seed(20)
    torch.set_num_threads(1)
    plain = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    make_logits("gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=35, n_head=5, n_layer=3, n_inner=51, n_positions=40,
                                                   bos_token_id=100, eos_token_id=100)))
    make_logits("gpt2-untied", GPT2LMHeadModel(GPT2Config(
        vocab_size=67, n_embd=24, n_head=2, n_layer=2, n_positions=32, activation_function="relu", tie_word_embeddings=False,
        scale_attn_by_inverse_layer_idx=True, bos_token_id=None, eos_token_id=None)), dtype=torch.bfloat16)
    make_logits("llama-grouped", LlamaForCausalLM(LlamaConfig(**llama(
        hidden_size=60, intermediate_size=100, num_attention_heads=5, num_key_value_heads=1))), dtype=torch.bfloat16)
    make_logits("llama3", LlamaForCausalLM(LlamaConfig(**llama(
        hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=10, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, rope_theta=5000.0, eos_token_id=[2, 7],
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 16}))), dtype=torch.float16, shard="30KB")
    make_logits("llama-linear", LlamaForCausalLM(LlamaConfig(**llama(
        hidden_size=24, intermediate_size=33, num_attention_heads=3, num_key_value_heads=3,
        rope_scaling={"rope_type": "linear", "factor": 2.5}))))
    make_logits("llama-yarn", LlamaForCausalLM(LlamaConfig(**llama(
        hidden_size=32, intermediate_size=41, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        rope_scaling={"rope_type": "yarn", "factor": 4.0}))), dtype=torch.bfloat16)
    make_logits("mistral-window", MistralForCausalLM(MistralConfig(**llama(
        sliding_window=5, head_dim=10, hidden_act="gelu"))), dtype=torch.bfloat16)
    make_logits("qwen2", Qwen2ForCausalLM(Qwen2Config(**llama(
        hidden_size=56, num_attention_heads=7, num_key_value_heads=1, tie_word_embeddings=True, rope_theta=1e6,
        use_sliding_window=False))), dtype=torch.bfloat16)
    make_curve("gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=30, n_head=3, n_layer=2, n_positions=32, bos_token_id=0,
                                                  eos_token_id=0, **plain)), clip=0.0)
    make_curve("llama", LlamaForCausalLM(LlamaConfig(**llama(vocab_size=61, hidden_size=30, intermediate_size=44, num_hidden_layers=2,
                                                            num_attention_heads=3, num_key_value_heads=1))), clip=1.0)


main()
