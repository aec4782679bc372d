"""Quantized layers: the tensors that a checkpoint format stores, of random codes, and what they stand for.

Codes and scales are random, so that nothing has to be packed: each format here describes the tensors of a layer, as
`checkpoints.py` describes dense ones, and unpacks them into float32, which `transformers` then computes with. A format
with eight-bit activations rounds the inputs of its layers too (`rounded`), where its own error is measured.
"""

import json

import numpy as np
import torch

from checkpoints import UNIT

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-x for x in E2M1]


def whole(dtype, shape, mask, base=0):
    return {"dtype": dtype, "shape": list(shape), "mask": mask, "base": base}


def words(shape):
    return whole("I32", shape, 0xFFFFFFFF)


def near(dtype, shape, mean, spread=0.2):
    """Positive numbers about `mean`."""
    return {"dtype": dtype, "shape": list(shape), "scale": round(spread * mean / UNIT * 2**32), "offset": round(mean * 2**32)}


def fields(array, bits, count):
    """The first `count` fields of each row, a stream of bits from the lowest up: `[rows, count]`."""
    rows = np.ascontiguousarray(array).view(np.uint8).reshape(array.shape[0], -1)
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : count * bits].reshape(array.shape[0], count, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(axis=-1)


def e4m3(array):
    return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn).float().numpy()


def spread_of(codes):
    return float(np.std(np.asarray(codes, dtype=np.float64)))


def over(scales, n, k, rows, columns):
    """Scales of blocks for each element."""
    return np.repeat(np.repeat(scales, rows, axis=0)[:n], columns, axis=1)[:, :k].astype(np.float32)


