#!/usr/bin/env python3
"""Weights of goldens by formula, so that checkpoints need not be committed.

A golden's weights.json has a seed and per tensor [dtype, shape, kind, parameters...]:
  floats CENTRE SPREAD   uniform in centre ± spread, rounded to the dtype
  bits                   every bit random: E2M1 codes
  bytes BASE MASK        BASE + (0 .. MASK): scale codes
  e4m3                   every E4M3 code but the NaNs
Bits are those of src/models/dummy_values.h, a pure function of (seed, tensor name, element);
src/testing/golden_weights.h makes the same checkpoint from the same file. What the codes of a format stand for is worked
out here, in NumPy.

    tools/golden_weights.py tests/golden/llama_0/nvfp4 FOLDER     writes a checkpoint that can be loaded
"""
import json
import pathlib
import shutil
import struct
import sys

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
FRACTION, EXPONENT = np.arange(128) % 8, np.arange(128) // 8
E4M3 = np.where(EXPONENT == 0, FRACTION / 512, (1 + FRACTION / 8) * np.exp2(EXPONENT - 7.0)).astype(np.float32)
E4M3 = np.concatenate([E4M3, -E4M3])  # index: code; those of NaN are not made

STORAGE = {"BF16": np.uint16, "F32": np.float32, "U8": np.uint8, "F8_E4M3": np.uint8}
NVFP4_SCALES = 0x5F, 0x1F  # base and mask: up to 448, the largest that producers write


def rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# ---- bits

def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def words(stream, count):
    return mix(stream + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def stream_of(seed, name):
    value = 0xCBF29CE484222325  # FNV-1a
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return mix(words(np.array([seed], np.uint64), 1) ^ np.uint64(value))


def rounded_to_bf16(values):
    """FP32 → codes, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def stored_values(seed, name, dtype, shape, kind, *parameters):
    """A tensor of weights.json as it is stored: codes, or FP32."""
    count = int(np.prod(shape))
    if kind == "floats":
        centre, spread = (np.float32(parameter) for parameter in parameters)
        step = spread / np.float32(32768)
        noise = words(stream_of(seed, name), (count + 3) // 4).view(np.int16)[:count].astype(np.float32)
        values = (centre + np.float32(0.5) * step) + step * noise
        return (rounded_to_bf16(values) if dtype == "BF16" else values).reshape(shape)
    codes = words(stream_of(seed, name), (count + 7) // 8).view(np.uint8)[:count]
    if kind == "bytes":
        base, mask = parameters
        codes = (codes & mask) + np.uint8(base)
    elif kind == "e4m3":
        codes = codes - (codes & 0x7F == 0x7F).astype(np.uint8)
    return codes.reshape(shape)


# ---- checkpoints

def short(number):
    return float(f"{number:.5g}")


class Checkpoint:
    """Grows tensor by tensor; methods add tensors and return what they stand for, in FP32."""

    def __init__(self, seed):
        self.seed, self.tensors = seed, {}

    def add(self, name, dtype, shape, kind, *parameters):
        self.tensors[name] = [dtype, list(shape), kind, *parameters]
        return stored_values(self.seed, name, *self.tensors[name])

    def floats(self, name, shape, centre, deviation, dtype="BF16"):
        values = self.add(name, dtype, shape, "floats", short(centre), short(deviation * 3**0.5))
        return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values

    def scales(self, name, shape, about):
        """FP32 that differ by up to a third."""
        return self.add(name, "F32", shape, "floats", short(about), short(about / 3))

    def nvfp4(self, names, shape, deviation, inputs=-1):
        """names: of the packed codes, the scales of 16 and the tensor's scale. inputs: the axis of K, along which codes
        are paired."""
        base, mask = NVFP4_SCALES
        axis = inputs % len(shape)

        def shorter(by):
            return [extent // by if i == axis else extent for i, extent in enumerate(shape)]

        packed = self.add(names[0], "U8", shorter(2), "bits")
        scale = E4M3[self.add(names[1], "F8_E4M3", shorter(16), "bytes", base, mask)]
        scale_2 = self.scales(names[2], [], deviation / rms(E2M1) / rms(E4M3[base:base + mask + 1]))
        codes = np.stack([packed & 15, packed >> 4], axis + 1).reshape(shape)
        return E2M1[codes] * np.repeat(scale * scale_2, 16, axis)

    def mxfp4(self, names, shape, deviation):
        """shape (..., K). names: of the blocks (..., K/32, 16) and their exponents (..., K/32). Returns the codes of both:
        transformers itself says what they stand for."""
        grid = [*shape[:-1], shape[-1] // 32]
        exponent = round(127 + np.log2(deviation / rms(E2M1) / rms([1, 2])))
        return self.add(names[0], "U8", [*grid, 16], "bits"), self.add(names[1], "U8", grid, "bytes", exponent, 1)

    def fp8_blocks(self, names, shape, deviation, block):
        """shape (N, K). names: of the codes and the scales of block x block."""
        codes = self.add(names[0], "F8_E4M3", shape, "e4m3")
        grid = [-(-extent // block) for extent in shape]
        scale = self.scales(names[1], grid, deviation / rms(E4M3[:127]))
        return E4M3[codes] * scale.repeat(block, 0).repeat(block, 1)[:shape[0], :shape[1]]

    def write(self, folder):
        lines = [f"{json.dumps(name)}:{json.dumps(tensor, separators=(',', ':'))}"
                 for name, tensor in self.tensors.items()]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.json").write_text(f'{{"seed":{self.seed},"tensors":{{\n' + ",\n".join(lines) + "\n}}\n")


def write_checkpoint(golden, folder):
    """A golden's config.json and model.safetensors."""
    golden, folder = pathlib.Path(golden), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(golden / "config.json", folder)
    description = json.loads((golden / "weights.json").read_text())
    header, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    by_alignment = sorted(description["tensors"].items(), key=lambda item: -np.dtype(STORAGE[item[1][0]]).itemsize)
    for name, (dtype, shape, *rule) in by_alignment:
        values = stored_values(description["seed"], name, dtype, shape, *rule)
        parts.append(values.astype(STORAGE[dtype]).tobytes())
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_checkpoint(sys.argv[1], sys.argv[2])
