#!/usr/bin/env python3
"""The same problems with PyTorch, eager and compiled (Triton), beside the benches' figures.

    compare.py SPECS BENCH_OUTPUT        SPECS is codegen/specs, BENCH_OUTPUT what benches/kernels printed

As the benches do it: replays of graphs, every call with a cold L2 cache, the clears' own time taken off. Prints a
Markdown table: microseconds of Burrstone, of PyTorch and of torch.compile, and how many times faster Burrstone is than
the better of the two. Needs PyTorch with a GPU, and Triton for the compiled ones.
"""

import re
import statistics
import sys
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F

COLD = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
CALLS = 16
DTYPE = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def replayed(work, times):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            COLD.zero_()
            if work:
                work()
    graph.replay()
    torch.cuda.synchronize()
    passes = []
    for _ in range(times):
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        passes.append(time.perf_counter() - start)
    return statistics.median(passes) / CALLS


def microseconds(work):
    """Median time of a call; None where PyTorch cannot do or capture it."""
    try:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        return 1e6 * max(replayed(work, 20) - replayed(None, 20), 0.0)
    except Exception as e:  # noqa: BLE001 - whatever it is, the table goes on and says so
        print(f"{type(e).__name__}: {str(e).splitlines()[0]}", file=sys.stderr)
        return None


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=DTYPE)


def act_mul(p, rows):
    gate_up = random(rows, 2 * p["width"])

    def call(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return call, (gate_up,)


def embedding(p, rows):
    table, tokens = random(32_000, p["width"]), torch.arange(rows, device="cuda") * 7919 % 32_000
    return lambda table, tokens: F.embedding(tokens, table), (table, tokens)


def rms_norm(p, rows):
    width = p["width"]
    residual, delta, weight = random(rows, width), random(rows, width), random(width)

    def call(residual, delta, weight):
        residual.add_(delta)
        return F.rms_norm(residual, (width,), weight, 1e-5)

    return call, (residual, delta, weight)


def rotary_kv_write(p, rows):
    heads, kv_heads, d = p["heads"], p["kv_heads"], p["head_dim"]
    qkv = random(rows, heads + 2 * kv_heads, d)
    cos, sin = random(rows, 1, d // 2), random(rows, 1, d // 2)
    slots = torch.arange(rows, device="cuda")
    keys, values = random(rows, kv_heads, d), random(rows, kv_heads, d)

    def call(qkv, cos, sin, slots, keys, values):
        a, b = qkv[:, : heads + kv_heads].float().chunk(2, dim=-1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(DTYPE)
        keys.index_copy_(0, slots, rotated[:, heads:])
        values.index_copy_(0, slots, qkv[:, heads + kv_heads :])
        return rotated[:, :heads]

    return call, (qkv, cos, sin, slots, keys, values)


def matmul(p, rows):
    weight, x = random(p["n"], p["k"]), random(rows, p["k"])
    return F.linear, (x, weight)


def sample(p, case):
    case, rows = case.rsplit("-", 1)
    logits = torch.randn(int(rows), p["vocab"], device="cuda")

    def draw(probabilities):
        # Without a host synchronization: the largest of p / e, e exponential, is a draw from p.
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)

    def greedy(logits):
        best = logits.argmax(-1, keepdim=True)
        return best, logits.log_softmax(-1).gather(-1, best)

    def temperature(logits):
        return draw(logits.softmax(-1))

    def top_p(logits):
        probabilities, order = logits.softmax(-1).sort(-1, descending=True)
        probabilities[probabilities.cumsum(-1) - probabilities > 0.9] = 0.0
        return order.gather(-1, draw(probabilities).unsqueeze(-1))

    def top_k(logits):
        values, order = logits.topk(50, dim=-1)
        return order.gather(-1, draw(values.softmax(-1)).unsqueeze(-1))

    return {"greedy": greedy, "temperature": temperature, "top-p": top_p, "top-k": top_k}[case], (logits,)


def target_logprobs(p, rows):
    logits, targets = torch.randn(rows, p["vocab"], device="cuda"), torch.arange(rows, device="cuda").unsqueeze(-1)
    return lambda logits, targets: logits.log_softmax(-1).gather(-1, targets), (logits, targets)


def attention(p, case):
    """One shape for all sequences, contiguous: what PyTorch does best. It has no ragged decode."""
    heads, kv_heads, d = p["heads"], p["kv_heads"], p["head_dim"]
    kind, size = case.split("-", 1)
    if kind == "prefill":
        batch, length, queries = 1, int(size), int(size)
    else:
        batch, length = map(int, size.split("x"))
        queries = 1
    query = random(batch, heads, queries, d)
    keys, values = random(batch, kv_heads, length, d), random(batch, kv_heads, length, d)
    causal = queries > 1

    def call(query, keys, values):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=causal, enable_gqa=heads != kv_heads)

    return call, (query, keys, values)


# What the case of a bench is: a number of rows, or a name.
ROWS = {"act_mul": act_mul, "embedding": embedding, "rms_norm": rms_norm, "rotary_kv_write": rotary_kv_write,
        "matmul": matmul, "target_logprobs": target_logprobs}
NAMES = {"sample": sample, "attention": attention}


def main():
    specs, output = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
    problems = {spec.stem: {p["label"]: p for p in tomllib.loads(spec.read_text()).get("problem", [])}
                for spec in specs.glob("*.toml")}
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, {DTYPE}; microseconds\n")
    print("| kernel | case | Burrstone | PyTorch | compiled | times faster |\n|---|---|---|---|---|---|")
    for kernel, label, case, ours in re.findall(r"^(\w+)/(.+)/(\S+): best ([\d.]+) µs", output, re.M):
        make = ROWS.get(kernel) or NAMES.get(kernel)
        if not make or case == "decode-ragged":
            continue
        function, arguments = make(problems[kernel][label], int(case) if kernel in ROWS else case)
        eager = microseconds(lambda: function(*arguments))
        torch.compiler.reset()
        compiled = torch.compile(function, dynamic=False)
        fused = None if kernel in ("matmul", "attention") else microseconds(lambda: compiled(*arguments))
        theirs = [t for t in (eager, fused) if t]
        ratio = f"{min(theirs) / float(ours):.2f}" if theirs and float(ours) > 0 else ""
        cells = ["" if t is None else f"{t:.2f}" for t in (eager, fused)]
        print(f"| {kernel} | {label}/{case} | {ours} | {cells[0]} | {cells[1]} | {ratio} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
