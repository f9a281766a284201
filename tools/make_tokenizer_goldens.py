#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: tokenizers, texts, and what Hugging Face `tokenizers` 0.23.3 makes of them.

  families/<name>.json    a tokenizer.json with the published pipeline of a family and a BPE trained here (2,000 tokens)
  families.json           per family, and per published file at hand: ids of the texts, hashes over code points and corpus
  components.json         small tokenizers that differ from a base in one component each, with texts and ids

Usage: python tools/make_tokenizer_goldens.py [--train] [--only FAMILY...] [--published DIR]     (needs tokenizers==0.23.3)
  --train          train the families anew (otherwise the committed files are kept)
  --only FAMILY... the families to make, all without it
  --published DIR  folder with <name>/tokenizer.json.xz of published tokenizers; their results are kept without it
"""
import argparse
import itertools
import json
import lzma
import os
import zlib

import numpy
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import tokenizer_corpus
from tokenizer_components import component_cases
from tokenizer_corpus import GOLDEN

SEED, TOTAL_BYTES = 20261126, 10_000_000
BLOCK = 0x4000  # code points per hash

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = {
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + BLANKS,
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + BLANKS,
    "qwen35": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + BLANKS,
    "o200k": f"{LEAD}{UPPER}*{LOWER}+{CONTRACTIONS}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BLANKS,
    "tekken": f"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BLANKS,
    "deepseek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n"
    + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[""" + "\r\n" + r"""]*|""" + BLANKS,
}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(kind, members):
    return {"type": "Sequence", kind: members}


def with_bos(token):
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
    }


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


