#!/usr/bin/env python3
"""Writes `tokenizer_configs.json`: folders as `AutoTokenizer` of transformers reads them.

    python -m venv .venv && .venv/bin/pip install transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
    .venv/bin/python generate_tokenizer_configs.py

Each case is one of `tokenizers/*.json` beside files that add tokens to it, and what comes of it: token ids, text with
and without special tokens, what a chat template knows by name. Running it again gives the same bytes.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
from transformers import AutoTokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent
TEMPLATE = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}"


def size(name):
    definition = json.loads((HERE / f"tokenizers/{name}.json").read_text())
    return len(definition["model"]["vocab"])


def token(content, special=False, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special, **flags}


def cases():
    """(name, tokenizer, model_type, files, texts, ids beside those of the texts)"""
    n = size("byte-level")
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    texts = ["a<tool>b <tool> c", "x<|eom|> y", " <s> stone</s> ", "the<|end|>stone", "astone stone"]

    def config(**more):
        return {"tokenizer_config.json": {**fast, **more}}

    yield "no files", "byte-level", "llama", {}, texts, []
    yield "added tokens", "byte-level", "llama", config(
        bos_token="<s>", eos_token="</s>",
        added_tokens_decoder={str(n): token("<tool>"), str(n + 1): token("<|eom|>", True)},
    ), texts, [n, n + 1]
    yield "flags", "byte-level", "llama", config(
        added_tokens_decoder={
            str(n): token("<tool>", lstrip=True), str(n + 1): token("<|eom|>", True, rstrip=True),
            str(n + 2): token("stone", single_word=True, normalized=True),
        },
    ), texts, [n, n + 1, n + 2]
    yield "a token becomes special", "byte-level", "llama", config(
        eos_token="<tool>", added_tokens_decoder={str(n): token("<tool>")},
    ), texts, [n]
    yield "a token of the definition changes", "byte-level", "llama", config(
        added_tokens_decoder={"3": token("<|end|>", False, lstrip=True, rstrip=True)},
    ), texts, [3]
    yield "extra special tokens", "byte-level", "llama", config(
        pad_token="<|pad|>", additional_special_tokens=["<tool>", "<|eom|>"], image_token="<img>",
    ), texts + ["a<|pad|>b<img>"], [n, n + 1, n + 2]
    yield "a dictionary of extra special tokens", "byte-level", "llama", config(
        extra_special_tokens={"image_token": "<tool>"},
    ), texts, [n]
    yield "__type", "byte-level", "llama", config(
        bos_token={"__type": "AddedToken", **token("<s>", True)}, eos_token={"__type": "AddedToken", **token("<tool>", True, rstrip=True)},
    ), texts, [n]
    yield "added_tokens.json", "byte-level", "llama", {
        "tokenizer_config.json": fast,
        "special_tokens_map.json": {"eos_token": "<|eom|>", "bos_token": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}},
        "added_tokens.json": {"<tool>": n, "<|eom|>": n + 1},
    }, texts, [n, n + 1]
    yield "special_tokens_map.json alone", "byte-level", "llama", {
        "special_tokens_map.json": {"eos_token": "<tool>", "additional_special_tokens": ["<|eom|>"]},
    }, texts, [n, n + 1]
    yield "special_tokens_map.json beside other names", "byte-level", "llama", {
        "tokenizer_config.json": {**fast, "eos_token": "<s>", "pad_token": "<unk>"},
        "special_tokens_map.json": {"eos_token": "</s>"},
    }, texts, []
    yield "special_tokens_map.json is not read", "byte-level", "llama", {
        "tokenizer_config.json": {**fast, "eos_token": "<s>", "added_tokens_decoder": {str(n): token("<tool>")}},
        "special_tokens_map.json": {"eos_token": "</s>", "additional_special_tokens": ["<|eom|>"]},
        "added_tokens.json": {"<|eom|>": n + 1},
    }, texts, [n]
    yield "names in a text are text", "byte-level", "llama", config(split_special_tokens=True, eos_token="</s>"), texts, []
    yield "add_bos_token is tokenizer.json's", "byte-level", "llama", config(
        add_bos_token=True, add_eos_token=True, bos_token="<s>", eos_token="</s>",
    ), texts, []
    for name, model_type, tokenizer_class in [
        ("sentencepiece", "llama", "LlamaTokenizer"), ("sentencepiece", "llama", "LlamaTokenizerFast"),
        ("sentencepiece", "mistral", "LlamaTokenizer"), ("sentencepiece", "llama", "PreTrainedTokenizerFast"),
        ("sentencepiece", "qwen3", "LlamaTokenizer"), ("gemma", "llama", "GemmaTokenizer"),
        ("byte-level", "llama", "LlamaTokenizer"), ("byte-level", "llama", "GPT2Tokenizer"), ("byte-level", "llama", "Qwen2Tokenizer"),
        ("byte-level", "llama", "GPTNeoXTokenizer"), ("byte-level", "llama", "CohereTokenizerFast"),
        ("byte-level", "llama", "NoSuchTokenizer"), ("byte-level", "mistral", "GPT2Tokenizer"),
        ("byte-level", "qwen2", "LlamaTokenizerFast"), ("byte-level", "qwen3", "PreTrainedTokenizerFast"),
        ("byte-level", "qwen3", "Qwen2Tokenizer"),
    ]:
        # Only what the class says of special tokens: some classes of transformers cut texts in their own way.
        yield f"{tokenizer_class} of {model_type}, {name}", name, model_type, {"tokenizer_config.json": {"tokenizer_class": tokenizer_class}}, [], []
    yield "no class for qwen3", "byte-level", "qwen3", {"tokenizer_config.json": {}}, [], []
    yield "no class for llama", "sentencepiece", "llama", {"tokenizer_config.json": {}}, [], []
    yield "a class in config.json", "sentencepiece", "llama", {"config.json": {"tokenizer_class": "LlamaTokenizer"}}, [], []
    yield "a null hides a default", "sentencepiece", "llama", {
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "bos_token": None, "eos_token": "<|end|>"},
    }, [], []


def run(name, tokenizer, model_type, files, texts, ids):
    files = {"config.json": {}, **files}
    files["config.json"] = {"model_type": model_type, **files["config.json"]}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / f"tokenizers/{tokenizer}.json", f"{folder}/tokenizer.json")
        for file, contents in files.items():
            Path(folder, file).write_text(json.dumps(contents))
        made = AutoTokenizer.from_pretrained(folder)
        encode = [{"text": text, "ids": made(text)["input_ids"]} for text in texts]
        sequences = [e["ids"] for e in encode] + [[i, 10, i] for i in ids]
        decode = [
            {"ids": ids, "text": made.decode(ids), "text_without_special": made.decode(ids, skip_special_tokens=True)}
            for ids in sequences
        ]
        made.chat_template = TEMPLATE
        chat = made.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    return {"name": name, "tokenizer": tokenizer, "files": files, "encode": encode, "decode": decode, "chat": chat}


def main():
    lines = [json.dumps(run(*case), ensure_ascii=False, separators=(",", ":")) for case in cases()]
    (HERE / "tokenizer_configs.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} folders")


if __name__ == "__main__":
    main()
