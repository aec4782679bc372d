"""Weights that Python and Rust (`checkpoint.rs`) compute alike, and checkpoints made of them; see `generate.py`."""

import json
import math

import numpy as np
import torch
from safetensors.torch import save_file

GAMMA = 0x9E3779B97F4A7C15
# Standard deviation of the sum of four uniform 16-bit integers.
UNIT = math.sqrt(4 * (65536**2 - 1) / 12)


def splitmix(seed, count):
    """The sequence of `seed`: uint64."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def integers(seed, count):
    """The same as int64, nearly normal with standard deviation UNIT."""
    z = splitmix(seed, count)
    fields = [(z >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)]
    return sum(field.astype(np.int64) for field in fields) - 131070


def values(tensor):
    """The tensor in its stored dtype; bf16 and e4m3 as their bits."""
    count, shape = math.prod(tensor["shape"]), tensor["shape"]
    dtype = {"I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8, "F8_E4M3": np.uint8, "F32": np.float32}
    if "values" in tensor:
        return np.array(tensor["values"], dtype=dtype[tensor["dtype"]]).reshape(shape)
    if "text" in tensor:
        return np.frombuffer(tensor["text"].encode(), dtype=np.uint8)
    if "each" in tensor:
        return (np.arange(count) // tensor["each"]).astype(np.int32)
    if "groups" in tensor:
        # The inputs in the order of their bits, in groups.
        order = np.argsort(splitmix(tensor["seed"], count), kind="stable")
        groups = np.empty(count, dtype=np.int32)
        groups[order] = np.arange(count) // tensor["groups"]
        return groups
    if "mask" in tensor:
        whole = (splitmix(tensor["seed"], count) & np.uint64(tensor["mask"])) + np.uint64(tensor["base"])
        kind = np.dtype(dtype[tensor["dtype"]])
        return whole.astype(np.dtype(f"uint{8 * kind.itemsize}")).view(kind).reshape(shape)
    whole = integers(tensor["seed"], math.prod(tensor["shape"])) * tensor["scale"] + tensor["offset"]
    real = (whole.astype(np.float64) / 2.0**32).astype(np.float32).reshape(tensor["shape"])
    if tensor["dtype"] == "F32":
        return real
    if tensor["dtype"] == "F16":
        return real.astype(np.float16)
    bits = real.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def checksum(arrays):
    """FNV-1a, 64 bit, over little-endian 16-bit words (a float32 is two)."""
    state = 0xCBF29CE484222325
    for array in arrays:
        assert array.nbytes % 2 == 0
        for word in array.reshape(-1).view(np.uint16).tolist():
            state = ((state ^ word) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def tensors(config, seed, dtype, norm_dtype=None, stored_head=False, inv_freq=False):
    """Every tensor of the checkpoint. Scales keep activations near one and logits spread by two to three."""
    kind, hidden, inter = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    # transformers takes 128 for a Qwen3 without the field, whatever its width.
    head_dim = config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)
    output_bias = kind in ("llama", "qwen3") and config.get("attention_bias", False)
    qkv_bias = kind == "qwen2" or output_bias
    mlp_bias = kind == "llama" and config.get("mlp_bias", False)
    tied = config.get("tie_word_embeddings", False)
    out = []

    def add(name, shape, std, mean=0.0, like=None, stored=dtype):
        source = next(t["seed"] for t in out if t["name"] == like) if like else seed * 1000 + len(out)
        scale, offset = round(std / UNIT * 2**32), round(mean * 2**32)
        out.append({"name": name, "dtype": stored, "shape": list(shape), "seed": source, "scale": scale, "offset": offset})

    def linear(name, rows, columns, gain, bias):
        add(f"{name}.weight", (rows, columns), gain / math.sqrt(columns))
        if bias:
            add(f"{name}.bias", (rows,), 0.5)

    def norm(name, width):
        add(f"{name}.weight", (width,), 0.25, 1.0, stored=norm_dtype or dtype)

    head_std = 2.5 / math.sqrt(hidden)
    add("model.embed_tokens.weight", (config["vocab_size"], hidden), head_std if tied else 1.0)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norm(f"{at}.input_layernorm", hidden)
        linear(f"{at}.self_attn.q_proj", heads * head_dim, hidden, 1.3, qkv_bias)
        linear(f"{at}.self_attn.k_proj", kv_heads * head_dim, hidden, 1.3, qkv_bias)
        linear(f"{at}.self_attn.v_proj", kv_heads * head_dim, hidden, 1.1, qkv_bias)
        if kind == "qwen3":
            norm(f"{at}.self_attn.q_norm", head_dim)
            norm(f"{at}.self_attn.k_norm", head_dim)
        if inv_freq:
            add(f"{at}.self_attn.rotary_emb.inv_freq", (head_dim // 2,), 1.0, stored="F32")
        linear(f"{at}.self_attn.o_proj", hidden, heads * head_dim, 1.0, output_bias)
        norm(f"{at}.post_attention_layernorm", hidden)
        linear(f"{at}.mlp.gate_proj", inter, hidden, 1.1, mlp_bias)
        linear(f"{at}.mlp.up_proj", inter, hidden, 1.1, mlp_bias)
        linear(f"{at}.mlp.down_proj", hidden, inter, 1.0, mlp_bias)
    norm("model.norm", hidden)
    if not tied:
        add("lm_head.weight", (config["vocab_size"], hidden), head_std)
    elif stored_head:
        add("lm_head.weight", (config["vocab_size"], hidden), head_std, like="model.embed_tokens.weight")
    return out


def write_checkpoint(folder, case):
    """The checkpoint as a Hugging Face folder; returns its checksum."""
    (folder / "config.json").write_text(json.dumps(case["config"], indent=2))
    arrays = [values(tensor) for tensor in case["tensors"]]
    shards = case["shards"]
    files = ["model.safetensors"] if shards == 1 else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {tensor["name"]: files[i % shards] for i, tensor in enumerate(case["tensors"])}
    for file in files:
        state = {}
        for tensor, array in zip(case["tensors"], arrays):
            if where[tensor["name"]] == file:
                data = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if tensor["dtype"] == "BF16" else array
                state[tensor["name"]] = torch.as_tensor(data)
        save_file(state, folder / file, metadata={"format": "pt"})
    if shards > 1:
        total = sum(array.nbytes for array in arrays)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return checksum(arrays)
