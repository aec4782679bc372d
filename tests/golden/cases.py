"""The cases: configurations, lengths of prompts, and changes that must show; see `generate.py`."""

import math

import numpy as np
import transformers

from quantized import Awq, BnbInt8, CompressedTensors, Float, Fp8, Gptq, Int8, MxFp4, Nf4, NvFp4, Packed

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


def case(name, kind, shape, rope=(), dtype="BF16", old=False, lengths=SHORT, steps=16, shards=1, teeth=(), storage=(),
         quantization=None, **more):
    config = configuration(kind, shape, dict(rope), dtype, old, **more)
    if quantization:
        config["quantization_config"] = quantization.config
    CASES[name] = (config, dtype, lengths, steps, shards, list(teeth), dict(storage), quantization)


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

    # Prompts that an engine may want to cut into pieces.
    case("long-window", "mistral", (64, 96, 2, 4, 2, 200), sliding_window=70, lengths=(513, 700), steps=8,
         teeth=[{"sliding_window": 69}])
    case("long-dynamic", "llama", shape, rope={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=256,
         lengths=(250, 700), steps=8, teeth=[{"max_position_embeddings": 300}])

    # Quantized layers: formats, widths, groups, orders of inputs, mixes.
    def quantization(name, how, kind="llama", shape=(64, 128, 2, 4, 2, 128), dtype="BF16", lengths=(1, 6, 33), **more):
        case(f"quantized-{name}", kind, shape, dtype=dtype, lengths=lengths, steps=8, quantization=how, **more)

    f16 = {"dtype": "F16"}
    quantization("awq", Awq(32), **f16)
    quantization("awq-group-128", Awq(128), kind="qwen2", shape=(128, 256, 2, 4, 1, 120), **f16, shards=2)
    quantization("gptq", Gptq(4, 32), **f16)
    quantization("gptq-act-order", Gptq(4, 32, act_order=True), kind="qwen2", shape=(96, 160, 2, 6, 2, 120), **f16)
    quantization("gptq-v2-act-order-3-bits", Gptq(3, 64, version=2, act_order=True), shape=(64, 192, 2, 2, 2, 120))
    quantization("gptq-2-bits", Gptq(2, 16), kind="mistral", sliding_window=None, **f16)
    quantization("gptq-3-bits-whole-rows", Gptq(3, -1), **f16)
    quantization("gptq-8-bits-head", Gptq(8, -1, version=2, symmetric=True, head=True), kind="qwen3", head_dim=32)
    quantization("packed-4-bits", CompressedTensors([("Linear", Packed(4, 32))]))
    quantization("packed-4-bits-zero-points", CompressedTensors([("Linear", Packed(4, 16, symmetric=False))]), kind="qwen2")
    quantization("packed-8-bits-embedding", CompressedTensors([("re:.*", Packed(8))], embedding=True), tie_word_embeddings=True)
    quantization("packed-3-bits", CompressedTensors([("Linear", Packed(3, 32, symmetric=False, dtype="F16"))]), **f16)
    quantization("mixed", CompressedTensors([("re:.*self_attn.*", Packed(4, 32)), ("re:.*up_proj", Float(inputs=False, format="naive-quantized"))]))
    quantization("fp8-blocks", Fp8((64, 48)), kind="qwen3", shape=(112, 152, 2, 7, 1, 150), head_dim=16)
    quantization("fp8-tensors", Fp8(), shape=(56, 90, 2, 7, 1, 101), head_dim=10)
    quantization("fp8-rows", CompressedTensors([("Linear", Float())]), shape=(80, 120, 2, 5, 5, 130))
    quantization("int8-rows", CompressedTensors([("Linear", Int8())]), shape=(80, 120, 2, 5, 5, 130))
    quantization("mxfp4", CompressedTensors([("Linear", MxFp4())]))
    quantization("nvfp4", CompressedTensors([("Linear", NvFp4())]), shape=(80, 112, 2, 5, 1, 120), head_dim=16)
    quantization("nf4", Nf4())
    quantization("bitsandbytes-int8", BnbInt8(), dtype="F16", shape=(56, 90, 2, 7, 1, 101), head_dim=10)


def random_quantization(pick, rng):
    bits, dtype = pick(2, 3, 4, 8), pick("BF16", "F16", "F32")
    # Two bits about a middle are mostly negative, and such a model amplifies rounding errors.
    packed = Packed(bits, pick(None, 16, 32), symmetric=bits > 2 and pick(True, False), dtype=dtype)
    blocks = tuple(int(rng.integers(1, 100)) for _ in range(2))
    return pick(
        Awq(pick(16, 32)),
        Gptq(bits, pick(-1, 16, 32), version=pick(1, 2), act_order=pick(True, False)),
        Gptq(pick(4, 8), pick(-1, 16, 32), version=pick(1, 2), symmetric=True, act_order=pick(True, False)),
        CompressedTensors([("Linear", packed)]),
        CompressedTensors([("re:.*self_attn.*", packed), ("re:.*mlp.*", pick(Int8(), MxFp4(), NvFp4(), Float(blocks)))]),
        CompressedTensors([("Linear", pick(Int8(), MxFp4(), NvFp4(), Float(pick(None, blocks))))]),
        Fp8(pick(None, blocks)),
        Nf4(),
        BnbInt8(),
    )


def define_random_cases(count, seed):
    """Cases that nobody chose: architecture, shape, rope, dtype and lengths drawn at random, and in every third how
    layers are quantized."""
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
        quantization = random_quantization(pick, rng) if i % 3 == 2 else None
        if quantization:
            # Whole words and groups of 32 in each direction.
            unit = math.lcm(32, heads)
            more["head_dim"] = -(-head_dim // 32) * 32
            shape = (-(-hidden // unit) * unit, -(-shape[1] // 32) * 32, *shape[2:])
        lengths = sorted({1, *(int(rng.integers(2, min(room - 24, 513))) for _ in range(3))})
        dtype = pick("BF16", "F16") if quantization else pick("BF16", "BF16", "F16", "F32")
        case(f"random-{seed}-{i}", kind, shape, rope=rope, dtype=dtype, old=pick(True, False),
             lengths=lengths, shards=pick(1, 1, 2), max_position_embeddings=longest, quantization=quantization, **more)
