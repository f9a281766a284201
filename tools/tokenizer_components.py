"""Cases for tests/golden/tokenizer/components.json: one tokenizer component each, over a common base.

The base models are trained without a pre-tokenizer, so their merges cross words, and every cut that a component makes
or does not make shows in the ids.
"""
import copy
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = [
    "", "Hello, world!  It's 12.5% of the   models.", " the tokens\n\n are\tin\r\n rows ", "a-b--c-", "--a-b--", "it is, and it was; they don't",
    "ÉCOLE École naïve Straße İstanbul ΑΣ", "中文 and 日本語、한국어", "e\u0301 ﬁ ① \u212b ½ \u3000x", "foo_bar 0x7f १२ x² Ⅷ", "<a> <b><c>  <d>the<e> x<a>y <b> ",
    "the<b>of <b>in<b> <B> <É>  e\u0301<e\u0301>", "▁the ▁▁of", "👩‍👩‍👧 !?", "xxxaxxbx", "<unk>q\u4e5fé\ud7a3\U0001f642zz",
]


def base_models(training):
    """(character model, byte-level model) as dicts of the `model` field."""
    result = []
    for byte_level in (False, True):
        tokenizer = Tokenizer(models.BPE())
        alphabet = []
        if byte_level:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, limit_alphabet=330, show_progress=False,
                                      max_token_length=12)
        lines = [line for text in training for line in text.split("\n")]
        tokenizer.train_from_iterator([line[i:i + 60] for line in lines for i in range(0, len(line), 60)], trainer)
        result.append(json.loads(tokenizer.to_str())["model"])
    return result


def added(index, content, **flags):
    token = dict(id=900 + index, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False,
                 special=False)
    token.update(flags)
    return token