SENTENCEPIECE_DECODER = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP_FIRST = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def families():
    """Per family: the pipeline, the special tokens, and the model's flags."""
    byte_specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    level = byte_level()
    gpt4o = ["<|start|>", "<|end|>", "<|return|>"]

    def bytes_family(pre, normalizer=None, post=level, specials=byte_specials, ignore_merges=False):
        return dict(pre=pre, normalizer=normalizer, post=post, decoder=level, specials=specials, byte_level=True,
                    flags=dict(ignore_merges=ignore_merges))

    def spm_family(pre, normalizer, specials, bos, decoder):
        return dict(pre=pre, normalizer=normalizer, post=with_bos(bos), decoder=sequence("decoders", decoder),
                    specials=specials, byte_level=False,
                    flags=dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True))

    def splits(*patterns):
        return sequence("pretokenizers", [split(p) for p in patterns] + [level])

    def removed(pattern):
        # How converters from tiktoken write it: what is between the matches is removed.
        return sequence("pretokenizers", [dict(split(pattern), behavior="Removed", invert=True), level])

    llama_specials = ["<s>", "</s>", "<unk>"]
    nfc = {"type": "NFC"}
    return {
        "gpt2": bytes_family(byte_level(True)),
        "smollm2": bytes_family(sequence("pretokenizers", [{"type": "Digits", "individual_digits": True},
                                                           byte_level(True)])),
        "qwen2": bytes_family(splits(PATTERNS["qwen2"]), normalizer=nfc),
        "qwen35": bytes_family(splits(PATTERNS["qwen35"]), normalizer=nfc),
        "llama3": bytes_family(splits(PATTERNS["llama3"]), specials=["<|begin_of_text|>", "<|eot_id|>"],
                               post=sequence("processors", [level, with_bos("<|begin_of_text|>")]),
                               ignore_merges=True),
        "o200k": bytes_family(splits(PATTERNS["o200k"]), specials=gpt4o, ignore_merges=True),
        "tekken": bytes_family(splits(PATTERNS["tekken"]), specials=["<s>", "</s>", "[INST]"], post=with_bos("<s>"),
                               ignore_merges=True),
        "llama4": bytes_family(splits(PATTERNS["o200k"]), specials=["<|begin_of_text|>", "<|header_start|>", "<|eot|>"],
                               post=sequence("processors", [level, with_bos("<|begin_of_text|>")]),
                               ignore_merges=True),
        # Its special tokens swallow the white space around them.
        "phi4": dict(bytes_family(removed(PATTERNS["llama3"])), token_flags=dict(lstrip=True, rstrip=True)),
        "glm45": bytes_family(splits(PATTERNS["llama3"]), specials=["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
                              post=level),
        "deepseek": bytes_family(splits(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", PATTERNS["deepseek"]),
                                 normalizer=sequence("normalizers", []),
                                 specials=["<｜begin▁of▁sentence｜>", "<｜User｜>"]),
        "llama2": spm_family(None, sequence("normalizers", [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]),
                             llama_specials, "<s>", SENTENCEPIECE_DECODER + [STRIP_FIRST]),
        "mistral": spm_family({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
                              None, llama_specials + ["[INST]"], "<s>", SENTENCEPIECE_DECODER + [STRIP_FIRST]),
        "gemma": spm_family({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                             "invert": False}, replace(" ", "▁"),
                            ["<bos>", "<eos>", "<unk>", "<start_of_turn>"], "<bos>", SENTENCEPIECE_DECODER),
        # Gemma 3 has runs of line ends, blanks and tags as added tokens.
        "gemma3": dict(spm_family({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                   "invert": False}, replace(" ", "▁"),
                                  ["<pad>", "<bos>", "<unk>", "<start_of_turn>"], "<bos>", SENTENCEPIECE_DECODER),
                       added=["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "</table>"]),
    }


def training_text():
    return list(tokenizer_corpus.chunks(7, 600_000))


def train(family):
    """A tokenizer.json with this family's pipeline and 2,000 tokens."""
    tokenizer = Tokenizer(models.BPE(**family["flags"]))
    specials = list(family["specials"])
    if family["byte_level"]:
        draft = dict(pre_tokenizer=family["pre"], normalizer=family["normalizer"])
        initial = pre_tokenizers.ByteLevel.alphabet()
    else:
        # SentencePiece trains on words with a leading mark, whatever cuts the text later.
        draft = dict(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                                    "split": True}, normalizer=None)
        specials += [f"<0x{b:02X}>" for b in range(256)]
        initial = []
    base = json.loads(tokenizer.to_str())
    base.update(draft)
    tokenizer = Tokenizer.from_str(json.dumps(base))
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=specials, initial_alphabet=initial,
                                  limit_alphabet=400, show_progress=False, max_token_length=16)
    tokenizer.train_from_iterator(training_text(), trainer)
    result = json.loads(tokenizer.to_str())
    result["added_tokens"] = [t for t in result["added_tokens"] if not t["content"].startswith("<0x")]
    for token in result["added_tokens"]:
        token.update(family.get("token_flags", {}))
    next_id = len(result["model"]["vocab"])
    for content in family.get("added", []):
        known = result["model"]["vocab"].get(content)
        result["added_tokens"].append(dict(id=next_id if known is None else known, content=content, single_word=False,
                                           lstrip=False, rstrip=False, normalized=False, special=False))
        next_id += known is None
    result["added_tokens"].sort(key=lambda token: token["id"])
    result.update(normalizer=family["normalizer"], pre_tokenizer=family["pre"], post_processor=family["post"],
                  decoder=family["decoder"])
    return json.dumps(result, ensure_ascii=False, separators=(",", ":"))


TEXTS = [
    "", " ", "  ", "\n", "Hello, world!", " leading", "trailing ", "two  spaces", "a\u00a0b", "tab\tand\nnewline\r\n\r\n x",
    "I'm, you're, he'd; WE'LL, IT'S, they'Ve 'sup 'ſ 'S", "it'ſ fine''s''", "12345678 1,234.50 १२३४५ ①②③ Ⅷ ½",
    "don't'll've", "HTTPServer XMLHttpRequest iPhone McDonald's ǅungla ǄUNGLA", "\u0301ABC a\u0301BC \u0301", "ʰABC ABCʰd ªº",
    "你好，世界！这是中文。", "こんにちは、カタカナとﾊﾝｶｸ 東京タワー", "한국어 \u1100\u1161\u11a8 가\u11a8 각", "नमस्ते हिन्दी க்ஷ",
    "שלום עולם مرحبا بالعالم", "ภาษาไทยไม่มีช่องว่าง", "👩‍👩‍👧‍👦👍🏽🏳️‍🌈🇩🇪🇫🇷1️⃣", "e\u0301 \u212b \u2126 ﬁ a\u0323\u0308 a\u0308\u0323 \u0344",
    "\u0374\u037e\u0387\u1fef\u2000\u2329\uf900", "\U00011938 \U00011935\U00011930 \u09c7\u09be \u1b05\u1b35 a\u08ca\u0323",
    "\u3000\u3000全角　スペース\u2028\u2029\u0085\u180e\u200b\ufeff", "   \n  \n\n   x", "x   \n", " \t \r\n\t y", "\r\r\n\n",
    "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n", "#include <stdio.h>\nint main(){return 0;}", "/usr/local/bin//x\n/", "a/b/\r\n/c",
    "https://example.com/path?query=1&other=two#frag", "!!!??? ... ---- ____ ////\n", "!a?b .c ,D _e 'f \"g (h", "$x=€5+£3", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙 𠀀𠀁",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>", "<|begin_of_text|>x<|eot_id|>", "<s>a</s> <unk> [INST] x [/INST]", "<bos><start_of_turn>user",
    "<｜begin▁of▁sentence｜><｜User｜>hi", "<|im_<|im_start|>end|>", "<|start|>a<|end|><|return|>", "<0x41><0xE2><0x96>", "▁a▁▁b Ġc Ċ", "\x00\x01\x7f\x80\x9f\ufffd\uffff",
    "a" * 300, " " * 300, "ab" * 200, "\n" * 120, "!" * 130, "A" * 120 + "a", "é" * 100, "中" * 150, "1" * 100, "a b" * 80,
    "".join(chr(c) for c in range(0x20, 0x7F)), "".join(chr(c) for c in range(0xA0, 0x180)),
]


def crc(values, previous=0):
    return zlib.crc32(numpy.asarray(values, dtype="<i4").tobytes(), previous)


def ids_of(tokenizer, text, special=False):
    return tokenizer.encode(text, add_special_tokens=special).ids


def code_point_text(first):
    """Each of 64 code points between a letter and a digit."""
    points = [c for c in range(first, first + 64) if not 0xD800 <= c < 0xE000]
    return "".join(f"a{chr(c)}1 " for c in points)


def encode_all(tokenizer, texts):
    """The ids of each text, in batches over all cores."""
    texts = iter(texts)
    while batch := list(itertools.islice(texts, 256)):
        yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False))


def random_ids(size, seed, count):
    random = tokenizer_corpus.SplitMix64(seed)
    return [random.below(size + 3) for _ in range(count)]


def results(tokenizer):
    blocks = []
    for block in range(0, 0x110000, BLOCK):
        value = 0
        for ids in encode_all(tokenizer, map(code_point_text, range(block, block + BLOCK, 64))):
            value = crc(ids, value)
        blocks.append(value)
    texts = list(tokenizer_corpus.chunks(SEED, TOTAL_BYTES))
    ids_crc, ids_count = 0, 0
    for ids in encode_all(tokenizer, texts):
        ids_crc, ids_count = crc(ids, ids_crc), ids_count + len(ids)
    corpus = "".join(texts).encode("utf-8")
    # Ids in random order are mostly broken UTF-8.
    size = 1 + max(tokenizer.get_vocab().values())
    broken = [tokenizer.decode(random_ids(size, seed, 60), skip_special_tokens=False) for seed in range(40)]
    return {
        "ids": [ids_of(tokenizer, text) for text in TEXTS],
        "special_ids": [ids_of(tokenizer, text, special=True) for text in TEXTS[:5]],
        "decoded": [tokenizer.decode(ids_of(tokenizer, t), skip_special_tokens=True) for t in TEXTS],
        "vocab_size": size,
        "broken": broken,
        "code_point_crcs": blocks,
        "generated": {"bytes": len(corpus), "text_crc": zlib.crc32(corpus), "ids": ids_count, "ids_crc": ids_crc},
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path.name, path.stat().st_size, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--published")
    parser.add_argument("--only", nargs="+", metavar="FAMILY")
    parser.add_argument("--components-only", action="store_true")
    arguments = parser.parse_args()
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    if not arguments.only:
        write(GOLDEN / "components.json", component_cases(training_text()[:60]))
    if arguments.components_only:
        return
    write(GOLDEN / "texts.json", {"texts": TEXTS, "seed": SEED, "total_bytes": TOTAL_BYTES, "block": BLOCK})
    for name, family in families().items():
        if arguments.only and name not in arguments.only:
            continue
        path = GOLDEN / "families" / f"{name}.json"
        if arguments.train or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(train(family), encoding="utf-8")
        write(GOLDEN / "results" / f"{name}.json", results(Tokenizer.from_file(str(path))))
    if arguments.published:
        for name in sorted(os.listdir(arguments.published)):
            with lzma.open(os.path.join(arguments.published, name, "tokenizer.json.xz")) as file:
                tokenizer = Tokenizer.from_buffer(file.read())
            write(GOLDEN / "published" / f"{name}.json", results(tokenizer))


if __name__ == "__main__":
    main()
