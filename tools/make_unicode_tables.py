#!/usr/bin/env python3
"""Writes src/text/unicode/tables.cc: character properties exactly as Hugging Face `tokenizers` sees them.

`tokenizers` mixes four Unicode versions (Oniguruma for \\p{..}, two Rust crates and std for digits, punctuation and
words, a fourth for NFC), so no single published table reproduces it. Every property here is found by asking the library
itself about each code point.

Usage: python tools/make_unicode_tables.py > src/text/unicode/tables.cc     (needs tokenizers==0.23.3)
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
EVERYTHING = "".join(map(chr, CODE_POINTS))
# The order is that of enum Category in unicode.h. "Cc" is cut in three there: other, blank, line end.
CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()
CONTROL_BLANK, CONTROL_LINE_END = len(CATEGORIES), len(CATEGORIES) + 1
BLANK_CONTROLS, LINE_ENDS = {0x09, 0x0B, 0x0C, 0x85}, {0x0A, 0x0D}


def oniguruma(pattern):
    splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(c) for piece, _ in splitter.pre_tokenize_str(EVERYTHING) for c in piece}


def categories():
    found = {}
    for number, name in enumerate(CATEGORIES):
        for c in oniguruma(r"\p{%s}" % name):
            assert c not in found, (hex(c), name)
            found[c] = number
    assert len(found) == len(CODE_POINTS)
    for c in BLANK_CONTROLS | LINE_ENDS:
        assert CATEGORIES[found[c]] == "Cc"
        found[c] = CONTROL_LINE_END if c in LINE_ENDS else CONTROL_BLANK
    # White space is then a set of categories; make sure that both engines agree.
    blank = {c for c, n in found.items() if n >= CONTROL_BLANK or CATEGORIES[n] in ("Zs", "Zl", "Zp")}
    assert blank == oniguruma(r"\s")
    rust_text = {ord(c) for piece, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(EVERYTHING) for c in piece}
    assert blank == set(CODE_POINTS) - rust_text
    assert oniguruma(r"\d") == {c for c, n in found.items() if n == CATEGORIES.index("Nd")}
    for c in range(0xD800, 0xE000):  # surrogates never occur in valid UTF-8
        found[c] = CATEGORIES.index("Cn")
    return found


def isolated(pre_tokenizer):
    text = "".join("aa" + chr(c) for c in CODE_POINTS)
    return {ord(p) for p, _ in pre_tokenizer.pre_tokenize_str(text) if len(p) == 1}


def rust_word():
    text = "".join("a" + chr(c) + " " for c in CODE_POINTS)
    return {ord(p[1]) for p, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text) if len(p) == 2 and p[0] == "a"}


def composition_seconds(normalize):
    """Code points that `normalize` joins to the one before."""
    seconds = set()
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (chr(int(p, 16)) for p in parts)
            if normalize(first + second) != first + second:
                seconds.add(ord(second))
    seconds |= {c for c in range(0x1161, 0x1176) if normalize("\u1100" + chr(c)) != "\u1100" + chr(c)}
    seconds |= {c for c in range(0x11A8, 0x11C3) if normalize("\uac00" + chr(c)) != "\uac00" + chr(c)}
    return seconds


def reorders(decompose, c):
    """Whether c has a combining class: it moves past class 1 (U+0334) or class 240 (U+0345)."""
    over, under = "a" + chr(c) + "\u0334", "a\u0345" + chr(c)
    return len(decompose(chr(c))) == 1 and decompose(chr(c)) == chr(c) and (
        decompose(over) != over or decompose(under) != under)


def not_inert(form):
    normalize = getattr(normalizers, form)().normalize_str
    decompose = normalizers.NFD().normalize_str
    seconds = composition_seconds(normalize)
    return {c for c in CODE_POINTS if c in seconds or normalize(chr(c)) != chr(c) or reorders(decompose, c)}


def newer_than_oracle(nfc, nfkc):
    """Inert for `tokenizers`, not for Unicode 14 (utf8proc 2.8, and this Python)."""
    assert unicodedata.unidata_version == "14.0.0"
    parts = set()
    for c in CODE_POINTS:
        mapping = unicodedata.decomposition(chr(c)).split()
        if len(mapping) == 2 and not mapping[0].startswith("<"):
            first, second = (chr(int(p, 16)) for p in mapping)
            if normalizers.NFC().normalize_str(first + second) != unicodedata.normalize("NFC", first + second):
                parts |= {ord(first), ord(second), c}
    compatibility = {c for c in CODE_POINTS if c not in nfkc and unicodedata.normalize("NFKC", chr(c)) != chr(c)}
    combining = {c for c in CODE_POINTS if c not in nfc and unicodedata.combining(chr(c))}
    return parts | compatibility | combining


def properties():
    nfc, nfkc = not_inert("NFC"), not_inert("NFKC")
    # The order is that of enum Property in unicode.h.
    sets = [
        isolated(pre_tokenizers.Digits(individual_digits=True)),
        isolated(pre_tokenizers.Punctuation("isolated")),
        rust_word(),
        oniguruma(r"\w"),
        oniguruma(r"\p{Han}"),
        nfc,
        nfkc,
        newer_than_oracle(nfc, nfkc),
    ]
    return {c: sum(1 << bit for bit, members in enumerate(sets) if c in members) for c in range(0x110000)}


def runs(values):
    out = []
    for c in range(0x110000):
        if not out or out[-1][1] != values[c]:
            out.append((c, values[c]))
    return out


def lower_case():
    """Maximal runs (first, last, step, shift): c in first..last by step maps to c + shift."""
    lower = normalizers.Lowercase().normalize_str
    single, special = [], []
    for c in CODE_POINTS:
        mapped = lower(chr(c))
        if mapped == chr(c):
            continue
        (single if len(mapped) == 1 else special).append((c, mapped))
    assert special == [(0x130, "i\u0307")]  # written out in unicode.cc
    out = []
    for c, mapped in single:
        shift = ord(mapped) - c
        if out and out[-1][3] == shift and c - out[-1][1] in (1, 2) and out[-1][2] in (0, c - out[-1][1]):
            out[-1][2] = c - out[-1][1]
            out[-1][1] = c
        else:
            out.append([c, c, 0, shift])
    return [(first, last, step or 1, shift) for first, last, step, shift in out]


def print_array(declaration, cells):
    print(f"{declaration} = {{")
    line = "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 118:
            print(line)
            line = "   "
        line += f" {cell},"
    print(line)
    print("};\n")


def main():
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    print("// Generated by tools/make_unicode_tables.py from tokenizers 0.23.3; do not edit.")
    print("// Runs are (first code point << 8 | value), each valid up to the next run's first code point.")
    print("// clang-format off\n")
    print('#include "text/unicode/tables.h"\n')
    print("namespace nibble::text::tables {\n")
    for name, values in (("kCategoryRuns", categories()), ("kPropertyRuns", properties())):
        cells = [f"0x{c << 8 | v:x}" for c, v in runs(values)]
        print_array(f"const uint32_t {name}[]", cells)
        print(f"const size_t {name}Count = {len(cells)};\n")
    cells = [f"{{0x{a:x}, 0x{b:x}, {step}, {shift}}}" for a, b, step, shift in lower_case()]
    print_array("const LowerRun kLowerRuns[]", cells)
    print(f"const size_t kLowerRunsCount = {len(cells)};\n")
    print("}  // namespace nibble::text::tables")


if __name__ == "__main__":
    sys.exit(main())
