#!/usr/bin/env python3
"""Writes `guidance.json`: what transformers' classifier-free guidance makes of the built-in model, greedily, in float32.

    python -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    .venv/bin/python generate_guidance.py

A case has the prompt's and the negative prompt's token ids (null: transformers' own choice, the prompt's last token), the
scale, and the tokens. The script refuses a case in which a token is chosen by a hair, or that guidance does not change.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "src/builtin"
TOKENS = 24
CASES = [
    ("And the king said", "In the beginning", 1.5),
    ("And the king said", "And the king said unto the people", 3.0),
    ("In the beginning", "The miller and his wife", 0.4),
    ("And it came to pass", None, 2.0),
]


def main():
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    written = []
    for prompt, negative, scale in CASES:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        negative_ids = tokenizer(negative, return_tensors="pt").input_ids if negative else None

        def generate(**options):
            return model.generate(
                ids, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, output_scores=True,
                return_dict_in_generate=True, **options
            )

        guided = generate(guidance_scale=scale, negative_prompt_ids=negative_ids)
        tokens = guided.sequences[0, ids.shape[1]:].tolist()
        margins = [(best := row[0].topk(2).values)[0].item() - best[1].item() for row in guided.scores]
        assert min(margins) > 1e-3, f"{prompt!r}: by a hair: {min(margins)}"
        assert tokens != generate().sequences[0, ids.shape[1]:].tolist(), f"{prompt!r}: guidance changes nothing"
        written.append({
            "prompt": ids[0].tolist(),
            "negative": negative_ids[0].tolist() if negative else None,
            "scale": scale,
            "tokens": tokens,
        })
    lines = ",\n".join("  " + json.dumps(case) for case in written)
    (HERE / "guidance.json").write_text(f"[\n{lines}\n]\n")


main()
