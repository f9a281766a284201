"""The seeded text generator of the tokenizer goldens; src/text/testing/tokenizer_data.h is the same in C++.

Text is a sequence of segments drawn by a SplitMix64 stream: words of many scripts, code points of one block, digits,
blanks, marks, special tokens. Both sides read words and blocks from tests/golden/tokenizer/corpus.json.
"""
import json
import pathlib

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
MASK = (1 << 64) - 1


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def chunks(seed, total_bytes, chunk_bytes=4096):
    """Yields texts of about chunk_bytes until they hold total_bytes of UTF-8 together."""
    corpus = json.loads((GOLDEN / "corpus.json").read_text(encoding="utf-8"))
    words, blanks, marks, special, blocks = (corpus[k] for k in ("words", "blanks", "marks", "special", "blocks"))
    random = SplitMix64(seed)
    done = 0
    while done < total_bytes:
        parts, size = [], 0
        while size < chunk_bytes:
            kind = random.below(100)
            if kind < 62:
                text = words[random.below(len(words))]
                if random.below(8) != 0:
                    text = " " + text
            elif kind < 70:
                first, last = blocks[random.below(len(blocks))]
                text = "".join(chr(first + random.below(last - first + 1)) for _ in range(1 + random.below(6)))
            elif kind < 78:
                text = str(random.below(10 ** (1 + random.below(9))))
            elif kind < 86:
                text = blanks[random.below(len(blanks))] * (1 + random.below(3))
            elif kind < 98:
                text = marks[random.below(len(marks))] * (1 + random.below(3))
            else:
                text = special[random.below(len(special))]
            parts.append(text)
            size += len(text.encode("utf-8"))
        done += size
        yield "".join(parts)
