#!/usr/bin/env python3
"""Writes `cases/*.json`: what transformers says about tiny random checkpoints of every architecture and rope kind.

    python -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    .venv/bin/python generate.py                       # rewrites every case
    .venv/bin/python generate.py llama-gqa             # rewrites the named ones
    .venv/bin/python generate.py --random 20 --seed 7 --out /tmp/more    # shapes nobody chose

`tests/golden.rs` builds each checkpoint and compares; with `BURRSTONE_GOLDEN_CASES=/tmp/more` it reads other cases.

No weights are committed. A tensor is an integer sequence that this script and the test compute alike: element `i` of a
tensor with seed `s` is

    z = splitmix64(s + (i + 1) · 0x9e3779b97f4a7c15)
    w = ((z₀ + z₁ + z₂ + z₃ − 131070) · scale + offset) / 2³²        z₀ … z₃: the four 16-bit fields of z

rounded to float32 and from there to the stored dtype: nearly normal, and exact in integers up to the rounding. The case
lists every tensor with its seed, scale and offset, and `checksum` is the FNV-1a hash of all stored bytes in that order.

A case holds, for several prompts,

- `logprobs`: log-probability of each prompt token but the first, from one forward pass of the stored weights in float32;
- `native_error`: the difference to it of the same pass in the checkpoint's own dtype (`transformers` as a user runs it);
- `greedy`, `greedy_logprobs`, `margins`: the most likely continuation in float32, token by token through the KV cache, and
  how far the log-probability of the second best token lies below.

`teeth` are changes of the configuration that someone may get wrong; the script refuses a case whose figures they would
not visibly change. Threads and seeds are fixed: running it again on the same kind of CPU gives the same bytes.
"""

import argparse
import copy
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache

HERE = Path(__file__).resolve().parent
GAMMA = 0x9E3779B97F4A7C15
# Standard deviation of the sum of four uniform 16-bit integers.
UNIT = math.sqrt(4 * (65536**2 - 1) / 12)
VISIBLE = 0.05


# --- weights ---------------------------------------------------------------------------------------------------------


