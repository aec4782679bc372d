#!/usr/bin/env python3
"""Measures the benches' problems with PyTorch, eager and compiled (Triton), and compares the times.

    compare.py SPECS RECORD        SPECS is codegen/specs, RECORD the lines of JSON that benches/kernels appended

Measures as the benches do: events around graph replays, whose calls rotate through sets of random inputs that together
exceed the L2 cache. Prints a Markdown table: median microseconds of Burrstone, PyTorch and torch.compile, and the speedup
of Burrstone over the better of the two; each row is appended to RECORD as well. Needs PyTorch with a GPU, and Triton for
torch.compile.
"""

import json
import statistics
import sys
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F

COLD = 256 << 20
CALLS, REPLAYS, MOST_SETS = 16, 10, 64
DTYPE = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def microseconds(function, sets):
    """Median time of a call; None if PyTorch cannot run or capture it."""
    try:
        for arguments in sets:
            function(*arguments)
        torch.cuda.synchronize()
        calls = -(-CALLS // len(sets)) * len(sets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                function(*sets[i % len(sets)])
        graph.replay()
        times = []
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end) / calls)
        return statistics.median(times)
    except Exception as e:  # noqa: BLE001 - any error is printed, and the table continues
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
        # Avoids a host synchronization: argmax of p / e, with exponential e, is a draw from p.
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
    """Contiguous sequences of equal length, PyTorch's best case. It has no ragged decode."""
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


# A bench's case is a number of rows, or a name.
ROWS = {"act_mul": act_mul, "embedding": embedding, "rms_norm": rms_norm, "rotary_kv_write": rotary_kv_write,
        "matmul": matmul, "target_logprobs": target_logprobs}
NAMES = {"sample": sample, "attention": attention}


def main():
    specs, record = Path(sys.argv[1]), Path(sys.argv[2])
    problems = {spec.stem: {p["label"]: p for p in tomllib.loads(spec.read_text()).get("problem", [])}
                for spec in specs.glob("*.toml")}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    # The last figure of each case.
    figures = {(x["kernel"], x["case"]): x["median_us"] for x in lines if x["record"] == "figure"}
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, {DTYPE}; microseconds\n")
    print("| kernel | case | Burrstone | PyTorch | compiled | times faster |\n|---|---|---|---|---|---|")
    for (kernel, name), ours in figures.items():
        label, _, case = name.rpartition("/")
        make = ROWS.get(kernel) or NAMES.get(kernel)
        if not make or label not in problems.get(kernel, {}) or case in ("decode-ragged", "typical-p-1", "typical-p-512"):
            continue
        problem, which = problems[kernel][label], int(case) if kernel in ROWS else case
        function, first = make(problem, which)
        size = sum(x.numel() * x.element_size() for x in first)
        sets = [first] + [make(problem, which)[1] for _ in range(min(COLD // size, MOST_SETS - 1))]
        eager = microseconds(function, sets)
        torch.compiler.reset()
        compiled = torch.compile(function, dynamic=False)
        fused = None if kernel in ("matmul", "attention") else microseconds(compiled, sets)
        theirs = [t for t in (eager, fused) if t]
        ratio = f"{min(theirs) / ours:.2f}" if theirs and ours > 0 else ""
        cells = ["" if t is None else f"{t:.2f}" for t in (eager, fused)]
        print(f"| {kernel} | {name} | {ours:.2f} | {cells[0]} | {cells[1]} | {ratio} |", flush=True)
        row = {"record": "pytorch", "kernel": kernel, "case": name, "eager_us": eager, "compiled_us": fused}
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
