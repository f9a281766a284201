#!/usr/bin/env python3
"""Soaks a server for some minutes: parallel chats, streams cut short, malformed bodies, full queues; then checks that it
still answers, that greedy text has not changed, that nothing runs any more and that memory is flat.

  soak.py NIBBLE MODEL [--minutes 3]
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0,
            "max_tokens": 24}
BAD_BODIES = [b"", b"{", b"[]", b'{"messages": 3}', b'{"messages": [{"role": "user", "content": {"a": 1}}]}', b"\xff\xfe",
              b'{"messages": []}', b'{"n": 1e99, "messages": []}', b"[" * 5000]


class Server:
    def __init__(self, nibble, model):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen([nibble, "serve", model, "--port", str(self.port), "--max-num-seqs", "8",
                                         "--max-num-queued-reqs", "8", "--max-model-len", "1024",
                                         "--kv-cache-memory-bytes", "24M"],  # one context: sequences pre-empt each other
                                        stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while self.status("/health") != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit("soak: the server did not become ready")
            time.sleep(0.1)

    def request(self, method, path, body=None, read=True):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        response = connection.getresponse()
        data = response.read() if read else response.read(200)
        connection.close()
        return response.status, data

    def status(self, path):
        try:
            return self.request("GET", path)[0]
        except OSError:
            return 0

    def answer(self):
        status, data = self.request("POST", "/v1/chat/completions", json.dumps(QUESTION))
        return json.loads(data)["choices"][0]["message"]["content"] if status == 200 else None

    def resident(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) // 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, *prefixes):
        metrics = self.request("GET", "/metrics")[1].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(prefixes))

    def running(self):
        return self.metric("vllm:num_requests_running", "vllm:num_requests_waiting{")


def abuse(server, seed, deadline, counts):
    generator = random.Random(seed)
    while time.monotonic() < deadline:
        kind = generator.choice(["chat", "stream", "cut", "bad"])
        body = dict(QUESTION, max_tokens=generator.randint(1, 400), temperature=generator.choice([0, 1.0]))
        body["messages"] = [{"role": "user", "content": " ".join(
            generator.choice(["red", "tall", "seven", "rain", "stone"]) for _ in range(generator.randint(1, 60)))}]
        try:
            if kind == "bad":
                status, _ = server.request("POST", "/v1/chat/completions", generator.choice(BAD_BODIES))
                assert status in (400, 503), f"a malformed body got {status}"
            else:
                body["stream"] = kind != "chat"
                status, _ = server.request("POST", "/v1/chat/completions", json.dumps(body), read=kind != "cut")
                assert status in (200, 503), f"{kind} got {status}"
            outcome = "refused" if status == 503 else kind
            counts[outcome] = counts.get(outcome, 0) + 1
            if status == 503:
                time.sleep(generator.uniform(0, 1))  # clients come back; without a pause nearly all would be refusals
        except (ConnectionError, http.client.HTTPException) as error:
            raise AssertionError(f"{kind}: {error!r}") from error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=3)
    arguments = parser.parse_args()
    server = Server(arguments.nibble, arguments.model)
    try:
        expected = server.answer()
        deadline = time.monotonic() + 20  # warm: buffers and caches reach their size
        counts = {}
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda seed: abuse(server, seed, deadline, counts), range(24)))
        before, fds = server.resident(), server.descriptors()
        deadline = time.monotonic() + 60 * arguments.minutes
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda seed: abuse(server, 100 + seed, deadline, counts), range(24)))
        end = time.monotonic() + 60
        while server.running() > 0 and time.monotonic() < end:
            time.sleep(0.2)
        assert server.running() == 0, "requests still run a minute after the last client left"
        assert server.answer() == expected, "the greedy answer changed"
        assert all(counts.get(kind, 0) > 0 for kind in ("chat", "stream", "cut", "bad", "refused")), counts
        tokens, preempted = (int(server.metric(f"vllm:{name}_total")) for name in ("generation_tokens", "num_preemptions"))
        assert preempted > 0, "no sequence was ever pre-empted: the KV cache is too large for this soak"
        after = server.resident()
        assert after < before + 64, f"resident memory grew from {before} to {after} MiB"
        assert server.descriptors() <= fds + 4, f"descriptors grew from {fds} to {server.descriptors()}"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, "SIGTERM did not end it cleanly"
        print(f"soak: {sum(counts.values())} requests {counts}, {tokens} tokens, {preempted} pre-emptions, "
              f"{before} -> {after} MiB: nothing found")
    finally:
        server.process.kill()


if __name__ == "__main__":
    main()