def integers(seed, count):
    """The sequence of `seed`: int64, nearly normal with standard deviation UNIT."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    fields = [(z >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)]
    return sum(field.astype(np.int64) for field in fields) - 131070


def values(tensor):
    """The tensor in its stored dtype; bf16 as its 16-bit patterns."""
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


# --- reference -------------------------------------------------------------------------------------------------------


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def all_logprobs(model, tokens):
    """`[tokens, vocab]`, float32."""
    return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), dim=-1)


def score(model, tokens):
    table = all_logprobs(model, tokens)[:-1]
    return table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].double().numpy()


def greedy(model, tokens, steps):
    cache = DynamicCache(config=model.config)
    feed, chosen, logprobs, margins = torch.tensor([tokens]), [], [], []
    for _ in range(steps):
        row = torch.log_softmax(model(feed, past_key_values=cache, use_cache=True).logits[0, -1].float(), dim=-1)
        best = torch.topk(row, 2)
        chosen.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
        margins.append(float(best.values[0] - best.values[1]))
        feed = torch.tensor([[chosen[-1]]])
    return chosen, logprobs, margins


def merged(config, patch):
    """`config` with the fields of `patch`; dictionaries merge, `None` removes inside a dictionary."""
    config = copy.deepcopy(config)
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            config[key] = {k: v for k, v in {**config[key], **value}.items() if v is not None}
        else:
            config[key] = value
    return config


@torch.no_grad()
def run(case, lengths, steps, teeth):
    """Fills in the case's checksum and prompts."""
    rng = np.random.Generator(np.random.PCG64(case["tensors"][0]["seed"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case["checksum"] = write_checkpoint(folder, case)
        native_dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[case["tensors"][0]["dtype"]]
        case["prompts"], spread = [], []
        for length in lengths:
            tokens = rng.integers(0, case["config"]["vocab_size"], length).tolist()
            # A model of its own for each pass: a rotary embedding of the dynamic kind remembers the longest sequence.
            wide = score(load(folder, torch.float32), tokens)
            native = score(load(folder, native_dtype), tokens)
            spread.append(float(load(folder, torch.float32)(torch.tensor([tokens])).logits.std()))
            chosen, logprobs, margins = greedy(load(folder, torch.float32), tokens, steps)
            case["prompts"].append({
                "tokens": tokens,
                "logprobs": [round(float(x), 6) for x in wide],
                "native_error": [float(f"{x:.2e}") for x in native - wide],
                "greedy": chosen,
                "greedy_logprobs": [round(x, 6) for x in logprobs],
                "margins": [float(f"{x:.3e}") for x in margins],
            })
        # An end token that no continuation holds, so that it does not matter what an engine does when it meets one.
        used = {token for p in case["prompts"] for token in p["greedy"]}
        case["config"]["eos_token_id"] = next(token for token in range(2, 10**6) if token not in used)
        longest = max(case["prompts"], key=lambda p: len(p["tokens"]))
        base = np.array(longest["logprobs"])
        bites = []
        for patch in teeth:
            (folder / "config.json").write_text(json.dumps(merged(case["config"], patch)))
            try:
                bite = float(np.abs(score(load(folder, torch.float32), longest["tokens"]) - base).max())
            except Exception as reason:  # a shape that no longer fits is a difference too
                print(f"    {patch}: {str(reason).splitlines()[0][:90]}")
                continue
            if bite < VISIBLE:
                sys.exit(f"{case['name']}: {patch} changes log-probabilities by {bite:.4f} only")
            bites.append(round(bite, 2))
    errors = np.abs(np.concatenate([p["native_error"] for p in case["prompts"]]))
    worst = f"{errors.max():.4f} mean {errors.mean():.5f}" if errors.size else "-"
    print(f"{case['name']:34} logits std {np.mean(spread):.2f}  own dtype off by max {worst}  teeth {bites}", flush=True)


def dump(path, case):
    """JSON with a line for each tensor and each field of a prompt."""

    def compact(value):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    def prompt(p):
        return "{\n" + ",\n".join(f"{json.dumps(key)}:{compact(value)}" for key, value in p.items()) + "}"

    lines = []
    for key, value in case.items():
        if key == "tensors":
            text = "[\n" + ",\n".join(compact(t) for t in value) + "]"
        elif key == "prompts":
            text = "[\n" + ",\n".join(prompt(p) for p in value) + "]"
        elif key == "config":
            text = json.dumps(value, indent=1)
        else:
            text = compact(value)
        lines.append(f"{json.dumps(key)}:{text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# --- cases -----------------------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SPELLED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def configuration(kind, shape, rope, dtype, old, **more):
    """A `config.json`; `shape` is (hidden, inter, layers, heads, kv_heads, vocab), `old` the spelling before
    transformers 5."""
    hidden, inter, layers, heads, kv_heads, vocab = shape
    rope = {"rope_type": "default", "rope_theta": 10000.0, **rope}
    rope = {key: value for key, value in rope.items() if value is not None}
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    if kind in ("qwen2", "qwen3"):
        config = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": layers, **config}
    if old:
        config["torch_dtype"] = SPELLED[dtype]
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
        config["transformers_version"] = "4.46.0"
    else:
        config["dtype"] = SPELLED[dtype]
        config["rope_parameters"] = rope
        config["transformers_version"] = transformers.__version__
    return config


SHORT = (1, 5, 40, 129)
CASES = {}


def case(name, kind, shape, rope=(), dtype="BF16", old=False, lengths=SHORT, steps=16, shards=1, teeth=(), storage=(), **more):
    config = configuration(kind, shape, dict(rope), dtype, old, **more)
    CASES[name] = (config, dtype, lengths, steps, shards, list(teeth), dict(storage))


def define_cases():
    heads_matter = {"rms_norm_eps": 0.3}

    # Llama: heads, shapes, storage.
    case("llama-mha", "llama", (64, 176, 2, 4, 4, 256), lengths=(1, 2, 33, 100), teeth=[heads_matter])
    case("llama-gqa", "llama", (64, 128, 3, 8, 2, 320), lengths=(1, 16, 17, 512), steps=24, head_dim=16,
         teeth=[{"rope_parameters": {"rope_theta": 9000.0}}])
    case("llama-mqa", "llama", (64, 160, 2, 4, 1, 199), old=True, lengths=(1, 3, 64, 65),
         teeth=[{"rope_theta": 8000.0}])
    case("llama-heads-3-1", "llama", (48, 100, 2, 3, 1, 131), lengths=(1, 7, 31, 130))
    case("llama-heads-5-5", "llama", (80, 120, 2, 5, 5, 257), lengths=(1, 8, 32, 96), old=True, dtype="F16")
    case("llama-heads-6-3", "llama", (96, 136, 2, 6, 3, 300), lengths=(1, 9, 48, 127))
    case("llama-heads-7-1-odd-sizes", "llama", (56, 90, 2, 7, 1, 101), lengths=(1, 4, 47, 111), head_dim=10)
    case("llama-wide-heads", "llama", (64, 96, 2, 4, 2, 200), head_dim=24, lengths=(1, 6, 63, 128),
         teeth=[{"head_dim": None}])
    case("llama-head-dim-128", "llama", (64, 96, 2, 2, 1, 150), head_dim=128, lengths=(1, 15, 80))
    case("llama-narrow-heads", "llama", (96, 112, 2, 4, 2, 210), head_dim=8, old=True, lengths=(1, 12, 99))
    case("llama-tied", "llama", (64, 128, 2, 4, 2, 256), tie_word_embeddings=True, lengths=(1, 5, 66, 120))
    case("llama-tied-stored-head", "llama", (48, 96, 2, 3, 3, 180), tie_word_embeddings=True, old=True,
         storage={"stored_head": True}, lengths=(1, 21, 70))
    case("llama-biases", "llama", (64, 112, 2, 4, 2, 240), attention_bias=True, mlp_bias=True, lengths=(1, 11, 88))
    case("llama-attention-bias", "llama", (64, 112, 2, 4, 4, 240), attention_bias=True, lengths=(1, 10, 77), old=True)
    case("llama-mlp-bias", "llama", (64, 112, 2, 4, 4, 240), mlp_bias=True, lengths=(1, 10, 77))
    case("llama-sharded", "llama", (64, 144, 3, 4, 2, 256), shards=3, lengths=(1, 20, 90))
    case("llama-sharded-tied-f16", "llama", (64, 144, 2, 4, 2, 256), shards=2, dtype="F16", tie_word_embeddings=True)
    case("llama-f32", "llama", (64, 128, 2, 4, 2, 256), dtype="F32", lengths=(1, 13, 101))
    case("llama-f16", "llama", (96, 192, 2, 6, 2, 300), dtype="F16", lengths=(1, 14, 140))
    case("llama-mixed-dtypes", "llama", (64, 128, 2, 4, 2, 256), old=True, storage={"norm_dtype": "F32", "inv_freq": True})
    case("llama-gelu-tanh", "llama", (64, 128, 2, 4, 2, 200), hidden_act="gelu_pytorch_tanh", lengths=(1, 50, 60),
         teeth=[{"hidden_act": "silu"}])
    case("llama-gelu", "llama", (64, 128, 2, 4, 2, 200), hidden_act="gelu", lengths=(1, 50, 60), teeth=[{"hidden_act": "silu"}])
    case("llama-large-eps", "llama", (64, 128, 2, 4, 2, 200), rms_norm_eps=0.05, lengths=(1, 50, 61), old=True,
         teeth=[{"rms_norm_eps": 1e-5}])

    # Mistral: windows.
    case("mistral-window", "mistral", (64, 128, 3, 4, 2, 256), sliding_window=24, lengths=(1, 23, 24, 25, 150), steps=24,
         teeth=[{"sliding_window": 23}, {"sliding_window": 25}, {"sliding_window": None}])
    case("mistral-window-512", "mistral", (64, 96, 2, 4, 1, 200), sliding_window=100, old=True, lengths=(99, 512), steps=16,
         teeth=[{"sliding_window": 99}, {"sliding_window": 101}])
    case("mistral-window-crossed", "mistral", (48, 96, 2, 3, 3, 160), sliding_window=16, lengths=(1, 8, 15), steps=32,
         dtype="F16")
    case("mistral-no-window", "mistral", (64, 160, 2, 8, 4, 256), sliding_window=None, head_dim=12,
         rope={"rope_theta": 1000000.0}, lengths=(1, 19, 160), teeth=[{"sliding_window": 30}])

    # Qwen2: biases, windows by layer.
    case("qwen2", "qwen2", (64, 128, 2, 4, 2, 304), rope={"rope_theta": 1000000.0}, rms_norm_eps=1e-6, old=True,
         lengths=(1, 5, 40, 512))
    case("qwen2-tied-odd-heads", "qwen2", (112, 152, 2, 7, 1, 301), tie_word_embeddings=True, lengths=(1, 18, 93))
    case("qwen2-mha-head-dim", "qwen2", (64, 128, 2, 4, 4, 220), head_dim=20, lengths=(1, 18, 93))
    case("qwen2-window-unused", "qwen2", (64, 128, 2, 4, 2, 220), sliding_window=16, max_window_layers=0,
         lengths=(1, 60), teeth=[{"use_sliding_window": True}])
    case("qwen2-window-upper-layers", "qwen2", (64, 128, 3, 4, 2, 220), use_sliding_window=True, sliding_window=20,
         max_window_layers=1, old=True, lengths=(1, 19, 20, 21, 110), steps=24,
         teeth=[{"max_window_layers": 0}, {"max_window_layers": 2}, {"use_sliding_window": False}])
    case("qwen2-window-layer-types", "qwen2", (64, 128, 3, 4, 2, 220), use_sliding_window=True, sliding_window=20,
         layer_types=["sliding_attention", "full_attention", "sliding_attention"], lengths=(1, 22, 110), steps=24,
         teeth=[{"layer_types": ["full_attention"] * 3}, {"layer_types": ["sliding_attention"] * 3},
                {"layer_types": None}])

    # Qwen3: norms of queries and keys.
    case("qwen3", "qwen3", (64, 128, 2, 4, 2, 304), head_dim=32, rope={"rope_theta": 1000000.0}, rms_norm_eps=1e-6,
         lengths=(1, 5, 40, 256))
    case("qwen3-tied", "qwen3", (48, 112, 2, 6, 2, 256), head_dim=16, tie_word_embeddings=True, old=True, lengths=(1, 28, 97),
         teeth=[{"rope_theta": 9000.0}])
    case("qwen3-attention-bias", "qwen3", (64, 112, 2, 5, 1, 256), head_dim=24, attention_bias=True, lengths=(1, 29, 94))
    case("qwen3-default-head-dim", "qwen3", (32, 64, 2, 2, 1, 128), lengths=(1, 30, 72))
    case("qwen3-window", "qwen3", (64, 128, 2, 4, 4, 200), head_dim=16, use_sliding_window=True, sliding_window=12,
         max_window_layers=1, lengths=(1, 11, 80), dtype="F16", shards=2,
         teeth=[{"max_window_layers": 0}, {"use_sliding_window": False}])

    # Rope kinds, in both spellings.
    shape = (64, 112, 2, 4, 2, 224)
    case("rope-theta-small", "llama", shape, rope={"rope_theta": 100.0}, lengths=(1, 45, 200),
         teeth=[{"rope_parameters": {"rope_theta": 10000.0}}])
    case("rope-linear", "llama", shape, rope={"rope_type": "linear", "factor": 4.0}, lengths=(1, 45, 200),
         teeth=[{"rope_parameters": {"factor": 2.0}}])
    case("rope-linear-old", "llama", shape, rope={"rope_type": "linear", "factor": 2.5}, old=True, lengths=(1, 45, 200),
         teeth=[{"rope_scaling": None}])
    case("rope-linear-type-key", "qwen2", shape, rope={"rope_type": None, "type": "linear", "factor": 2.5}, old=True,
         lengths=(1, 45, 121), teeth=[{"rope_scaling": None}])
    case("rope-dynamic", "llama", shape, rope={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=64,
         lengths=(1, 33, 63, 64, 65, 180), steps=24, teeth=[{"rope_parameters": {"rope_type": "default"}}, {"max_position_embeddings": 128}])
    case("rope-dynamic-old", "llama", shape, rope={"rope_type": "dynamic", "factor": 2.0}, old=True, steps=24,
         max_position_embeddings=48, lengths=(1, 36, 48, 72), teeth=[{"rope_scaling": None}])
    case("rope-dynamic-qwen3", "qwen3", shape, rope={"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=56,
         head_dim=32, lengths=(1, 44, 131), steps=24, teeth=[{"rope_parameters": {"rope_type": "default"}}])
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 128}
    case("rope-llama3", "llama", shape, rope=llama3, head_dim=32, lengths=(1, 45, 256),
         teeth=[{"rope_parameters": {"rope_type": "default"}}, {"rope_parameters": {"high_freq_factor": 3.0}},
                {"rope_parameters": {"low_freq_factor": 2.0}}, {"rope_parameters": {"original_max_position_embeddings": 256}}])
    case("rope-llama3-old", "llama", shape, rope={**llama3, "factor": 32.0, "rope_theta": 500000.0}, old=True,
         tie_word_embeddings=True, lengths=(1, 45, 256), teeth=[{"rope_scaling": None}])
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    case("rope-yarn", "llama", shape, rope=yarn, max_position_embeddings=256, lengths=(1, 45, 190),
         teeth=[{"rope_parameters": {"attention_factor": 1.0}}, {"rope_parameters": {"factor": 3.0}}])
    case("rope-yarn-old", "qwen2", shape, rope={**yarn, "rope_theta": 1000000.0}, old=True, max_position_embeddings=64,
         lengths=(1, 45, 190), teeth=[{"rope_scaling": None}])
    case("rope-yarn-attention-factor", "qwen3", shape, rope={**yarn, "attention_factor": 0.8}, max_position_embeddings=256,
         head_dim=16, lengths=(1, 45, 130), teeth=[{"rope_parameters": {"attention_factor": None}}])
    case("rope-yarn-mscale", "llama", shape, rope={**yarn, "mscale": 0.7, "mscale_all_dim": 1.5},
         max_position_embeddings=256, head_dim=32, lengths=(1, 45, 130),
         teeth=[{"rope_parameters": {"mscale": None}}, {"rope_parameters": {"mscale_all_dim": 1.0}}])
    case("rope-yarn-betas", "mistral", shape, rope={**yarn, "beta_fast": 4.0, "beta_slow": 2.0}, sliding_window=None,
         max_position_embeddings=256, head_dim=32, lengths=(1, 45, 130),
         teeth=[{"rope_parameters": {"beta_fast": 32.0}}, {"rope_parameters": {"beta_slow": 1.0}}])
    case("rope-yarn-not-truncated", "llama", shape, rope={**yarn, "truncate": False}, max_position_embeddings=256,
         head_dim=32, lengths=(1, 45, 130), teeth=[{"rope_parameters": {"truncate": True}}])


def define_random_cases(count, seed):
    """Cases that nobody chose: architecture, shape, rope, dtype and lengths drawn at random."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def pick(*options):
        return options[int(rng.integers(len(options)))]

    for i in range(count):
        kind = pick(*ARCHITECTURES)
        groups, kv_heads = pick(1, 2, 3, 4, 5, 7, 8), pick(1, 1, 2, 3, 4)
        heads = groups * kv_heads
        head_dim = 2 * int(rng.integers(4, 33))
        hidden = heads * pick(4, 8, 12) if heads > 4 else heads * pick(12, 16, 20, 32)
        shape = (hidden, int(rng.integers(20, 200)), pick(1, 2, 3), heads, kv_heads, int(rng.integers(60, 400)))
        longest = pick(64, 128, 1024)
        rope = pick(
            {}, {}, {"rope_theta": 1000000.0}, {"rope_type": "linear", "factor": pick(2.0, 3.5)},
            {"rope_type": "dynamic", "factor": pick(4.0, 8.0)},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": pick(2.0, 4.0),
             "original_max_position_embeddings": pick(64, 128)},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": longest, **pick({}, {"attention_factor": 1.2})},
        )
        room = longest * (4 if rope.get("rope_type") in ("yarn", "dynamic") else 2 if rope.get("rope_type") == "linear" else 1)
        more = {"head_dim": head_dim, "tie_word_embeddings": pick(True, False), "rms_norm_eps": pick(1e-6, 1e-5, 1e-3)}
        if kind in ("llama", "qwen3"):
            more["attention_bias"] = pick(True, False)
        if kind == "llama":
            more["mlp_bias"] = pick(True, False)
        if kind == "mistral":
            more["sliding_window"] = pick(None, int(rng.integers(8, 60)))
        if kind in ("qwen2", "qwen3"):
            more.update(use_sliding_window=pick(True, False), sliding_window=int(rng.integers(8, 60)),
                        max_window_layers=int(rng.integers(0, shape[2] + 1)))
        lengths = sorted({1, *(int(rng.integers(2, min(room - 24, 513))) for _ in range(3))})
        case(f"random-{seed}-{i}", kind, shape, rope=rope, dtype=pick("BF16", "BF16", "F16", "F32"), old=pick(True, False),
             lengths=lengths, shards=pick(1, 1, 2), max_position_embeddings=longest, **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases to rewrite; all without")
    parser.add_argument("--out", type=Path, default=HERE / "cases")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="write N random cases instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random cases")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.random:
        define_random_cases(args.random, args.seed)
    else:
        define_cases()
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (name, (config, dtype, lengths, steps, shards, teeth, storage)) in enumerate(CASES.items(), 1):
        if args.names and name not in args.names:
            continue
        seed = number + 1000 * (args.seed + 1 if args.random else 0)
        made = {"name": name, "config": config, "shards": shards, "tensors": tensors(config, seed, dtype, **storage)}
        run(made, lengths, steps, teeth)
        dump(args.out / f"{name}.json", made)


if __name__ == "__main__":
    main()
