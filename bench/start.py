#!/usr/bin/env python3
"""Seconds from the start of `nibble serve MODEL` to the first token of an answer.

    bench/start.py NIBBLE MODEL [--json FILE] [-- further options of serve]

MODEL may be a folder of made-up weights (nibble quantize --dummy). Beside the figure, in the same run: one thread's memcpy, and what `nibble doctor` says of the way to the GPU.
"""
import argparse
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PROMPT = [11, 22, 33, 44, 55, 66, 77, 88]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer) if body else answer.status


def stage_of(url):
    """What the server is doing; None when it is ready."""
    try:
        ask(url + "/health")
        return None
    except urllib.error.HTTPError as error:
        return json.load(error).get("stage", "")
    except (urllib.error.URLError, OSError):
        return "starting"


def memcpy_rate(size=1 << 28):
    source, target = bytearray(size), bytearray(size)
    view = memoryview(target)
    view[:] = source
    begin = time.perf_counter()
    view[:] = source
    return size / (time.perf_counter() - begin)


def stored_bytes(model):
    return sum(file.stat().st_size for file in pathlib.Path(model).glob("*.safetensors"))


def measure(nibble, model, options):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stages = {}  # by the second at which each was first seen
    begin = time.perf_counter()
    server = subprocess.Popen([nibble, "serve", model, "--host", "127.0.0.1", "--port", str(port), *options],
                              stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while True:
            if server.poll() is not None:
                sys.exit(f"serve ended with {server.returncode}:\n{server.stderr.read()}")
            stage = stage_of(url)
            if stage is None:
                break
            stages.setdefault(stage, time.perf_counter() - begin)
            time.sleep(0.01)
        ready = time.perf_counter() - begin
        name = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
        ask(url + "/v1/completions", {"model": name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0})
        first = time.perf_counter() - begin
    finally:
        server.terminate()
        log = server.stderr.read()
        server.wait()
    loaded = re.search(r"loaded (.*)", log)
    return {"ready_seconds": ready, "first_token_seconds": first, "stages": stages,
            "loading": loaded.group(1) if loaded else ""}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--json", help="write the figures there, too")
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    doctor = subprocess.run([arguments.nibble, "doctor"], capture_output=True, text=True).stdout
    cuda = next((line for line in doctor.splitlines() if line.startswith("CUDA")), "")
    figures = {"model": arguments.model, "stored_bytes": stored_bytes(arguments.model), "memcpy_bytes_per_second": memcpy_rate(),
               "gpu": " ".join(cuda.split()[1:])}
    figures |= measure(arguments.nibble, arguments.model, arguments.options)
    print(f"{figures['stored_bytes'] / 1e9:.1f} GB: ready after {figures['ready_seconds']:.2f} s, first token after "
          f"{figures['first_token_seconds']:.2f} s; loaded {figures['loading']}\n"
          f"stages: {', '.join(f'{stage} from {second:.2f} s' for stage, second in figures['stages'].items())}\n"
          f"memcpy of one thread {figures['memcpy_bytes_per_second'] / 1e9:.1f} GB/s; {figures['gpu']}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
