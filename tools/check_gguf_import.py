#!/usr/bin/env python3
"""Compares an import of a GGUF file with transformers' own.

    tools/check_gguf_import.py MODEL.gguf FOLDER

FOLDER is what `nibble quantize MODEL.gguf FOLDER --format bf16` wrote. Compared are: config.json's
fields, the ids of a corpus of awkward texts, the special tokens and chat template, and every weight
(transformers dequantises in FP32; rounded to BF16 both must agree bit for bit).

One difference is expected: transformers' import of the `smollm` family does not split digits,
though the model's published tokenizer.json does. The corpus is therefore encoded with transformers'
tokenizer after its pre-tokenizer has been replaced by the published one.

Needs torch, transformers, gguf, safetensors.
"""

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer


def check(what: str, ours, theirs) -> int:
    if ours == theirs:
        return 0
    print(f"DIFFERS {what}: ours {ours!r}, transformers {theirs!r}")
    return 1


def check_config(ours: dict, config) -> int:
    failures = 0
    for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
                "hidden_act", "head_dim", "attention_bias", "mlp_bias"):
        if key in ours and hasattr(config, key):
            failures += check(key, ours[key], getattr(config, key))
    for key, value in (("rms_norm_eps", config.rms_norm_eps),
                       ("rope_theta", config.rope_parameters["rope_theta"])):
        failures += check(key, torch.tensor(ours[key]).item(), torch.tensor(value).item())  # as FP32
    return failures


def corpus() -> list[str]:
    generator = random.Random(3)
    texts = ["Hello, world!", "  leading and   inner   spaces \t\n\n\r\n end ", "don't I'LL they've 1234567 3.14",
             "Zürich Ελλάδα Москва 東京 서울 مرحبا שלום नमस्ते ไทย", "👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff",
             "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>", "def f(x):\n    return x**2  # ½ ² Ⅷ ٣"]
    for _ in range(300):
        length = generator.randint(1, 60)
        ranges = [(32, 127), (32, 127), (160, 1500), (0x3000, 0x9FFF), (0x1F300, 0x1F6FF)]
        texts.append("".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(length)))
    return texts


def check_tokenizer(folder: Path, theirs) -> int:
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    failures = 0
    for text in corpus():
        ids = ours.encode(text).ids
        failures += check(f"ids of {text!r}", ids, backend.encode(text).ids)
        failures += check(f"decoding of {text!r}", ours.decode(ids, skip_special_tokens=False),
                          backend.decode(ids, skip_special_tokens=False))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        failures += check(key, config.get(key), getattr(theirs, key))
    specials = {t["content"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
                if t["special"]}
    failures += check("special tokens", sorted(specials), sorted(set(theirs.all_special_tokens) | {
        t.content for t in backend.get_added_tokens_decoder().values() if t.special}))
    return failures


def check_weights(folder: Path, model) -> int:
    ours = {}
    for file in sorted(folder.glob("*.safetensors")):
        ours.update(load_file(file))
    theirs = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    failures = check("tensor names", sorted(ours), sorted(theirs))
    for name in sorted(set(ours) & set(theirs)):
        if not torch.equal(ours[name].to(torch.bfloat16), theirs[name].to(torch.bfloat16)):
            print(f"DIFFERS {name}")
            failures += 1
    print(f"{len(ours)} tensors compared")
    return failures


def main() -> int:
    gguf, folder = Path(sys.argv[1]), Path(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    failures = check_config(json.loads((folder / "config.json").read_text()), model.config)
    failures += check_tokenizer(folder, tokenizer)
    failures += check_weights(folder, model)
    print("differences:", failures)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
