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

The tensors of quantized layers (`quantized.py`) are whole numbers, `(z & mask) + base` in the stored dtype, or given as
`values` or `text`; `g_idx` is `i // each`, or a permutation of that, by `z`, in which inputs are sorted into `groups`.
Their reference is the same model of the float32 weights that they stand for. `tolerance` is what float32 log-probabilities
may be off by; without one it is what `native_error` says, which includes the rounding of eight-bit activations.

A case holds, for several prompts,

- `logprobs`: log-probability of each prompt token but the first, from one forward pass of the stored weights in float32;
- `native_error`: the difference to it of the same pass in the checkpoint's own dtype (`transformers` as a user runs it);
- `greedy`, `greedy_logprobs`, `margins`: the most likely continuation in float32, token by token through the KV cache, and
  how far the log-probability of the second best token lies below.

`cases.py` chooses the shapes, `checkpoints.py` and `quantized.py` make the weights. `teeth` are changes of the configuration that someone
may get wrong; the script refuses a case whose figures they would not visibly change. Threads and seeds are fixed: running it again on the same kind of CPU gives the same bytes.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache

sys.dont_write_bytecode = True  # leave no folder in the source tree

from cases import CASES, define_cases, define_random_cases
from checkpoints import checksum, tensors, values, write_checkpoint
from quantized import dequantized, quantized, round_inputs, tolerance

HERE = Path(__file__).resolve().parent
# A change of log-probabilities that no tolerance of the test would let pass.
VISIBLE = 0.05


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


def write_dequantized(folder, case, dense, quantization):
    """The dense checkpoint that a quantized one stands for; returns the checksum of the quantized one."""
    config = {key: value for key, value in case["config"].items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = [values(tensor) for tensor in case["tensors"]]
    weights = dequantized(quantization, dense, case["tensors"], arrays)
    save_file({name: torch.from_numpy(array) for name, array in weights}, folder / "model.safetensors", metadata={"format": "pt"})
    return checksum(arrays)


@torch.no_grad()
def run(case, lengths, steps, teeth, dense, quantization):
    """Fills in the case's checksum and prompts."""
    rng = np.random.Generator(np.random.PCG64(dense[0]["seed"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if quantization:
            case["checksum"] = write_dequantized(folder, case, dense, quantization)
        else:
            case["checksum"] = write_checkpoint(folder, case)
        native_dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dense[0]["dtype"]]
        case["prompts"], spread = [], []
        for length in lengths:
            tokens = rng.integers(0, case["config"]["vocab_size"], length).tolist()
            # A model of its own for each pass: a rotary embedding of the dynamic kind remembers the longest sequence.
            wide = score(load(folder, torch.float32), tokens)
            native_model = load(folder, native_dtype)
            native = score(round_inputs(native_model, quantization) if quantization else native_model, tokens)
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
    for number, (name, (config, dtype, lengths, steps, shards, teeth, storage, quantization)) in enumerate(CASES.items(), 1):
        if args.names and name not in args.names:
            continue
        seed = number + 1000 * (args.seed + 1 if args.random else 0)
        dense = tensors(config, seed, dtype, **storage)
        stored = quantized(quantization, dense) if quantization else dense
        made = {"name": name, "config": config, "shards": shards, "tensors": stored}
        if quantization:
            made["tolerance"] = tolerance(quantization)
        run(made, lengths, steps, teeth, dense, quantization)
        dump(args.out / f"{name}.json", made)


if __name__ == "__main__":
    main()