def added_token_cases():
    cases = {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for mask in range(32):
        chosen = {flag: bool(mask >> bit & 1) for bit, flag in enumerate(flags)}
        name = "+".join(flag for flag in flags if chosen[flag]) or "plain"
        cases[f"added {name}"] = dict(added_tokens=[added(i, c, **chosen) for i, c in
                                                    enumerate(["<a>", "<b>", "<b><c>", "the", "<É>", "e\u0301"])],
                                      normalizer={"type": "NFC"})
    cases["added lowercased"] = dict(added_tokens=[added(0, "<B>", normalized=True), added(1, "<É>", normalized=False)],
                                     normalizer={"type": "Lowercase"})
    cases["added overlapping"] = dict(added_tokens=[added(0, "ab"), added(1, "a-b--"), added(2, "-"), added(3, "b--c")])
    cases["added in vocabulary"] = dict(added_tokens=[dict(added(0, "th"), id=-1), added(1, "of ")])
    return cases


def normalizer_cases():
    specs = [
        {"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"},
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Replace", "pattern": {"String": "the"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "-"},
        {"type": "Replace", "pattern": {"Regex": "(?<=a)-"}, "content": "+"},
        {"type": "Sequence", "normalizers": []},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True},
                                             {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    ]
    return {f"normalizer {json.dumps(spec)}": dict(normalizer=spec) for spec in specs}


def split_case(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


# Expressions without a hand-written matcher, and the places where Oniguruma and PCRE2 part ways.
REGEXES = [
    r"\s+", r"\S+", r"\w+", r"\W", r"\d", r"[^\s]+", r"\p{L}+|\p{N}", r"\p{Lu}\p{Ll}*", r"\P{L}+", r"\p{^L}+", r"[\p{L}x]+",
    r"\p{N}{1,3}+", r"x{2}", r"x{,2}", r"x{1,}?", r"x+?", r"x++", r"x?", r"[a-z]+(?=\s)", r"(?<!\w)the", r"(?<=\s)\S", r"(?i:THE|é)", r"(?i)it('S)?",
    r"^\S+", r"\S+$", r"\A.", r".\z", r".", r"[\p{L}&&[^a-z]]+", r"[^\p{L}&&[^\s]]+", r"[a-e[x-z]]+", r"[\x{4e00}-\x{9fff}]+", r"\u4e2d", r"\x2d", r"[\-\]\\]", r"(a|b)-",
    r"(?>x+)a", r"\p{Han}+", r"[\p{Han}]+|[^\p{Han}]", r"[\p{M}\p{S}]+", r"[\p{Zs}\p{Cc}]+", "\\t|\\n|\\r\\n", r"", r"x*", r"(?:it|is)+",
    # cl100k as in GLM files (possessive marks), and Kimi's with Han taken out of words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


def pre_tokenizer_cases():
    specs = []
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            specs.append(split_case({"String": "-"}, behavior, invert))
            specs.append(split_case({"Regex": "x*|[ -]"}, behavior, invert))
        specs.append({"type": "Punctuation", "behavior": behavior})
    specs += [split_case({"Regex": regex}) for regex in REGEXES]
    specs += [{"type": "Digits", "individual_digits": individual} for individual in (False, True)]
    specs += [{"type": "Punctuation"}, {"type": "Whitespace"}, {"type": "WhitespaceSplit"}]
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            specs.append({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
    specs += [{"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
              {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False, "prepend_scheme": "never"}]
    specs += [{"type": "Sequence", "pretokenizers": []},
              {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Punctuation"},
                                                     {"type": "Digits", "individual_digits": True}]},
              {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, {"type": "Metaspace", "replacement": "▁",
                                                                              "prepend_scheme": "first"}]}]
    cases = {f"pre_tokenizer {json.dumps(spec)}": dict(pre_tokenizer=spec) for spec in specs}
    levels = [{"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
              for prefix in (False, True) for regex in (False, True)]
    chains = [{"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, levels[1]]},
              {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, levels[0], {"type": "Digits", "individual_digits": False},
                                                     split_case({"Regex": "[0-9][0-9][0-9]"})]},
              {"type": "Sequence", "pretokenizers": [split_case({"Regex": "\\s+"}, "MergedWithNext"), levels[2]]}]
    for spec in levels + chains:
        cases[f"pre_tokenizer {json.dumps(spec)}"] = dict(pre_tokenizer=spec, byte_level=True)
    # The prefix of the first piece only, with added tokens around.
    for scheme in ("always", "first"):
        cases[f"metaspace {scheme} between added tokens"] = dict(
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True},
            added_tokens=[added(0, "<a>"), added(1, "--", normalized=True), added(2, "the", normalized=True)])
    return cases


def model_cases():
    cases = {}
    for fuse in (False, True):
        for fallback in (False, True):
            cases[f"model fuse_unk {fuse} byte_fallback {fallback}"] = dict(
                model=dict(unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback),
                vocabulary=["<unk>", "<0xC3>", "<0xA9>", "<0x71>", "<0xE4>", "<0xB9>", "<0x9F>"])
    cases["model without unk"] = dict()
    cases["model ignore_merges"] = dict(model=dict(ignore_merges=True), byte_level=True, vocabulary=["Ġtheymodels", "zq"])
    cases["model pairs as text"] = dict(byte_level=True, text_merges=True)
    return cases


def post_processor_cases():
    special, whole = (lambda name: {"SpecialToken": {"id": name, "type_id": 0}}), {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {"<s>": {"id": "<s>", "ids": [1, 2], "tokens": ["a", "b"]}, "</s>": {"id": "</s>", "ids": [3], "tokens": ["c"]}}

    def template(*single):
        return {"type": "TemplateProcessing", "single": list(single), "pair": [whole, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": tokens}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    both = template(special("<s>"), whole, special("</s>"), special("</s>"))
    return {"post both ends": dict(post_processor=both), "post byte level": dict(post_processor=level),
            "post sequence": dict(post_processor={"type": "Sequence", "processors": [level, both]})}


def decoder_cases():
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    mark = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}

    def strip(start, stop):
        return {"type": "Strip", "content": " ", "start": start, "stop": stop}
    specs = [None, {"type": "Fuse"}, mark, {"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": "_"}, {"type": "ByteFallback"},
             strip(1, 0), {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
             {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
             {"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}, strip(1, 0)]},
             {"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}, strip(3, 0)]},
             {"type": "Sequence", "decoders": [{"type": "Fuse"}, strip(0, 2)]},
             {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, mark]}]
    extra = ["<unk>", "<0xC3>", "<0xA9>", "<0xe2>", "<0x96>", "<0x81>", "<0x20>", "▁", "▁▁", "▁the▁"]
    cases = {f"decoder {json.dumps(spec)}": dict(decoder=spec, vocabulary=extra) for spec in specs}
    cases["decoder byte level"] = dict(decoder=level, byte_level=True,
                                       added_tokens=[added(0, "<s>", special=True), added(1, "é x"), added(2, "Ġ<")])
    return cases


def component_cases(training):
    character_model, byte_model = base_models(training)
    cases = {}
    for group in (added_token_cases, normalizer_cases, pre_tokenizer_cases, model_cases, post_processor_cases, decoder_cases):
        cases.update(group())
    out = []
    for name, case in cases.items():
        spec = build(case, character_model, byte_model)
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        result = dict(name=name, case=case, ids=[tokenizer.encode(text, add_special_tokens=True).ids for text in TEXTS])
        if name.startswith("decoder"):
            result.update(streams(name, tokenizer))
        out.append(result)
    return dict(texts=TEXTS, character_model=character_model, byte_model=byte_model, cases=out)


def streams(name, tokenizer):
    """Ids in an order that no text gives, most of them from the end of the vocabulary, and their text."""
    size = 1 + max(tokenizer.get_vocab().values())
    ids = [[(i * i * 7 + i * k + k) % size for i in range(30)] for k in range(1, 13)]
    ids += [[size - 1 - (i * k) % 12 for i in range(24)] for k in range(1, 8)]
    return dict(streams=ids, decoded=[tokenizer.decode(stream, skip_special_tokens=True) for stream in ids])


def build(case, character_model, byte_model):
    """The tokenizer.json of a case; src/text/tokenizer_golden_test.cc builds the same."""
    model = copy.deepcopy(byte_model if case.get("byte_level") else character_model)
    model.update(case.get("model", {}))
    for token in case.get("vocabulary", []):
        model["vocab"].setdefault(token, len(model["vocab"]))
    if case.get("text_merges"):
        model["merges"] = [" ".join(pair) for pair in model["merges"] if not any(" " in token for token in pair)]
    return dict(version="1.0", truncation=None, padding=None, added_tokens=renumbered(case, model), model=model,
                **{key: case.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")})


def renumbered(case, model):
    """Ids continue behind the vocabulary, as the library assigns them."""
    tokens, next_id = [], len(model["vocab"])
    for token in case.get("added_tokens", []):
        token = dict(token)
        if token["content"] in model["vocab"]:
            token["id"] = model["vocab"][token["content"]]
        else:
            token["id"], next_id = next_id, next_id + 1
        tokens.append(token)
    return tokens
