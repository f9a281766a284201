#!/usr/bin/env python3
"""Tokenizer speed against Hugging Face `tokenizers` on one thread, over the same text.

Usage: python tools/bench_tokenizer.py [--bench build/release/text_bench] [--published DIR] [--filter REGEX]
Prints, per tokenizer: our MB/s and theirs on mixed text, the ratio, and how many times the mixed text's time per byte a
megabyte of one character costs us. Exit status 1 if the ratio is below 1.5 or a run costs more than 10 times.
"""
import argparse
import json
import lzma
import os
import pathlib
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer

import tokenizer_corpus

MIXED_BYTES, SEED = 2_000_000, 1  # as in src/text/tokenizer_bench.cc


def ours(bench, pattern):
    command = [bench, "--benchmark_format=json", "--benchmark_min_time=0.3", f"--benchmark_filter={pattern}"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {entry["name"]: entry for entry in report["benchmarks"]}


def theirs(tokenizer, texts):
    """Seconds of processor time; encode_batch_fast skips offsets, so it is the fastest way they have."""
    tokenizer.encode_batch_fast(texts[:20])
    start = time.process_time()
    tokenizer.encode_batch_fast(texts)
    return time.process_time() - start


def load(name, published):
    family = tokenizer_corpus.GOLDEN / "families" / f"{name}.json"
    if family.exists():
        return Tokenizer.from_file(str(family))
    return Tokenizer.from_buffer(lzma.open(os.path.join(published, name, "tokenizer.json.xz")).read())


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", default=str(root / "build" / "release" / "text_bench"))
    parser.add_argument("--published", default=str(root.parent / "shared" / "data" / "tokenizers"))
    parser.add_argument("--filter", default=".*", help="regular expression over tokenizer names")
    arguments = parser.parse_args()
    measured = ours(arguments.bench, f"/({arguments.filter})$")
    texts = list(tokenizer_corpus.chunks(SEED, MIXED_BYTES))
    size = sum(len(text.encode("utf-8")) for text in texts)
    failed = False
    print(f"{'tokenizer':12} {'ours MB/s':>10} {'theirs MB/s':>12} {'ratio':>6} {'worst run':>10} {'load ms':>8}")
    for name in [entry.split("/")[1] for entry in measured if entry.startswith("mixed/")]:
        speed = measured[f"mixed/{name}"]["bytes_per_second"]
        other = size / theirs(load(name, arguments.published), texts)
        runs = [entry["bytes_per_second"] for key, entry in measured.items() if key.startswith("run") and
                key.endswith("/" + name)]
        worst = speed / min(runs)
        failed |= speed < 1.5 * other or worst > 10
        print(f"{name:12} {speed / 1e6:10.2f} {other / 1e6:12.2f} {speed / other:6.1f} {worst:9.1f}x "
              f"{measured[f'load/{name}']['cpu_time']:8.1f}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
