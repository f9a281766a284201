#!/usr/bin/env python3
"""A small Hugging Face hub that misbehaves on request, for tests of the downloader.

Prints its port and serves until stdin closes. The hub answers the API and `resolve`
addresses; large files redirect to the CDN, a server on another port that refuses requests carrying
a token. The repository's name says how to behave:

  good            everything as it should be; `main` is renamed-to by t/old-name
  cut             bodies stop half-way, 3 times per file
  no-range        cuts once and then ignores Range
  flaky           503 twice before each answer
  limited         429 with Retry-After: 0, twice
  down            always 500
  short-list      the list says that a file is shorter than it is
  long-list       the list says that a file is longer than it is
  bad-hash        content differs from the listed hash
  bad-once        content differs once
  expired         the CDN answers 403 once
  loop            redirects to itself
  no-blobs        the list has neither sizes nor hashes; the headers of a file do
  evil            lists ../../evil.json
  gated, missing, unauthorized, no-revision: the error of that name
  private         needs the token "secret"
  only-gguf       holds no safetensors

GET /_log returns the requests since the last GET /_reset, one a line: server, method, path, Range,
whether a token came.
"""

import hashlib
import http.server
import json
import sys
import threading
import urllib.parse
from collections import Counter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "additional_chat_templates/tool use.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 2000,
    "README.md": b"not wanted",
    "onnx/model.onnx": b"not wanted either",
}
COUNTS: Counter = Counter()  # of misbehaviours so far, per (repository, file)
LOG: list[str] = []
LOCK = threading.Lock()
PORTS: dict[str, int] = {}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def siblings(repo: str) -> list[dict]:
    entries = []
    for name, data in FILES.items():
        if repo == "only-gguf":
            name = name.replace(".safetensors", ".gguf")
        if repo == "no-blobs":
            entries.append({"rfilename": name})
            continue
        entry = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if name == "model.safetensors":
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entry["size"] += {"short-list": -1000, "long-list": 1000}.get(repo, 0)
        entries.append(entry)
    if repo == "evil":
        entries.append({"rfilename": "../../evil.json", "size": 1, "blobId": git_sha1(b"x")})
    return entries


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *arguments) -> None:
        pass

    @property
    def name(self) -> str:
        return "cdn" if self.server.server_port == PORTS["cdn"] else "hub"

    def first_times(self, what: str, count: int) -> bool:
        with LOCK:
            COUNTS[what] += 1
            return COUNTS[what] <= count

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str = "", message: str = "", headers: dict | None = None) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code, **(headers or {})})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path)
        if path.path == "/_log":
            return self.answer(200, "\n".join(LOG).encode())
        if path.path == "/_reset":
            LOG.clear()
            return self.answer(200)
        token = self.headers.get("Authorization", "")
        with LOCK:
            LOG.append(f"{self.name} {self.command} {path.path} {self.headers.get('Range', '-')} "
                       f"{'token' if token else 'no-token'}")
        parts = [urllib.parse.unquote(p) for p in path.path.strip("/").split("/")]
        if self.name == "cdn":
            if token:
                return self.error(400, message="a token reached the CDN")
            return self.content(parts[0], "/".join(parts[1:]))
        if parts[:2] == ["api", "models"] and parts[4] == "revision":
            return self.list(parts[3], parts[5], token)
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve(parts[1], "/".join(parts[4:]))
        self.error(404, "RepoNotFound")

    def list(self, repo: str, revision: str, token: str) -> None:
        if repo == "old-name":
            return self.answer(307, b"", {"Location": f"/api/models/t/good/revision/{revision}?blobs=true"})
        if repo == "gated":
            return self.error(403, "GatedRepo", "Access is restricted")
        if repo == "unauthorized":
            return self.error(401, "", "Invalid username or password.")
        if repo == "private" and token != "Bearer secret":
            return self.error(401, "RepoNotFound")
        if repo == "missing":
            return self.error(404, "RepoNotFound")
        if repo == "no-revision" or revision not in ("main", "refs/pr/1", COMMIT):
            return self.error(404, "RevisionNotFound")
        if repo == "down":
            return self.error(500, "", "broken")
        if repo == "flaky" and self.first_times("flaky list", 2):
            return self.error(503)
        if repo == "limited" and self.first_times("limited list", 2):
            return self.error(429, headers={"Retry-After": "0"})
        self.answer(200, json.dumps({"sha": COMMIT, "siblings": siblings(repo)}).encode())

    def resolve(self, repo: str, name: str) -> None:
        if name not in FILES:
            return self.error(404, "EntryNotFound")
        data = FILES[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(data)}"'}
        if repo == "loop":
            return self.answer(302, b"", {"Location": self.path})
        if name == "model.safetensors":
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data)),
                        "Location": f"http://127.0.0.1:{PORTS['cdn']}/{repo}/{urllib.parse.quote(name)}"}
            return self.answer(302, b"", headers)
        if self.command == "HEAD":
            return self.answer(200, b"", headers | {"Content-Length": str(len(data))})
        self.content(repo, name)

    def content(self, repo: str, name: str) -> None:
        data = FILES[name]
        what = f"{repo} {name}"
        if repo == "flaky" and self.first_times(what, 2):
            return self.error(503)
        if repo == "expired" and self.name == "cdn" and self.first_times(what, 1):
            return self.error(403, message="Request has expired")
        if repo == "bad-hash" or (repo == "bad-once" and self.first_times(what, 1)):
            data = b"!" + data[1:]
        begin, status, headers = 0, 200, {}
        requested = self.headers.get("Range")
        if requested and repo != "no-range":
            begin = int(requested.removeprefix("bytes=").rstrip("-"))
            status = 206
            if begin >= len(data):
                return self.error(416)
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        body = data[begin:]
        headers["Content-Length"] = str(len(body))
        cuts = {"cut": 3, "no-range": 1}.get(repo, 0)
        if len(body) > 1 and cuts and self.first_times(what, cuts):
            self.answer(status, body[:len(body) // 2], headers)
            self.close_connection = True
            return
        self.answer(status, body, headers)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        pass  # clients hang up when they have seen enough


def main() -> None:
    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    PORTS["hub"], PORTS["cdn"] = (s.server_port for s in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{PORTS['hub']}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
