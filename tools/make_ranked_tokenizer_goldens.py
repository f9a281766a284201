#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/ranked: tiktoken.model and tekken.json files, and what their libraries make of texts.

  ranked/<name>/          the files of a tokenizer with 2,000 tokens trained here, and results.json
  ranked/published/       results for a tekken.json that `mistral-common` brings

The oracles are `tiktoken` 0.14.0 (an Encoding of the same ranks) and `mistral-common` 1.8.5 (Tekkenizer).
Usage: python tools/make_ranked_tokenizer_goldens.py     (needs tiktoken, mistral-common, tokenizers, numpy)
"""
import base64
import json
import pathlib
import zlib

import mistral_common
import tiktoken
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import make_tokenizer_goldens as families
import tokenizer_corpus
from tokenizer_corpus import GOLDEN

RANKED = GOLDEN / "ranked"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
# As in the published tokenization_kimi.py.
KIMI_PATTERN = (r"[\p{Han}]+" + f"|{LEAD}{UPPER}*{LOWER}+{CONTRACTIONS}|{LEAD}{UPPER}+{LOWER}*{CONTRACTIONS}"
                + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + families.BLANKS)
KIMI_TOKENS = {0: ("[BOS]", True), 1: ("[EOS]", True), 2: ("<|im_end|>", True), 3: ("<|im_user|>", True),
               4: ("<|im_assistant|>", True), 17: ("<|im_middle|>", True), 11: ("<|tool_calls_section_begin|>", False),
               254: ("[UNK]", True), 255: ("[PAD]", True)}
TEKKEN_TOKENS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"]
TEKKEN_SPECIAL_COUNT = 20

TEXTS = families.TEXTS + [
    "[BOS]<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>", "<|tool_calls_section_begin|>x", "[EOS][EOS] <|im_",
    "<s>[INST] a [/INST]b</s>[THINK]c[/THINK]", "漢字とかなA漢b's 々〇〡ㄅ 中A文's", "汉字汉字，ABC汉字abc 𠀀𠀁x", "が漢\u3099字 \u0301漢\u0301",
]


def train(pattern, count):
    """Token bytes by rank: the 256 bytes in order, then what BPE merges make."""
    tokenizer = Tokenizer(models.BPE())
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = families.sequence("pretokenizers", [families.split(pattern), families.byte_level()])
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    trainer = trainers.BpeTrainer(vocab_size=count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False, max_token_length=16)
    tokenizer.train_from_iterator(families.training_text(), trainer)
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    made = ["".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(to_byte[c] for c in text) for text in dict.fromkeys(made)]
    return tokens[:count]


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


class Kimi:
    def __init__(self, folder):
        ranks = load_tiktoken_bpe(str(folder / "tiktoken.model"))
        listed = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        special = {f"<|reserved_token_{i}|>": i for i in range(len(ranks), len(ranks) + 256) if str(i) not in listed}
        special.update({token["content"]: int(i) for i, token in listed.items()})
        self.skipped = {i for text, i in special.items() if listed.get(str(i), {"special": True})["special"]}
        self.encoding = tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self.size = self.encoding.n_vocab

    def encode(self, text):
        return self.encoding.encode(text, allowed_special="all")

    def encode_with_bos(self, text):
        return self.encode(text)

    def decode(self, ids, skip):
        return self.encoding.decode([i for i in ids if i < self.size and not (skip and i in self.skipped)])


class Tekken:
    def __init__(self, path):
        self.tekken = Tekkenizer.from_file(path)
        self.size = self.tekken.n_words
        model = self.tekken._model
        # The library never parses special tokens out of text; what is between them is encoded by it.
        self.encoding = tiktoken.Encoding("tekken", pat_str=model._pat_str, mergeable_ranks=model._mergeable_ranks,
                                          special_tokens={t["token_str"]: self.size + t["rank"]
                                                          for t in self.tekken._all_special_tokens})

    def encode(self, text):
        shift = self.tekken.num_special_tokens
        return [i - self.size if i >= self.size else i + shift
                for i in self.encoding.encode(text, allowed_special="all")]

    def encode_with_bos(self, text):
        return self.tekken.encode(text, bos=True, eos=False)

    def decode(self, ids, skip):
        shift = self.tekken.num_special_tokens
        specials = self.tekken._all_special_tokens
        return b"".join(specials[i]["token_str"].encode() if i < shift else
                        self.tekken._model.decode_single_token_bytes(i - shift)
                        for i in ids if i < self.size and not (skip and i < shift)).decode("utf-8", "replace")


def results(tokenizer, total_bytes):
    crc = families.crc
    blocks = []
    for block in range(0, 0x110000, families.BLOCK):
        value = 0
        for first in range(block, block + families.BLOCK, 64):
            value = crc(tokenizer.encode(families.code_point_text(first)), value)
        blocks.append(value)
    ids_crc = ids_count = text_crc = size = 0
    for text in tokenizer_corpus.chunks(families.SEED, total_bytes):
        ids = tokenizer.encode(text)
        ids_crc, ids_count = crc(ids, ids_crc), ids_count + len(ids)
        text_crc, size = zlib.crc32(text.encode("utf-8"), text_crc), size + len(text.encode("utf-8"))
    streams = [families.random_ids(tokenizer.size, seed, 60) for seed in range(40)]
    encoded = [tokenizer.encode(text) for text in TEXTS]
    return {
        "ids": encoded,
        "special_ids": [tokenizer.encode_with_bos(text) for text in TEXTS[:5]],
        "decoded": [tokenizer.decode(ids, skip=True) for ids in encoded],
        "vocab_size": tokenizer.size,
        "broken": [tokenizer.decode(ids, skip=False) for ids in streams],
        "code_point_crcs": blocks,
        "generated": {"bytes": size, "text_crc": text_crc, "ids": ids_count, "ids_crc": ids_crc},
    }


def write_kimi(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokens = train(KIMI_PATTERN, 2000)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("".join(lines))
    decoder = {str(len(tokens) + i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                                      "single_word": False, "special": special}
               for i, (text, special) in KIMI_TOKENS.items()}
    config = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]",
              "pad_token": "[PAD]", "tokenizer_class": "TikTokenTokenizer",
              "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_tekken(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokens = train(families.PATTERNS["tekken"], 2000)
    used = 1900  # as in the published files, the vocabulary is longer than the model's

    def text_of(token):
        try:
            return token.decode("utf-8")
        except UnicodeDecodeError:
            return None
    tekken = {
        "config": {"pattern": families.PATTERNS["tekken"], "num_vocab_tokens": len(tokens),
                   "default_vocab_size": used + TEKKEN_SPECIAL_COUNT, "default_num_special_tokens": TEKKEN_SPECIAL_COUNT,
                   "version": "v11"},
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": text_of(token)}
                  for rank, token in enumerate(tokens)],
        "special_tokens": [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(TEKKEN_TOKENS)],
    }
    (folder / "tekken.json").write_text(json.dumps(tekken, separators=(",", ":")) + "\n")


def main():
    write_kimi(RANKED / "kimi")
    write_tekken(RANKED / "tekken")
    families.write(RANKED / "texts.json", {"texts": TEXTS})
    families.write(RANKED / "kimi" / "results.json", results(Kimi(RANKED / "kimi"), families.TOTAL_BYTES))
    families.write(RANKED / "tekken" / "results.json", results(Tekken(RANKED / "tekken" / "tekken.json"),
                                                               families.TOTAL_BYTES))
    path = pathlib.Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    families.write(RANKED / "published" / path.name, results(Tekken(path), families.TOTAL_BYTES))


if __name__ == "__main__":
    main()
