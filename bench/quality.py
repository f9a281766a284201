#!/usr/bin/env python3
"""Bytes against quality: one model in every format that `nibble quantize` writes.

    bench/quality.py SOURCE [--text FILE] [--calibration FILE] [--nibble BINARY]

Quantises SOURCE (a folder or .gguf file) in a scratch folder, compares each result with the BF16 import of SOURCE by
`nibble eval --json`, and writes docs/quality.json and docs/quality.svg; prints the table of docs/quality.md. Needs
Python alone. The text on which activations are calibrated is never the one that is scored.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = [
    ("FP8, per channel", ["--format", "fp8"]),
    ("NVFP4 max", ["--method", "max"]),
    ("NVFP4 four over six", ["--method", "four-over-six"]),
    ("NVFP4 searched (mse)", ["--method", "mse"]),
    ("NVFP4 searched, smoothed", ["--method", "mse", "--smooth"]),
    ("NVFP4 searched, lm_head too", ["--method", "mse", "--lm-head"]),
    ("MXFP4 max", ["--format", "mxfp4", "--method", "max"]),
    ("MXFP4 searched", ["--format", "mxfp4"]),
    ("INT4, groups of 64 or 128", ["--format", "int4"]),
]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def measure(options):
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        wide = pathlib.Path(scratch) / "bf16"
        run(options.nibble, "quantize", options.source, wide, "--format", "bf16")
        text = ["--text", options.text] if options.text else []
        tied = json.loads((wide / "config.json").read_text()).get("tie_word_embeddings", False)
        for name, flags in RECIPES:
            if tied and "--lm-head" in flags:
                continue
            made = pathlib.Path(scratch) / "made"
            extra = ["--text", options.calibration] if "--smooth" in flags else []
            run(options.nibble, "quantize", options.source, made, "--force", *flags, *extra)
            found = json.loads(run(options.nibble, "eval", made, "--reference", wide, "--json", *text))
            if not rows:
                rows.append({"name": "BF16 (the import)", "bytes": found["reference"]["weight_bytes"], "kl": 0.0,
                             "perplexity": found["reference"]["perplexity"], "same_top": 1.0,
                             "tokens": found["tokens"]})
            rows.append({"name": name, "bytes": found["weight_bytes"], "kl": found["mean_kl"],
                         "perplexity": found["perplexity"], "same_top": found["same_top"], "tokens": found["tokens"]})
            print(rows[-1], flush=True)
    return rows


def table(rows):
    lines = ["| weights | MB | perplexity | KL, nats per token | same likeliest token |",
             "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['bytes'] / 1e6:.1f} | {row['perplexity']:.2f} | {row['kl']:.4f} | "
                     f"{100 * row['same_top']:.1f} % |")
    return "\n".join(lines)


def picture(rows, model):
    """Horizontal bars of KL divergence, bytes beside them."""
    left, width, step, top = 230, 400, 28, 64
    bars = rows[1:]
    largest = max(row["kl"] for row in bars)
    height = top + step * len(bars) + 34
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="system-ui, sans-serif" '
             'font-size="13" role="img">',
             f"<title>KL divergence of {model} from its BF16 import, by weight format</title>",
             f'<rect width="760" height="{height}" fill="#fff"/>',
             f'<text x="16" y="24" font-size="16" font-weight="600" fill="#111">{model}: distance from BF16</text>',
             '<text x="16" y="44" fill="#555">KL divergence, nats per token: shorter is better; weights in MB on the '
             'right</text>']
    for i, row in enumerate(bars):
        y = top + step * i
        length = width * row["kl"] / largest
        colour = "#76b900" if row["name"].startswith("NVFP4") else "#8a8f98"
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end" fill="#222">{row["name"]}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 14}" fill="#222">{row["kl"]:.3f}</text>')
        parts.append(f'<text x="744" y="{y + 14}" text-anchor="end" fill="#555">{row["bytes"] / 1e6:.0f}</text>')
    parts.append(f'<text x="16" y="{height - 10}" fill="#555">{rows[0]["tokens"]} tokens of the built-in sample; BF16: '
                 f'{rows[0]["bytes"] / 1e6:.0f} MB, perplexity {rows[0]["perplexity"]:.2f}</text>')
    return "\n".join(parts + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--text", default="", help="what is scored; default: the built-in sample")
    parser.add_argument("--calibration", default=ROOT / "ARCHITECTURE.md", help="what --smooth reads")
    parser.add_argument("--nibble", default=ROOT / "build/release/nibble")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="the name in the picture")
    options = parser.parse_args()
    rows = measure(options)
    (ROOT / "docs/quality.json").write_text(json.dumps(rows, indent=1) + "\n")
    (ROOT / "docs/quality.svg").write_text(picture(rows, options.model))
    print(table(rows))


if __name__ == "__main__":
    main()
