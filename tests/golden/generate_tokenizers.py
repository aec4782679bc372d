#!/usr/bin/env python3
"""Writes `tokenizers/*.json` and `tokenizers.json`: text and token ids as the library of transformers has them.

    python -m venv .venv && .venv/bin/pip install tokenizers==0.23.3
    .venv/bin/python generate_tokenizers.py

The tokenizers are tiny and made here, one of each build that checkpoints use. `tokenizers.json` holds texts with their
ids, and ids (also such that no text gives) with their text, and what a
continuation adds to the text of its prompt. Running it again gives the same bytes.
"""

import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent

CORPUS = """
The miller lifts the upper stone and dresses it before the grain is brought in from the fields.
A stone that is well dressed turns for a hundred hours; a stone that is not grinds itself away.
Water comes down the race, the wheel goes round, and the whole house trembles a little as it does.
She counted 12 sacks, then 120, then 1,200 of them; 3.14 bushels were left over at 7:45 in the morning.
"Is it finished?" asked the baker. "It isn't," said the miller, "and it won't be before noon; you'll have to wait."
def grind(grain, stones=2):\n    return [flour(g) for g in grain if g.weight > 0.5]\n
Die Mühle steht am Bach, das Rad läuft schnell und der Müller hört das Wasser über die Steine fließen.
Le meunier est fatigué; où est passée la farine? Là-bas, près de l'écluse, à côté du vieux chêne.
Мельник проснулся рано утром и пошёл к реке, чтобы посмотреть на воду и на старое колесо.
磨坊在河边。磨坊主每天早上起来看水。石头很重，水很快。
水車小屋のそばに大きな石があります。朝になると粉をひきます。
""".strip().split("\n")

TEXTS = [
    "",
    " ",
    "The miller lifts the stone.",
    "  two spaces before,   three inside, one after ",
    "line one\nline two\r\n\n\ttabbed\n",
    "isn't you'll WE'VE it's",
    "0 12 345 6789 3.14159 1,000,000",
    "fn main() { let x = vec![1, 2, 3]; println!(\"{x:?}\"); }",
    "Müller, chêne, où, Straße, naïve",
    "e\u0301 and é, o\u0308 and ö, a\u0323\u0302, q\u0307\u0323",
    "磨坊在河边。水很快",
    "朝になると粉をひきます。",
    "한국어 문장도 있습니다.",
    "Мельник проснулся",
    "שלום עולם، مرحبا بالعالم",
    "😀 🌾🪨 👩\u200d🔬 👨\u200d👩\u200d👧\u200d👦 🇩🇪🇫🇷 👍🏽",
    "a😀b\u200d\ufe0fc\u00a0d\u3000e\u2028f",
    "𝔹𝕦𝕣𝕣 𐍈 \U0001f9ff \U0010fffd",
    "mixed 中文 and English 和 emoji 🎉!",
    "\u0000\u0001\u007f\u00ad",
    "▁ already there ▁▁ Ġ Ċ",
    "<s> and </s> spelled out<|end|>glued <unk>",
    "trailing newline and spaces  \n  ",
    "<0x41> is not a byte",
]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def special(*names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level():
    """GPT-2 and its heirs: a regular expression, bytes in their printable alphabet."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special(*SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(CORPUS, trainer)
    return made


def byte_level_split():
    """Llama 3 and Qwen: a split of its own before the bytes, NFC, a begin-of-text token."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special(*SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(CORPUS, trainer)
    # An added token that is not special keeps its text, whatever is skipped.
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False), AddedToken("grindstone", normalized=True)])
    made.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]),
    ])
    return made


def bpe_pieces(vocab_size, normalizer, pre_tokenizer):
    """Pieces in the order of their ids, and the merges that make them."""
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    # The most frequent characters; the trainer's own choice among equals differs from run to run.
    counts = Counter("".join(CORPUS).replace(" ", "▁"))
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:90]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, limit_alphabet=90, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def with_bytes(vocab_size, normalizer, pre_tokenizer):
    """A BPE vocabulary in the order of SentencePiece: special tokens, the 256 bytes, then pieces."""
    pieces, merges = bpe_pieces(vocab_size, normalizer, pre_tokenizer)
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    vocab = {name: at for at, name in enumerate(dict.fromkeys(names))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(special(*SPECIAL))
    return made


def begin(made):
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def sentencepiece():
    """Llama 1 and 2 as first converted: a space put before the text by the normalizer, bytes for unknown characters."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = with_bytes(220, marks, pre_tokenizers.Metaspace(prepend_scheme="never"))
    made.normalizer = marks
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0),
    ])
    return begin(made)


def metaspace():
    """The same in the newer build: the space comes from the pre-tokenizer, and only at the very start."""
    made = with_bytes(220, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0),
    ])
    return begin(made)


def gemma():
    """No space is added or taken away."""
    marks = normalizers.Replace(" ", "▁")
    made = with_bytes(230, marks, pre_tokenizers.Metaspace(prepend_scheme="never"))
    made.normalizer = marks
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return begin(made)


def unigram():
    """T5's kind: a language model over pieces, Metaspace on both sides, and nothing for unknown characters."""
    # The library's trainer is not deterministic: pieces as BPE finds them, and how often they occur.
    text = " ".join(CORPUS).replace(" ", "▁")
    pieces = bpe_pieces(240, None, pre_tokenizers.Metaspace())[0]
    scores = {piece: round(math.log(max(text.count(piece), 1) / len(text)), 6) for piece in pieces}
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    made = Tokenizer(models.Unigram([(name, 0.0) for name in SPECIAL] + ordered, SPECIAL.index("<unk>"), False))
    made.add_special_tokens(special(*SPECIAL))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level-split": byte_level_split,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "gemma": gemma,
    "unigram": unigram,
}


