#!/usr/bin/env python3
"""Makes tests/golden/gguf: tiny GGUF files and what other people's code reads from them.

    tools/make_gguf_goldens.py [OUTPUT_FOLDER]

  blocks.gguf        for every tensor type T: `T` with random blocks and `T.expected`, its FP32 values by
                     PyPI's gguf
  llama.gguf, qwen2.gguf, qwen3.gguf
                     one tiny model each, with a mixture of types; llama has llama3's rope_freqs and a
                     SentencePiece vocabulary, the others a byte-level one
  llama-split-*.gguf llama.gguf in two parts
  fp4.gguf           NVFP4 and MXFP4 linears, packed here from the Hugging Face layout
  expected.json      per model: config fields and the SHA-256 of every tensor as BF16 by transformers'
                     import; the merges that transformers' converter recovers; for fp4.gguf the SHA-256
                     of the Hugging Face codes and scales

and the seeds of the fuzz target in tests/fuzz/gguf.

Needs gguf, numpy, torch, transformers, accelerate. Seeded: the output is reproducible.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import generate_merges

RNG = np.random.default_rng(20240)
BLOCK_TYPES = [T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K, T.MXFP4, T.NVFP4]
# Byte offsets of the f16 fields of a block, which must be finite and of a sensible size.
F16_FIELDS = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q4_K: [0, 2],
              T.Q5_K: [0, 2], T.Q6_K: [208]}


def random_blocks(kind: T, shape: tuple[int, ...]) -> np.ndarray:
    """Random bytes with finite scales: every code and every packing of scales occurs."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // block
    data = RNG.integers(0, 256, (count, size), dtype=np.uint8)
    for field in F16_FIELDS.get(kind, []):
        scale = (RNG.uniform(0.5, 2.0, count) * RNG.choice([-0.01, 0.01], count)).astype(np.float16)
        data[:, field:field + 2] = scale.view(np.uint8).reshape(count, 2)
    if kind == T.MXFP4:
        data[:, 0] = RNG.integers(110, 130, count)
    if kind == T.NVFP4:
        data[:, :4] = RNG.integers(0, 0x7F, (count, 4))
    return data.reshape(*shape[:-1], shape[-1] // block * size)


def plain(kind: T, shape: tuple[int, ...]) -> np.ndarray:
    return gguf.quantize(RNG.normal(0, 0.05, shape).astype(np.float32), kind)


def make_blocks(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "blocks")
    for kind in [T.F32, T.F16, T.BF16] + BLOCK_TYPES:
        shape = (3, 512)
        data = plain(kind, shape) if kind in (T.F32, T.F16, T.BF16) else random_blocks(kind, shape)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected = gguf.dequantize(data, kind).astype(np.float32)
        writer.add_tensor(f"{kind.name}.expected", expected)
    write(writer)


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Sizes of the tiny models. K-quants need rows of 256. transformers' import assumes head_dim to be
# hidden / heads for qwen2 and 128 for qwen3.
HIDDEN, FFN = 256, 64


class Sizes(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    layers: int


SIZES = {"llama": Sizes(4, 2, 16, 2), "qwen2": Sizes(16, 4, 16, 1), "qwen3": Sizes(2, 1, 128, 1)}
TYPES = {"attn_q": T.Q4_K, "attn_k": T.Q5_K, "attn_v": T.Q6_K, "attn_output": T.Q8_0, "ffn_gate": T.Q4_0,
         "ffn_up": T.Q5_0, "ffn_down": T.Q5_1}


def byte_level_vocabulary(writer: gguf.GGUFWriter) -> int:
    tokens = list(bytes_to_unicode().values())
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 w", "o r", "\u0120w or"]
    tokens += [merge.replace(" ", "") for merge in merges]
    types = [1] * len(tokens)
    for text, kind in (("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4),
                       ("[PAD0]", 5), ("[PAD1]", 5)):
        tokens.append(text)
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    return len(tokens)


def sentencepiece_vocabulary(writer: gguf.GGUFWriter, expected: dict) -> int:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    pieces = ["\u2581", "t", "h", "e", "n", "a", "\u00e9", "\u6771", "\u4eac", "th", "he", "the", "\u2581t", "\u2581th", "\u2581the",
              "en", "then", "an", "\u2581an", "\u2581a", "\u00e9t", "\u6771\u4eac", "\u2581\u2581"]
    tokens += pieces
    types += [1] * len(pieces)
    scores += [float(-(i // 2)) for i in range(len(pieces))]  # with ties
    tokens.append("<tool>")
    types.append(4)
    scores.append(0.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    ids = {token: index for index, token in enumerate(tokens)}
    expected["merges"] = [list(m) for m in generate_merges(ids, dict(zip(tokens, np.float32(scores).tolist())))]
    return len(tokens)


def llama3_divisors(theta: float, head_dim: int, factor: float = 8.0) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1 (low 1, high 4, original context 8192)."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    divisors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def common_metadata(writer: gguf.GGUFWriter, name: str, sizes: Sizes, theta: float) -> None:
    writer.add_name(f"tiny {name}")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(theta)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)


def add_model(writer: gguf.GGUFWriter, arch: str, vocab: int, types: dict, embedding: T) -> None:
    def add(name: str, kind: T, shape: tuple[int, ...]) -> None:
        data = plain(kind, shape) if kind in (T.F32, T.F16, T.BF16) else random_blocks(kind, shape)
        writer.add_tensor(name, data, raw_dtype=kind)

    sizes = SIZES[arch]
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shapes = {"attn_q": (query, HIDDEN), "attn_k": (key, HIDDEN), "attn_v": (key, HIDDEN),
              "attn_output": (HIDDEN, query), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
              "ffn_down": (HIDDEN, FFN)}
    add("token_embd.weight", embedding, (vocab, HIDDEN))
    for layer in range(sizes.layers):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", T.F32, (HIDDEN,))
        if arch == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                add(f"blk.{layer}.{norm}.weight", T.F32, (sizes.head_dim,))
        for stem, shape in shapes.items():
            add(f"blk.{layer}.{stem}.weight", types[stem], shape)
            if arch == "qwen2" and stem in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{stem}.bias", T.F32, shape[:1])
    add("output_norm.weight", T.F32, (HIDDEN,))
    if arch == "qwen2":
        add("output.weight", T.F16, (vocab, HIDDEN))


def make_model(folder: Path, arch: str, expected: dict) -> None:
    theta = 500000.0 if arch == "llama" else 1000000.0
    types = TYPES if arch != "qwen3" else dict(TYPES, attn_q=T.BF16, attn_k=T.F32, ffn_down=T.Q4_1)

    def fill(writer: gguf.GGUFWriter) -> None:
        common_metadata(writer, arch, SIZES[arch], theta)
        if arch == "llama":
            vocab = sentencepiece_vocabulary(writer, expected)
            writer.add_vocab_size(vocab)
            writer.add_tensor("rope_freqs.weight", llama3_divisors(theta, SIZES[arch].head_dim))
        else:
            vocab = byte_level_vocabulary(writer)
        add_model(writer, arch, vocab, types, {"llama": T.Q4_1, "qwen2": T.BF16, "qwen3": T.Q8_0}[arch])

    global RNG
    state = RNG.bit_generator.state
    path = folder / f"{arch}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    fill(writer)
    write(writer)
    if arch == "llama":
        RNG.bit_generator.state = state  # the same tensors again
        writer = gguf.GGUFWriter(folder / "llama-split.gguf", arch, split_max_tensors=11)
        fill(writer)
        write(writer)

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32)
    weights = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    expected["tensors"] = {
        name: {"shape": list(w.shape),
               "sha256": hashlib.sha256(w.to(torch.bfloat16).view(torch.int16).numpy().tobytes()).hexdigest()}
        for name, w in sorted(weights.items())}
    expected["config"] = {key: getattr(model.config, key) for key in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "max_position_embeddings", "tie_word_embeddings")}


def pack_nvfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Hugging Face (N, K/2) and (N, K/16) to GGUF blocks."""
    rows, pairs = codes.shape
    elements = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, pairs * 2 // 64, 4, 2, 8)
    nibbles = (elements[:, :, :, 0] | elements[:, :, :, 1] << 4).reshape(rows, -1, 32)
    return np.concatenate([scales.reshape(rows, -1, 4), nibbles], axis=-1).astype(np.uint8).reshape(rows, -1)


def pack_mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    rows, pairs = codes.shape
    elements = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, pairs * 2 // 32, 2, 16)
    nibbles = elements[:, :, 0] | elements[:, :, 1] << 4
    return np.concatenate([scales.reshape(rows, -1, 1), nibbles], axis=-1).astype(np.uint8).reshape(rows, -1)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """The converter's permutation of Q and K rows."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def make_fp4(folder: Path, expected: dict) -> None:
    writer = gguf.GGUFWriter(folder / "fp4.gguf", "llama")
    sizes = SIZES["llama"]
    common_metadata(writer, "fp4", sizes, 10000.0)
    vocab = byte_level_vocabulary(writer)
    writer.add_tensor("token_embd.weight", random_blocks(T.NVFP4, (vocab, HIDDEN)), raw_dtype=T.NVFP4)
    writer.add_tensor("token_embd.scale", np.array([0.5], dtype=np.float32))
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    for layer in range(sizes.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", plain(T.F32, (HIDDEN,)))
        for stem, hf, shape, heads in (
                ("attn_q", "self_attn.q_proj", (query, HIDDEN), sizes.heads),
                ("attn_k", "self_attn.k_proj", (key, HIDDEN), sizes.kv_heads),
                ("attn_v", "self_attn.v_proj", (key, HIDDEN), 0),
                ("attn_output", "self_attn.o_proj", (HIDDEN, query), 0),
                ("ffn_gate", "mlp.gate_proj", (FFN, HIDDEN), 0), ("ffn_up", "mlp.up_proj", (FFN, HIDDEN), 0),
                ("ffn_down", "mlp.down_proj", (HIDDEN, FFN), 0)):
            mx = stem.startswith("ffn")
            rows, columns = shape
            codes = RNG.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
            scales = (RNG.integers(110, 130, (rows, columns // 32), dtype=np.uint8) if mx else
                      RNG.integers(1, 0x7F, (rows, columns // 16), dtype=np.uint8))
            name = f"model.layers.{layer}.{hf}"
            expected[f"{name}.{'weight_packed' if mx else 'weight'}"] = hashlib.sha256(codes.tobytes()).hexdigest()
            expected[f"{name}.weight_scale"] = hashlib.sha256(scales.tobytes()).hexdigest()
            stored_codes, stored_scales = (interleave(a, heads) if heads else a for a in (codes, scales))
            data = (pack_mxfp4 if mx else pack_nvfp4)(stored_codes, stored_scales)
            writer.add_tensor(f"blk.{layer}.{stem}.weight", data, raw_dtype=T.MXFP4 if mx else T.NVFP4)
            if stem in ("attn_q", "attn_k"):  # the others leave the tensor scale out: 1
                writer.add_tensor(f"blk.{layer}.{stem}.scale", np.array([0.0625], dtype=np.float32))
            if stem == "attn_q":
                writer.add_tensor(f"blk.{layer}.{stem}.input_scale", np.array([0.25], dtype=np.float32))
    writer.add_tensor("output_norm.weight", plain(T.F32, (HIDDEN,)))
    write(writer)


def make_fuzz_corpus(folder: Path) -> None:
    """One file of a few kilobytes per tokenizer model, with every tensor type between them."""
    for name, vocabulary, kinds in (
            ("byte_level", lambda w: byte_level_vocabulary(w), (T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0, T.Q4_0)),
            ("sentencepiece", lambda w: sentencepiece_vocabulary(w, {}), (T.Q4_1, T.Q5_0, T.Q5_1, T.F16, T.BF16)),
            ("fp4", lambda w: byte_level_vocabulary(w), (T.MXFP4, T.NVFP4))):
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
        common_metadata(writer, name, Sizes(2, 1, 4, len(kinds)), 10000.0)
        vocabulary(writer)
        writer.add_tensor("token_embd.weight", plain(T.F32, (2, HIDDEN)))
        for layer, kind in enumerate(kinds):
            data = plain(kind, (4, HIDDEN)) if kind in (T.F16, T.BF16) else random_blocks(kind, (4, HIDDEN))
            writer.add_tensor(f"blk.{layer}.attn_k.weight", data, raw_dtype=kind)
            if kind == T.NVFP4:
                writer.add_tensor(f"blk.{layer}.attn_k.scale", np.array([2.0], dtype=np.float32))
        write(writer)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/golden/gguf"
    folder.mkdir(parents=True, exist_ok=True)
    make_blocks(folder / "blocks.gguf")
    expected: dict = {}
    for arch in ("llama", "qwen2", "qwen3"):
        make_model(folder, arch, expected.setdefault(arch, {}))
    make_fp4(folder, expected.setdefault("fp4", {}))
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    corpus = root / "tests/fuzz/gguf"
    corpus.mkdir(parents=True, exist_ok=True)
    make_fuzz_corpus(corpus)


if __name__ == "__main__":
    main()
