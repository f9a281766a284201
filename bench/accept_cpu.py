#!/usr/bin/env python3
"""Measures what the CPU backend is meant to reach, and prints every line as met or missed.

    bench/accept_cpu.py NIBBLE MODEL [--parts linear,threads,avx2,ops,model,served,start] [--json FILE]

MODEL is SmolLM2-135M in NVFP4 (make model). One thread unless said. Nothing else should run; all parts take six minutes or so.

linear:  `nibble bench kernels` of every pair of formats: 1, 4, 16, 128 and 512 tokens beside probes that read and multiply.
threads: 1 and 512 tokens on two threads.
avx2:    1 and 512 tokens with the AVX2 kernels, beside the int8 probe of the fastest ones.
ops:     64 experts of 2,048 x 768; attention behind 8,192 tokens.
model:   a dense Llama shape of 1.1 B with made-up weights: a prompt of 512 and decode. Goals are those of a machine that reads 40 GB/s
         and whose int8 probe makes 1 TOP/s, times the share of these that this machine has.
served:  MODEL behind HTTP: 1, 8 and 32 requests in parallel, 64 tokens in and 64 out. Goals as they are, whatever the machine; what the
         int8 probe would make of them stands beside them.
start:   seconds from the start of `nibble serve` to the first token.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import serve_load
import start

CODES = [f"{weights}x{activations}" for weights in ("nvfp4", "mxfp4") for activations in ("int16", "int8", "bf16", "requantized")]
OTHERS = ["int4g128xint8", "int4g128xbf16", "int8g128xint8", "int8g128xbf16", "fp8xbf16", "bf16xbf16"]
REFERENCE_READ, REFERENCE_INT8 = 40e9, 1e12  # what the goals of whole models were set for
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 22, "hidden_size": 2048,
         "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
         "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False,
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
PREFILL_GOAL = 270
DECODE_GOALS = {"config": ("BF16 head", 49), "all-4bit": ("NVFP4 head", 56)}
SERVED_GOALS = {1: 75, 8: 370, 32: 450}
TTFT_GOAL, START_GOAL = 8.0, 0.5


class Lines:
    """Figures with their goals; at_least says on which side of the goal a figure should be."""

    def __init__(self):
        self.rows = []

    def add(self, part, what, reached, goal, unit, at_least=True, note=""):
        met = reached >= goal if at_least else reached <= goal
        self.rows.append({"part": part, "what": what, "reached": reached, "goal": goal, "unit": unit, "met": met, "note": note})
        sign = ">=" if at_least else "<="
        print(f"{'met   ' if met else 'MISSED'} {part:8} {what:52} {reached:7.2f} {sign} {goal:<6.4g} {unit}{'  ' + note if note else ''}",
              flush=True)

    def add_info(self, part, what, reached, unit):
        self.rows.append({"part": part, "what": what, "reached": reached, "unit": unit})
        print(f"       {part:8} {what:52} {reached:7.2f} {unit}", flush=True)


def bench(nibble, *options):
    result = subprocess.run([nibble, "bench", *options, "--json"], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"nibble bench {' '.join(options)}: {result.stderr.strip()}")
    return json.loads(result.stdout)


def add_linears(lines, part, report, threads):
    for m in report["measurements"]:
        if m["threads"] != threads:
            continue
        what = f"{m['kernel']}, M={m['m']}, {m['weight_bytes_per_second'] / 1e9:.1f} GB/s, {m['ops_per_second'] / 1e9:.0f} GOP/s"
        for goal in m["goals"]:
            at_least = goal["ceiling"] != "of M=1's time"
            unit = ("times " if not at_least or goal["ceiling"] == "of one thread" else "") + goal["ceiling"]
            lines.add(part, what, goal["reached"], goal["goal"], unit, at_least)
        if not m["goals"]:
            lines.add_info(part, what, m["compute_share"], "of peak")


def linear(lines, nibble, _):
    for kernel in CODES + OTHERS:
        add_linears(lines, "linear", bench(nibble, "kernels", "--op", "linear", "--kernel", kernel, "--threads", "1"), 1)


def threads(lines, nibble, _):
    for kernel in CODES:
        add_linears(lines, "threads",
                    bench(nibble, "kernels", "--op", "linear", "--kernel", kernel, "--threads", "1,2", "--tokens", "1,512"), 2)


def avx2(lines, nibble, _):
    for kernel in ("nvfp4xint8", "mxfp4xint8"):
        add_linears(lines, "avx2",
                    bench(nibble, "kernels", "--op", "linear", "--kernel", kernel, "--isa", "avx2", "--tokens", "1,512"), 1)


def ops(lines, nibble, _):
    for op in bench(nibble, "kernels", "--op", "moe,attention", "--threads", "1")["ops"]:
        behind = f" behind {op['context']}" if op.get("context") else ""
        lines.add("ops", f"{op['op']} {op['shape']}, M={op['m']}{behind}, {op['seconds'] * 1e3:.2f} ms", op["reached"], op["goal"],
                  "of what read and multiply allow")


def int8_share(nibble):
    """This machine's int8 probe, one thread, over the reference's."""
    report = bench(nibble, "kernels", "--op", "linear", "--kernel", "nvfp4xint8", "--tokens", "16", "--threads", "1", "--rows", "256")
    return report["probes"][0]["best_int8_ops_per_second"] / REFERENCE_INT8


def model(lines, nibble, _):
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder)
        (config / "config.json").write_text(json.dumps(LLAMA))
        (config / "hf_quant_config.json").write_text(json.dumps(
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}}))
        measure = ["model", folder, "--load-format", "dummy", "--threads", "1"]
        for activations in ("int8", "int16", "requantized"):
            share = int8_share(nibble)
            repeat = "2" if activations == "int8" else "1"  # the median of one or two
            figure = bench(nibble, *measure, "--prompt", "512", "--decode", "8", "--repeat", repeat, "--cpu-activations", activations)
            what = f"1.1 B, prompt of 512, {activations}"
            if activations == "int8":
                lines.add("model", what, figure["prefill_tokens_per_second"], PREFILL_GOAL * share, "tokens/s")
            else:
                lines.add_info("model", what, figure["prefill_tokens_per_second"], "tokens/s")
        for policy in DECODE_GOALS:
            add_decode(lines, policy, bench(nibble, *measure, "--prompt", "16", "--decode", "16", "--dummy-policy", policy))


def add_decode(lines, policy, figure):
    head, goal = DECODE_GOALS[policy]
    lines.add("model", f"1.1 B, decode, {head}, {100 * figure['share_of_read']:.0f} % of read", figure["decode_tokens_per_second"],
              goal * figure["read_bytes_per_second"] / REFERENCE_READ, "tokens/s")


def served(lines, nibble, checkpoint, rounds=2):
    share = int8_share(nibble)
    for activations in ("int16", "int8"):
        port = start.free_port()
        url = f"http://127.0.0.1:{port}"
        server = subprocess.Popen([nibble, "serve", checkpoint, "--threads", "1", "--cpu-activations", activations, "--host", "127.0.0.1",
                                   "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while start.stage_of(url) is not None:
                if server.poll() is not None:
                    sys.exit(f"serve ended with {server.returncode}")
                time.sleep(0.05)
            serve_load.one_request(url, 64, 64, 0)  # warms up
            for parallel, goal in SERVED_GOALS.items():
                rate, ttft = serve_load.measure(url, parallel, 64, 64, rounds, 1000 * parallel)
                lines.add("served", f"{activations}, {parallel} in parallel", rate, goal, "tokens/s", note=f"by int8 probe: {goal * share:.0f}")
                if parallel == max(SERVED_GOALS):
                    lines.add("served", f"{activations}, {parallel} in parallel, TTFT p50", ttft, TTFT_GOAL, "s", at_least=False)
        finally:
            server.terminate()
            server.wait()


def first_token(lines, nibble, checkpoint):
    figures = [start.measure(nibble, checkpoint, ["--threads", "1"])["first_token_seconds"] for _ in range(3)]
    lines.add("start", "from the page cache to the first token", statistics.median(figures), START_GOAL, "s", at_least=False)


PARTS = {"linear": linear, "threads": threads, "avx2": avx2, "ops": ops, "model": model, "served": served, "start": first_token}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model", help="SmolLM2-135M in NVFP4")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", help="write the figures there, too")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: expected some of {','.join(PARTS)}")
    lines = Lines()
    for part in parts:
        PARTS[part](lines, arguments.nibble, arguments.model)
    goals = [row for row in lines.rows if "goal" in row]
    print(f"met: {sum(row['met'] for row in goals)} of {len(goals)}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(lines.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
