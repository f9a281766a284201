#!/usr/bin/env python3
"""Writes docs/families.md and the short table of README.md from what the tests and the configs say.

    tools/family_table.py [BUILD]        BUILD: build/release

Runs models_tests' loading and golden cases of every registered architecture and `nibble inspect` on
configs/. Families are those of the registry, formats those of tests/golden/<model>/<format>/; "matches" is
the golden test's verdict. The figure is the mean distance of log-probabilities to the original's FP32 run,
as a multiple of the distance of the original's own BF16 run: the test allows 2.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- families: written by tools/family_table.py -->", "<!-- end of families -->"
LOADS = "EveryTensorIsUsedAndMissingOnesAreNamed"
FIGURE = re.compile(r"^(\w+) \((\w+)\): mean ([\d.]+) \(original in BF16: ([\d.]+)\)")
RESULT = re.compile(r"^\[\s+(OK|FAILED|SKIPPED)\s+\] \S*?(GoldenTest|ModelsTest)\.(\w+)/(\w+)")


def run_tests(build):
    command = [build / "models_tests", f"--gtest_filter=*GoldenTest*:*ModelsTest.{LOADS}/*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def format_of(case):
    """The format of a golden case such as llama_0_nvfp4_a16."""
    _, weights, activations = case.rsplit("_", 2)
    return f"{weights}, int8 activations" if activations == "a8" else weights


def collect(output):
    """architecture -> loads, and (architecture, format) -> [cases, failed, largest multiple]."""
    loads, golden, figures = {}, collections.defaultdict(lambda: [0, 0, 0.0]), {}
    for line in output.splitlines():
        if match := FIGURE.match(line):
            figures[match[1]] = (match[2], float(match[3]) / float(match[4]))
        elif match := RESULT.match(line):
            verdict, suite, _, case = match.groups()
            if suite == "ModelsTest":
                name = case.rsplit("_", 3)[0]
                loads[name] = loads.get(name, True) and verdict == "OK"
                continue
            if case not in figures:  # it did not even load: gtest's verdict stands alone
                continue
            architecture, multiple = figures[case]
            row = golden[architecture, format_of(case)]
            row[0] += 1
            row[1] += verdict != "OK"
            row[2] = max(row[2], multiple)
    return loads, golden


def family_rows(loads, golden):
    rows = ["| architecture | weights | loads | matches the original | distance, in yardsticks (2 are allowed) |",
            "| --- | --- | --- | --- | --- |"]
    for name in sorted(loads):
        cases = sorted((weights, row) for (owner, weights), row in golden.items() if owner == name)
        state = "yes" if loads[name] else "no"
        if not cases:
            rows.append(f"| {name} | | {state} | no golden | |")
        for weights, (count, failed, multiple) in cases:
            verdict = f"{count - failed} of {count}"
            rows.append(f"| {name} | {weights} | {state} | {verdict} | {multiple:.2f} |")
    return rows


def short_rows(loads, golden):
    rows = ["| architecture | loads | matches the original |", "| --- | --- | --- |"]
    for name in sorted(loads):
        cases = [row for (owner, _), row in golden.items() if owner == name]
        count, failed = sum(row[0] for row in cases), sum(row[1] for row in cases)
        verdict = f"{count - failed} of {count} goldens" if cases else "no golden"
        rows.append(f"| {name} | {'yes' if loads[name] else 'no'} | {verdict} |")
    return rows


def inspect(build, config, *options):
    done = subprocess.run([build / "nibble", "inspect", config, "--json", "--threads", "1", *options],
                          capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def size_rows(build):
    rows = ["| config | parameters, active | stored GB | GB per token | GB10 tokens/s | H200 tokens/s | "
            "all 4 bits: GB per token, GB10 tokens/s |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for config in sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir()):
        facts = inspect(build, config)
        four_bit = inspect(build, config, "--dummy-policy", "all-4bit")
        if facts is None or four_bit is None:
            rows.append(f"| {config.name} | not supported | | | | | |")
            continue
        token, small = facts["bytes_per_token"]["total"] / 1e9, four_bit["bytes_per_token"]["total"] / 1e9
        rows.append(f"| {config.name} | {facts['parameters'] / 1e9:.2f} B, {facts['active_parameters'] / 1e9:.2f} B "
                    f"| {facts['bytes']['stored'] / 1e9:.2f} | {token:.3f} | {facts['ceiling_tok_s']['GB10']:.1f} "
                    f"| {facts['ceiling_tok_s']['H200']:.0f} | {small:.3f}, {four_bit['ceiling_tok_s']['GB10']:.1f} |")
    return rows


def main():
    build = (ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build/release")).resolve()
    loads, golden = collect(run_tests(build))
    if not loads:
        sys.exit(f"{build}/models_tests told of no architecture: is it built?")
    (ROOT / "docs" / "families.md").write_text("\n".join([
        "# Model families", "",
        "Written by `tools/family_table.py`. Loads: every tensor of the architecture's tiny models is bound, none is "
        "left over. Matches: tiny checkpoints against what the original implementation computes for them "
        "(`src/models/golden_test.cc`). The distance is the mean over log-probabilities to the original's FP32 run, "
        "divided by that of the original's own BF16 run.", "",
        *family_rows(loads, golden), "",
        "## Full sizes", "",
        "By `nibble inspect configs/NAME`, from names and shapes alone: one token at batch 1 and a context of 1024; the "
        "ceilings are memory bandwidth (GB10 273 GB/s, H200 4,541 GB/s) over bytes.", "",
        *size_rows(build), ""]))
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text("\n".join([before + BEGIN, *short_rows(loads, golden), END + after]))
    print("\n".join(family_rows(loads, golden)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
