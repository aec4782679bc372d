"""Writes rope.json: rotary factors as transformers computes them, for every rope kind.

Usage: python rope.py > rope.json        (needs torch and transformers)
"""

import json

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = [
    {"head_dim": 8},
    {"head_dim": 64, "rope_theta": 500000.0},
    {"head_dim": 128, "rope_theta": 1000000},
    {"head_dim": 16, "rope_scaling": {"type": "linear", "factor": 2.5}},
    {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}},
    {"head_dim": 16, "rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64, "factor": 32.0}},
    {"head_dim": 32, "rope_parameters": LLAMA3 | {"rope_theta": 1234.5, "original_max_position_embeddings": 100}},
    {"head_dim": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"head_dim": 10, "rope_scaling": {"type": "dynamic", "factor": 3}, "rope_theta": 777.0},
    {"head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    {"head_dim": 64, "rope_scaling": {"type": "yarn", "factor": 16.0}},
    {"head_dim": 128, "rope_theta": 1000000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    {"head_dim": 16, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.8}},
    {"head_dim": 16, "rope_scaling": {"rope_type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 1.2, "beta_fast": 16, "beta_slow": 2.5}},
    {"head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "truncate": False, "original_max_position_embeddings": 20}},
    {"head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}},
    {"head_dim": 16, "original_max_position_embeddings": 24, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}},
]


def main():
    transformers.logging.set_verbosity_error()
    out = []
    for case in CASES:
        case = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64} | case
        config = LlamaConfig(**json.loads(json.dumps(case)))
        factors = []
        # A prompt of 50 tokens, of 64, of 97; then tokens 97 and 98 one by one; far positions at last.
        rope = None
        for positions in [range(50), range(64), range(97), [97], [98], [300], [4095], [32000]]:
            if rope is None or len(positions) > 1:
                rope = LlamaRotaryEmbedding(config)
            cos, sin = rope(torch.zeros(1), torch.tensor([list(positions)]))
            half = cos.shape[-1] // 2
            for i, position in enumerate(positions):
                if len(positions) == 1 or position in (0, 1, 7, 49, len(positions) - 1):
                    values = torch.cat([cos[0, i, :half], sin[0, i, :half]]).tolist()
                    factors.append([position, positions[-1] + 1, [float(f"{v:.9g}") for v in values]])
        out.append({"config": case, "factors": factors})
    print("[")
    print(",\n".join(json.dumps(case, separators=(",", ":")) for case in out))
    print("]")


main()