def decode(made, ids, skip_special):
    """As `Tokenizer.decode`, where a run of byte tokens that is not UTF-8 keeps its whole characters.

    The library turns every byte of such a run to U+FFFD. A stream has shown the characters before it meets the bad byte.
    """
    special = {token.content for token in made.get_added_tokens_decoder().values() if token.special}
    tokens = [token for token in map(made.id_to_token, ids) if not (skip_special and token in special)]
    if '"ByteFallback"' not in made.to_str():
        return made.decoder.decode(tokens)
    byte = re.compile(r"<0x([0-9A-F]{2})>")
    out = []
    for is_run, run in itertools.groupby(tokens, key=lambda token: byte.fullmatch(token) is not None):
        if not is_run:
            out += run
            continue
        rest = bytes(int(byte.fullmatch(token)[1], 16) for token in run)
        while rest:
            length = next((n for n in range(1, 5) if is_character(rest[:n])), None)
            out += [f"<0x{b:02X}>" for b in rest[:length]] if length else ["\ufffd"]
            rest = rest[length or 1 :]
    return made.decoder.decode(out)


def is_character(data):
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def decoded(made, ids):
    return {
        "ids": ids,
        "text": decode(made, ids, False),
        "text_without_special": decode(made, ids, True),
    }


def continued(made, sequences):
    """What the later part of a sequence adds to the text of its first part."""
    out = []
    for ids in sequences:
        for at in sorted({1 if len(ids) < 10 else 0, len(ids) // 2} - {0}) if len(ids) > 1 else []:
            before, whole = decode(made, ids[:at], True), decode(made, ids, True)
            if whole.startswith(before):
                out.append({"prompt": ids[:at], "ids": ids[at:], "text": whole[len(before) :]})
    return out


def write_tokenizers():
    folder = HERE / "tokenizers"
    folder.mkdir(exist_ok=True)
    out = {}
    for name, make in TOKENIZERS.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(make().to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
        made = Tokenizer.from_file(str(path))
        encode = [
            {"text": text, "ids": made.encode(text).ids, "plain": made.encode(text, add_special_tokens=False).ids}
            for text in TEXTS
        ]
        # What encoding gives, cut short, and what only a random model would say.
        rng = random.Random(name)
        size = made.get_vocab_size()
        sequences = [e["ids"] for e in encode] + [e["plain"][: len(e["plain"]) // 2] for e in encode if len(e["plain"]) > 3]
        sequences += [[rng.randrange(size) for _ in range(length)] for length in (1, 2, 3, 5, 8, 13, 21, 34, 55)]
        # Bytes rather than pieces: broken characters beside whole ones.
        bytes_first = [made.token_to_id(f"<0x{b:02X}>") for b in range(256)]
        if None not in bytes_first:
            for length in (1, 2, 4, 9, 20, 40):
                sequences.append([bytes_first[rng.choice([0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80])] for _ in range(length)])
            sequences.append([bytes_first[b] for b in "Zoë 磨🌾".encode()] + made.encode(" ok", add_special_tokens=False).ids)
        out[name] = {
            "encode": encode,
            "decode": [decoded(made, ids) for ids in sequences],
            "continue": continued(made, sequences),
        }
        print(f"{name}: {size} tokens, {len(encode)} texts, {len(sequences)} sequences")

    def line(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = []
    for name, cases in out.items():
        lists = [f"{line(kind)}:[\n" + ",\n".join(line(c) for c in items) + "\n]" for kind, items in cases.items()]
        parts.append(f"{line(name)}:{{" + ",\n".join(lists) + "}")
    (HERE / "tokenizers.json").write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    write_tokenizers()
