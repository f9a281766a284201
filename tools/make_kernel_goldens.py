#!/usr/bin/env python3
"""Writes tests/golden/kernels/ops.txt: inputs and results of the kernels' ops, worked out in NumPy.

Everything runs in float64 and is rounded to BF16 where src/kernels/ops.h says so. One array per
line: case/name, type (bf16, f32, i32), values as hexadecimal bits (i32: decimal). Needs NumPy only.
"""
import pathlib

import numpy as np

RNG = np.random.default_rng(20240229)
LINES = []


def bf16_bits(values):
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16(values):
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def f32(values):
    return np.asarray(values, np.float32).astype(np.float64)


def normal(*shape, scale=1.0):
    return bf16(RNG.normal(size=shape) * scale)


def write(name, kind, values):
    values = np.asarray(values).reshape(-1)
    if kind == "bf16":
        words = [f"{v:04x}" for v in bf16_bits(values)]
    elif kind == "f32":
        words = [f"{v:08x}" for v in values.astype(np.float32).view(np.uint32)]
    else:
        words = [str(int(v)) for v in values]
    LINES.append(" ".join([name, kind, *words]))


def normalize(x, weight, eps, style):
    y = f32(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))
    if style == 0:
        return bf16(bf16(y) * weight)
    return bf16(y * (1 + weight)) if style == 1 else bf16(y * weight)


def rms_norm(style):
    case = f"rms_norm{style}"
    x, delta, weight = normal(3, 40, scale=3), normal(3, 40), f32(RNG.normal(size=40) + (style != 1))
    total = bf16(x + delta)
    write(f"{case}/x", "bf16", x)
    write(f"{case}/delta", "bf16", delta)
    write(f"{case}/weight", "f32", weight)
    write(f"{case}/sum", "bf16", total)
    write(f"{case}/out", "bf16", normalize(total, weight, 1e-5, style))


def swiglu():
    gate, up = normal(2, 37, scale=4), normal(2, 37)
    silu = bf16(gate / (1 + np.exp(-gate)))
    write("swiglu/gate_up", "bf16", np.concatenate([gate, up], -1))
    write("swiglu/out", "bf16", bf16(silu * up))


def rope():
    heads_q, heads_k, dim, rotary = 4, 2, 24, 16
    positions = np.array([0, 5, 31])
    inverse = 1e4 ** (-2.0 * np.arange(rotary // 2) / rotary)
    angle = np.arange(32)[:, None] * inverse
    cos, sin = bf16(np.cos(angle)), bf16(np.sin(angle))
    qkv = normal(3, heads_q + 2 * heads_k, dim)
    norm_q, norm_k = f32(RNG.normal(size=dim) + 1), f32(RNG.normal(size=dim) + 1)

    def turn(x):  # (T, heads, dim)
        c, s = cos[positions][:, None], sin[positions][:, None]
        half = rotary // 2
        a, b, rest = x[..., :half], x[..., half:rotary], x[..., rotary:]
        first = bf16(bf16(a * c) + bf16(-b * s))
        second = bf16(bf16(b * c) + bf16(a * s))
        return np.concatenate([first, second, rest], -1)

    q = turn(normalize(qkv[:, :heads_q], norm_q, 1e-6, 0))
    k = turn(normalize(qkv[:, heads_q:heads_q + heads_k], norm_k, 1e-6, 0))
    write("rope/qkv", "bf16", qkv)
    write("rope/q_norm", "f32", norm_q)
    write("rope/k_norm", "f32", norm_k)
    write("rope/cos", "f32", cos)
    write("rope/sin", "f32", sin)
    write("rope/positions", "i32", positions)
    write("rope/q", "bf16", q)
    write("rope/k", "bf16", k)
    write("rope/v", "bf16", qkv[:, heads_q + heads_k:])


def attention(case, window, with_sinks):
    heads_q, heads_k, dim, length, queries = 6, 2, 20, 40, 3
    q = normal(queries, heads_q, dim, scale=2)
    k, v = normal(length, heads_k, dim), normal(length, heads_k, dim)
    sinks = f32(RNG.normal(size=heads_q)) if with_sinks else None
    scale = float(np.float32(dim**-0.5))
    out = np.zeros_like(q)
    for i in range(queries):
        position = length - queries + i
        first = max(0, position - window + 1) if window else 0
        for h in range(heads_q):
            group = h // (heads_q // heads_k)
            scores = k[first:position + 1, group] @ q[i, h] * scale
            weights = np.exp(scores)
            total = weights.sum() + (np.exp(sinks[h]) if with_sinks else 0)
            out[i, h] = weights @ v[first:position + 1, group] / total
    write(f"{case}/q", "bf16", q)
    write(f"{case}/k", "bf16", k)
    write(f"{case}/v", "bf16", v)
    if with_sinks:
        write(f"{case}/sinks", "f32", sinks)
    write(f"{case}/out", "bf16", bf16(out))


def sample(index, temperature, top_k, top_p, min_p):
    logits = f32(RNG.normal(size=60) * 3)
    order = np.argsort(-logits, kind="stable")
    p = np.exp((logits - logits.max()) / float(np.float32(temperature)))
    keep = order[:top_k] if top_k else order
    if top_p < 1:
        share = np.cumsum(p[keep]) / p[keep].sum()
        keep = keep[:int(np.searchsorted(share, float(np.float32(top_p)))) + 1]
    if min_p:
        keep = keep[p[keep] >= float(np.float32(min_p)) * p[keep].max()]
    probability = np.zeros(60)
    probability[keep] = p[keep] / p[keep].sum()
    case = f"sample{index}"
    write(f"{case}/settings", "f32", [temperature, top_k, top_p, min_p])
    write(f"{case}/logits", "f32", logits)
    write(f"{case}/probability", "f32", probability)


for style in range(3):
    rms_norm(style)
swiglu()
rope()
attention("attention", 0, False)
attention("attention_window", 9, False)
attention("attention_sinks", 9, True)
SETTINGS = [(1, 0, 1, 0), (0.7, 0, 1, 0), (1, 8, 1, 0), (1, 1, 1, 0), (1, 0, 0.9, 0), (1.5, 0, 0.5, 0),
            (1, 0, 1, 0.1), (0.8, 20, 0.95, 0), (2, 30, 0.9, 0.05), (1, 60, 0.99, 0.01), (1, 0, 1e-6, 0)]
for i, settings in enumerate(SETTINGS):
    sample(i, *settings)

path = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/kernels/ops.txt"
path.write_text("\n".join(LINES) + "\n")
print(f"{path}: {len(LINES)} arrays, {path.stat().st_size} bytes")
