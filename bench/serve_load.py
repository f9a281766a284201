#!/usr/bin/env python3
"""Load on a running server: N requests in parallel, fixed prompt and output lengths, streamed; prints tokens/s and TTFT.

  nibble serve MODEL --threads 1 &
  bench/serve_load.py --url http://127.0.0.1:8000 --parallel 1 8 32 --prompt 64 --decode 64
"""
import argparse
import concurrent.futures
import http.client
import json
import random
import statistics
import time
import urllib.parse


def one_request(url, prompt, decode, seed):
    """Token ids in, streamed completion out: (seconds to first token, tokens, seconds in all)."""
    generator = random.Random(seed)
    body = {"prompt": [generator.randrange(100, 40000) for _ in range(prompt)], "max_tokens": decode, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    place = urllib.parse.urlparse(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read().decode()}")
    first, tokens = None, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("choices") and first is None:
            first = time.perf_counter() - start
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
    return first, tokens, time.perf_counter() - start


def measure(url, parallel, prompt, decode, rounds, seed):
    """(tokens/s, median over rounds; seconds to the first token, median over requests); every request's prompt is its own."""
    rates, firsts = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            jobs = [pool.submit(one_request, url, prompt, decode, seed + i) for i in range(parallel)]
            done = [job.result() for job in jobs]
        seed += parallel
        rates.append(sum(tokens for _, tokens, _ in done) / (time.perf_counter() - start))
        firsts += [first for first, _, _ in done]
    return statistics.median(rates), statistics.median(firsts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    one_request(arguments.url, arguments.prompt, arguments.decode, 0)  # warms up
    seed = 1
    for parallel in arguments.parallel:
        rate, first = measure(arguments.url, parallel, arguments.prompt, arguments.decode, arguments.rounds, seed)
        seed += parallel * arguments.rounds
        print(f"{parallel:3d} in parallel: {rate:7.1f} tokens/s, TTFT p50 {first:.2f} s", flush=True)


if __name__ == "__main__":
    main()
