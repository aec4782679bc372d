#!/usr/bin/env python3
"""Writes a Hugging Face folder with random weights, for measuring speed and memory where real weights are not needed.

    pip install numpy==2.4.6
    python random_checkpoint.py OUT --shape 160m|1b|qwen3-0.6b|CONFIG.json [--dtype bf16|f16|f32] [--seed N]
                                [--shard-bytes N]

A shape is one of the three below or the path of a `config.json` of a llama, mistral, qwen2 or qwen3 model. Tensors are
drawn and written in slices of at most 64 MB, so a checkpoint of any size needs little memory; the same arguments give
the same bytes. Linear layers have a standard deviation of 1/sqrt(fan in), so that activations neither vanish nor
overflow over many layers. There is no tokenizer: ask by token ids.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

SHAPES = {
    "160m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 28,
    },
}
COMMON = {"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True, "bos_token_id": 1, "eos_token_id": 2}
DTYPES = {"bf16": ("BF16", 2, "bfloat16"), "f16": ("F16", 2, "float16"), "f32": ("F32", 4, "float32")}
SLICE = 16 << 20  # elements drawn at a time


def tensors(config):
    """Names and shapes in the order of a forward pass, with the standard deviation and mean of each."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or (128 if config["model_type"] == "qwen3" else hidden // heads)
    kind = config["model_type"]
    output_bias = kind in ("llama", "qwen3") and config.get("attention_bias", False)
    qkv_bias = kind == "qwen2" or output_bias
    mlp_bias = kind == "llama" and config.get("mlp_bias", False)

    def linear(name, rows, columns, bias):
        yield f"{name}.weight", (rows, columns), columns**-0.5, 0.0
        if bias:
            yield f"{name}.bias", (rows,), 0.1, 0.0

    yield "model.embed_tokens.weight", (config["vocab_size"], hidden), hidden**-0.5, 0.0
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,), 0.1, 1.0
        yield from linear(f"{at}.self_attn.q_proj", heads * head_dim, hidden, qkv_bias)
        yield from linear(f"{at}.self_attn.k_proj", kv_heads * head_dim, hidden, qkv_bias)
        yield from linear(f"{at}.self_attn.v_proj", kv_heads * head_dim, hidden, qkv_bias)
        if kind == "qwen3":
            yield f"{at}.self_attn.q_norm.weight", (head_dim,), 0.1, 1.0
            yield f"{at}.self_attn.k_norm.weight", (head_dim,), 0.1, 1.0
        yield from linear(f"{at}.self_attn.o_proj", hidden, heads * head_dim, output_bias)
        yield f"{at}.post_attention_layernorm.weight", (hidden,), 0.1, 1.0
        yield from linear(f"{at}.mlp.gate_proj", inter, hidden, mlp_bias)
        yield from linear(f"{at}.mlp.up_proj", inter, hidden, mlp_bias)
        yield from linear(f"{at}.mlp.down_proj", hidden, inter, mlp_bias)
    yield "model.norm.weight", (hidden,), 0.1, 1.0
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (config["vocab_size"], hidden), hidden**-0.5, 0.0


def encode(values, dtype):
    """Little-endian bytes of float32 values in the stored dtype, rounded to nearest even."""
    if dtype == "f32":
        return values.astype("<f4")
    if dtype == "f16":
        return values.astype("<f2")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def shards(config, size, limit):
    """Tensors grouped into files of at most `limit` bytes (a tensor is never split)."""
    group, used = [], 0
    for tensor in tensors(config):
        need = math.prod(tensor[1]) * size
        if group and used + need > limit:
            yield group
            group, used = [], 0
        group.append(tensor)
        used += need
    yield group


def write_shard(path, group, dtype, rng):
    tag, size, _ = DTYPES[dtype]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _, _ in group:
        end = at + math.prod(shape) * size
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, std, mean in group:
            left = math.prod(shape)
            while left:
                n = min(left, SLICE)
                values = rng.standard_normal(n, dtype=np.float32)
                values *= np.float32(std)
                values += np.float32(mean)
                encode(values, dtype).tofile(file)
                left -= n
    return at


def write(out, config, dtype="bf16", seed=0, shard_bytes=2 << 30):
    """Writes the folder; returns the bytes of its weights."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _, size, name = DTYPES[dtype]
    config = {**COMMON, **config, "dtype": name}
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    rng = np.random.Generator(np.random.PCG64(seed))
    groups = list(shards(config, size, shard_bytes))
    total, where = 0, {}
    for i, group in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        total += write_shard(out / file, group, dtype, rng)
        where.update((name, file) for name, *_ in group)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--shape", required=True, help=f"{', '.join(SHAPES)} or the path of a config.json")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=2 << 30)
    args = parser.parse_args()
    config = SHAPES.get(args.shape) or json.loads(Path(args.shape).read_text())
    total = write(args.out, config, args.dtype, args.seed, args.shard_bytes)
    print(f"{args.out}: {total / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