def rounded(x, largest, to):
    """Rows of activations, each by the scale that makes its largest magnitude `largest`."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / largest).clamp(min=1e-12).float()
    return (to(x.float() / scale) * scale).to(x.dtype)


class Awq:
    def __init__(self, group):
        self.group = group
        self.config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}

    def tensors(self, n, k, std):
        groups = k // self.group
        return {"qweight": words((k, n // 8)), "qzeros": words((groups, n // 8)),
                "scales": near("F16", (groups, n), std / 6.5)}

    def dense(self, t, n, k):
        def unpack(array):
            out = np.zeros((array.shape[0], n), dtype=np.int64)
            for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                out[:, column::8] = (array.view(np.uint32) >> np.uint32(4 * i)) & 0xF
            return out

        zeros, scales = (np.repeat(x, self.group, axis=0) for x in (unpack(t["qzeros"]), t["scales"].astype(np.float32)))
        return ((unpack(t["qweight"]) - zeros).astype(np.float32) * scales).T


class Gptq:
    def __init__(self, bits, group, version=1, symmetric=False, act_order=False, head=False, more=()):
        self.bits, self.group, self.version, self.symmetric, self.act_order = bits, group, version, symmetric, act_order
        self.head = head
        self.config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order,
                       "sym": symmetric, "checkpoint_format": "gptq" if version == 1 else "gptq_v2", "lm_head": head,
                       **dict(more)}

    def tensors(self, n, k, std):
        group = k if self.group == -1 else self.group
        groups, bits = k // group, self.bits
        zeros = words((groups, n * bits // 32))
        if self.symmetric:
            middle = 2 ** (bits - 1) - (self.version == 1)
            zeros.update(mask=0, base=sum(middle << (bits * i) for i in range(32 // bits)))
        std /= 2**bits / 12**0.5 * (1 if self.symmetric else 2**0.5)
        order = {"dtype": "I32", "shape": [k], "groups": group} if self.act_order else {"dtype": "I32", "shape": [k], "each": group}
        return {"qweight": words((k * bits // 32, n)), "qzeros": zeros, "scales": near("F16", (groups, n), std), "g_idx": order}

    def dense(self, t, n, k):
        codes = fields(t["qweight"].T, self.bits, k)
        zeros = fields(t["qzeros"], self.bits, n)
        if self.version == 1:
            zeros = (zeros + 1) % 2**self.bits
        groups = t["g_idx"]
        return (codes - zeros[groups].T).astype(np.float32) * t["scales"].astype(np.float32)[groups].T


class CompressedTensors:
    """Schemes by pattern; layers that none matches are dense."""

    def __init__(self, schemes, embedding=False):
        self.schemes, self.embedding = schemes, embedding
        groups = {f"group_{i}": {"targets": [target], "format": scheme.format, "weights": scheme.weights,
                                 "input_activations": scheme.inputs, "output_activations": None}
                  for i, (target, scheme) in enumerate(schemes)}
        formats = {scheme.format for _, scheme in schemes}
        self.config = {"quant_method": "compressed-tensors", "ignore": [] if embedding else ["lm_head"],
                       "format": formats.pop() if len(formats) == 1 else "mixed-precision", "config_groups": groups,
                       "kv_cache_scheme": None, "quantization_status": "compressed"}


class Packed:
    format, inputs = "pack-quantized", None

    def __init__(self, bits, group=None, symmetric=True, dtype="BF16"):
        self.bits, self.group, self.symmetric, self.dtype = bits, group, symmetric, dtype
        self.weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group,
                        "strategy": "group" if group else "channel", "dynamic": False, "actorder": None}

    def tensors(self, n, k, std):
        bits, groups = self.bits, k // (self.group or k)
        std /= 2**bits / 12**0.5 * (1 if self.symmetric else 2**0.5)
        out = {"weight_packed": words((n, -(-k * bits // 32))), "weight_scale": near(self.dtype, (n, groups), std),
               "weight_shape": {"dtype": "I64", "shape": [2], "values": [n, k]}}
        if not self.symmetric:
            out["weight_zero_point"] = words((-(-n * bits // 32), groups))
        return out

    def dense(self, t, n, k):
        codes, zeros = fields(t["weight_packed"], self.bits, k), 2 ** (self.bits - 1)
        if not self.symmetric:
            zeros = over(fields(t["weight_zero_point"].T, self.bits, n).T, n, k, 1, self.group or k).astype(np.int64)
        return (codes - zeros).astype(np.float32) * over(t["weight_scale"], n, k, 1, self.group or k)


class Float:
    """e4m3 in compressed-tensors' names; `block` is (rows, columns), or None for a scale of each row."""

    def __init__(self, block=None, inputs=True, format="float-quantized"):
        self.block, self.format = block, format
        self.inputs = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"} if inputs else None
        self.weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block" if block else "channel",
                        "block_structure": list(block) if block else None}
        self.scale = "weight_scale"

    def round(self, x):
        return rounded(x, 448, lambda x: x.to(torch.float8_e4m3fn).float()) if self.inputs else x

    def tensors(self, n, k, std):
        rows, columns = self.block or (1, k)
        return {"weight": whole("F8_E4M3", (n, k), 0xBF),
                self.scale: near("F32", (-(-n // rows), -(-k // columns)), std / 0.55)}

    def dense(self, t, n, k):
        rows, columns = self.block or (1, k)
        return e4m3(t["weight"]) * over(t[self.scale], n, k, rows, columns)


class Fp8(Float):
    """As `transformers` writes it: blocks, or a scale for the tensor."""

    def __init__(self, block=None):
        super().__init__(block)
        self.scale = "weight_scale_inv" if block else "weight_scale"
        self.config = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
        if block:
            self.config.update(fmt="e4m3", weight_block_size=list(block))

    def tensors(self, n, k, std):
        out = super().tensors(n, k, std)
        if not self.block:
            out[self.scale] = near("F32", (), std / 0.55)
        return out

    def dense(self, t, n, k):
        return super().dense(t, n, k) if self.block else e4m3(t["weight"]) * t[self.scale]


class Int8:
    format = "int-quantized"
    inputs = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}

    def round(self, x):
        return rounded(x, 127, torch.round)

    def tensors(self, n, k, std):
        return {"weight": whole("I8", (n, k), 0xFF), "weight_scale": near("F32", (n, 1), std / 73.9)}

    def dense(self, t, n, k):
        return t["weight"].astype(np.float32) * t["weight_scale"]


class MxFp4:
    format, inputs = "mxfp4-pack-quantized", None
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}

    def tensors(self, n, k, std):
        middle = 127 + round(np.log2(std / spread_of(E2M1)))
        return {"weight_packed": whole("U8", (n, k // 2), 0xFF), "weight_scale": whole("U8", (n, k // 32), 1, middle)}

    def dense(self, t, n, k):
        return np.array(E2M1, dtype=np.float32)[fields(t["weight_packed"], 4, k)] * over(2.0 ** (t["weight_scale"].astype(np.int64) - 127), n, k, 1, 32)


class NvFp4:
    format, inputs = "nvfp4-pack-quantized", None
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}

    def tensors(self, n, k, std):
        # Scales from 2 to 3.75.
        return {"weight_packed": whole("U8", (n, k // 2), 0xFF), "weight_scale": whole("F8_E4M3", (n, k // 16), 7, 0x40),
                "weight_global_scale": near("F32", (1,), 2.9 * spread_of(E2M1) / std)}

    def dense(self, t, n, k):
        scales = e4m3(t["weight_scale"]) / t["weight_global_scale"]
        return np.array(E2M1, dtype=np.float32)[fields(t["weight_packed"], 4, k)] * over(scales, n, k, 1, 16)


class Nf4:
    block, nested = 64, 256

    def __init__(self):
        self.config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                       "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": ["lm_head"]}

    def tensors(self, n, k, std):
        blocks, mean = n * k // self.block, float(np.float32(std / spread_of(NF4)))
        self.offset = mean
        state = {"quant_type": "nf4", "blocksize": self.block, "dtype": "bfloat16", "shape": [n, k],
                 "nested_blocksize": self.nested, "nested_dtype": "float32", "nested_offset": mean}
        text = json.dumps(state)
        text += " " * (len(text) % 2)
        return {"weight": whole("U8", (n * k // 2, 1), 0xFF), "weight.absmax": whole("U8", (blocks,), 0xFF),
                "weight.quant_map": {"dtype": "F32", "shape": [16], "values": NF4},
                "weight.nested_quant_map": {"dtype": "F32", "shape": [256], "scale": round(0.2 / UNIT * 2**32), "offset": 0},
                "weight.nested_absmax": near("F32", (-(-blocks // self.nested),), mean),
                "weight.quant_state.bitsandbytes__nf4": {"dtype": "U8", "shape": [len(text)], "text": text}}

    def dense(self, t, n, k):
        state = json.loads(bytes(t["weight.quant_state.bitsandbytes__nf4"]))
        maxima = np.repeat(t["weight.nested_absmax"], self.nested)[: n * k // self.block]
        scales = t["weight.nested_quant_map"][t["weight.absmax"]] * maxima + np.float32(state["nested_offset"])
        halves = np.stack([t["weight"] >> 4, t["weight"] & 0xF], axis=-1).reshape(-1)
        return (np.array(NF4, dtype=np.float32)[halves] * np.repeat(scales, self.block)).reshape(n, k)


class BnbInt8:
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}

    def tensors(self, n, k, std):
        return {"weight": whole("I8", (n, k), 0xFF), "SCB": near("F32", (n,), std / 73.9 * 127)}

    def dense(self, t, n, k):
        return t["weight"].astype(np.float32) * t["SCB"][:, None] / np.float32(127)


def scheme(quantization, layer):
    """How a layer is quantized; None for a dense one."""
    if layer == "model.embed_tokens":
        return quantization.schemes[0][1] if getattr(quantization, "embedding", False) else None
    if layer == "lm_head" and not getattr(quantization, "head", False):
        return None
    if isinstance(quantization, CompressedTensors):
        return next((s for target, s in quantization.schemes if target == "Linear" or target.split(".*")[1] in layer), None)
    return quantization


def round_inputs(model, quantization):
    """Makes the layers of a model round their inputs as their format does."""
    for name, module in model.named_modules():
        how = scheme(quantization, name) if isinstance(module, torch.nn.Linear) else None
        if hasattr(how, "round"):
            module.register_forward_pre_hook(lambda _, inputs, how=how: (how.round(inputs[0]),))
    return model


def tolerance(quantization):
    """What float32 log-probabilities may be off by; None for what the format's own error says. Integers and e2m1 lose
    nothing but a little of the activations. Other codes become bf16 where there is no kernel for them, and activations of
    eight bits lose more."""
    hows = [how for _, how in quantization.schemes] if isinstance(quantization, CompressedTensors) else [quantization]
    return None if any(isinstance(how, (Float, Int8, Nf4)) for how in hows) else 5e-3


def quantized(quantization, dense):
    """The tensors of a dense checkpoint, its linear layers quantized."""
    out = []
    for tensor in dense:
        layer, part = tensor["name"].rsplit(".", 1)
        how = scheme(quantization, layer) if part == "weight" and len(tensor["shape"]) == 2 else None
        if how is None:
            out.append(tensor)
            continue
        n, k = tensor["shape"]
        for i, (part, made) in enumerate(how.tensors(n, k, tensor["scale"] * UNIT / 2**32).items()):
            out.append({"name": f"{layer}.{part}", "seed": tensor["seed"] + 500 + 17 * i, **made})
    return out


def dequantized(quantization, dense, made, arrays):
    """Names and values, float32, of the dense checkpoint that the quantized one stands for."""
    stored = {tensor["name"]: array for tensor, array in zip(made, arrays)}
    for tensor in dense:
        name = tensor["name"]
        layer, part = name.rsplit(".", 1)
        how = scheme(quantization, layer) if name not in stored or stored[name].dtype.itemsize == 1 else None
        if how is None:
            array = stored[name]
            wide = (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array.astype(np.float32)
        else:
            parts = {key[len(layer) + 1 :]: values for key, values in stored.items() if key.startswith(f"{layer}.")}
            parts = {key: (v.astype(np.uint32) << 16).view(np.float32) if v.dtype == np.uint16 else v for key, v in parts.items()}
            wide = how.dense(parts, *tensor["shape"])
        yield name, np.ascontiguousarray(wide, dtype=np.float32)
