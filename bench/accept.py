#!/usr/bin/env python3
"""Measures a GPU with made-up weights at the true shapes of published models, and prints tables.

    bench/accept.py NIBBLE [--parts models,mixed,kernels,start] [--models 30b,next,...] [--json FILE]

models:  `nibble bench model configs/NAME --load-format dummy`. Context 1,024, FP8 KV cache (gpt-oss: BF16), greedy, no speculation; the read
         ceiling is measured in the same run. Before the first figures of each model the first two layers and the head, at their true
         shapes, are compared with the reference's ops on the host (--check): how far their logits are apart stands beside the hash.
         A model whose logits depend on the batch fails.
mixed:   the longest gap between two tokens of 8 answers while a prompt of 8,192 arrives.
kernels: `nibble bench kernels`: linears of 1 to 128 tokens beside a kernel that only reads, of long prompts beside cuBLASLt in BF16; the block
         of experts; attention.
start:   a made-up export of Qwen3-Next-80B-A3B (50.8 GB) in /dev/shm, from the start of `nibble serve` to the first token (bench/start.py).
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
FP8 = ["--kv-cache-dtype", "fp8"]

# name, config, policy of the weights, KV format, [(kind, prompt, batch, context)]
DECODE, BATCH, PREFILL, LONG = ("decode", 960, 1, 0), ("batch", 960, 64, 0), ("prefill", 8192, 1, 0), "context"
MODELS = [
    ("30b", "Qwen3-30B-A3B", "config", FP8, [DECODE, BATCH, PREFILL]),
    ("next", "Qwen3-Next-80B-A3B", "config", FP8,
     [DECODE, BATCH, PREFILL, (LONG, 64, 1, 1024), (LONG, 64, 1, 32768), (LONG, 64, 1, 131072)]),
    ("next-4bit", "Qwen3-Next-80B-A3B", "all-4bit", FP8, [DECODE]),
    ("70b", "Llama-3.3-70B", "config", FP8, [DECODE, BATCH, PREFILL]),
    ("gpt-oss", "gpt-oss-120b", "config", [], [DECODE]),
]


LINEARS = "4096x4096,14336x4096,4096x14336,8192x8192,28672x8192,8192x28672,2048x4096,12288x2048,151936x2048"
KERNELS = [
    ["--op", "linear", "--shape", LINEARS, "--tokens", "1,8,16,32,64,128"],
    ["--op", "linear", "--shape", "4096x4096,12288x2048,8192x8192,28672x8192", "--tokens", "512,2048,8192"],
    ["--op", "moe", "--tokens", "1,8,16,64"],
    ["--op", "attention", "--tokens", "1,8,64", "--context", "1024,32768,131072"],
]
START_BYTES = 60 << 30


def groups(shapes):
    """Shapes that one process measures: equal prompts, all batches times all contexts."""
    kinds = [[s for s in shapes if s[0] in ("decode", "batch")], [s for s in shapes if s[0] == "prefill"],
             [s for s in shapes if s[0] == LONG]]
    return [group for group in kinds if group]


def run(nibble, config, policy, kv, group, device):
    command = [nibble, "bench", "model", str(CONFIGS / config), "--device", device, "--load-format", "dummy",
               "--dummy-policy", policy, "--json", "--repeat", "1", *kv,
               "--decode", "2" if group[0][0] == "prefill" else "64", "--prompt", str(group[0][1]),
               "--batch", ",".join(str(b) for b in sorted({s[2] for s in group})),
               "--context", ",".join(str(c) for c in sorted({s[3] for s in group}))]
    if group[0][0] == "decode":
        command.append("--check")
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        failed = " ".join(line for line in result.stderr.splitlines()[-1:] if " error " in line)
        try:  # all figures, and a check that failed
            failed = (failed or "the first layers' logits do not match the reference's") + ": " + json.dumps(json.loads(result.stdout))
        except json.JSONDecodeError:
            failed = failed or f"ended with {result.returncode}"
        return [{"kind": group[0][0], "error": failed}]
    figures = json.loads(result.stdout)
    figures = figures if isinstance(figures, list) else [figures]
    for figure in figures:
        figure.update(config=config, policy=policy, kind=group[0][0])
    return figures


def line(config, policy, row):
    if "error" in row:
        return f"| {config} ({policy}) | {row['kind']} | failed: {row['error']} | | | |"
    if row["kind"] == "prefill":
        return (f"| {config} ({policy}) | prefill of {row['prompt']} | {row['prefill_tokens_per_second']:.0f} | | | "
                f"{row['last_logits'][0]} |")
    what = f"decode behind {row['context']}" if row["kind"] == LONG else f"decode, batch {row['batch']}"
    check = f", {row['check']['largest_distance']:.4f} from the reference" if "check" in row else ""
    return (f"| {config} ({policy}) | {what} | {row['decode_tokens_per_second']:.0f} | {row['milliseconds_per_step']:.3f} | "
            f"{row['decode_bytes_per_second'] / 1e9:.0f} of {row['read_bytes_per_second'] / 1e9:.0f} | {row['last_logits'][0]}{check} |")


def measure_models(options):
    rows = []
    print("| model | what | tokens/s | ms per step | GB/s of weights, of the read ceiling | last logits |")
    print("|---|---|---:|---:|---:|---|", flush=True)
    for name, config, policy, kv, shapes in MODELS:
        if name not in options.models.split(","):
            continue
        for group in groups(shapes):
            for row in run(options.nibble, config, policy, kv, group, options.device):
                rows.append(row)
                print(line(config, policy, row), flush=True)
    return rows


def printed(command):
    """Runs a command that prints its own figures."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    text = result.stdout.strip()
    print(text or result.stderr.strip(), flush=True)
    row = {"command": command[1:], "output": text.splitlines()}
    return [row if result.returncode == 0 else {**row, "error": result.stderr.strip()}]


def measure_mixed(options):
    return printed([options.nibble, "bench", "model", str(CONFIGS / "Qwen3-30B-A3B"), "--device", options.device, "--load-format", "dummy", *FP8,
                    "--mixed", "--prompt", "8192", "--batch", "8", "--repeat", "1"])


def measure_kernels(options):
    return [row for shapes in KERNELS for row in printed([options.nibble, "bench", "kernels", "--device", options.device, *shapes])]


def measure_start(options):
    memory = pathlib.Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < START_BYTES:
        reason = f"/dev/shm has less than {START_BYTES >> 30} GiB free: the start is not measured"
        print(reason)
        return [{"kind": "start", "skipped": reason}]
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        model = pathlib.Path(folder) / "model"
        rows = printed([options.nibble, "quantize", "--dummy", str(CONFIGS / "Qwen3-Next-80B-A3B"), str(model)])
        script = pathlib.Path(__file__).with_name("start.py")
        for _ in range(2):
            rows += printed([sys.executable, str(script), options.nibble, str(model), "--", "--device", options.device])
    return rows


PARTS = {"models": measure_models, "mixed": measure_mixed, "kernels": measure_kernels, "start": measure_start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    parser.add_argument("--models", default=",".join(m[0] for m in MODELS), help="default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    rows = []
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts {part}: expected {', '.join(PARTS)}")
        rows += PARTS[part](options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
