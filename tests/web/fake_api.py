"""A fake of the server's public API that serves web/ under the product's Content-Security-Policy.

The last user message chooses the answer (ANSWERS below); tests set the server's state through FakeApi's
members. `python3 fake_api.py [PORT]` serves it for work on the page.
"""
import json
import pathlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WEB = pathlib.Path(__file__).resolve().parents[2] / "web"
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self' data:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

MARKDOWN = """\
# Tea and *coffee*

Both are **good**, `sort()` them by ~~price~~ taste, see [the site](https://example.org/a_(b)) or https://example.net/x.

| drink | caffeine |
| --- | ---: |
| tea | 40 mg |
| coffee | 95 mg |

1. first
   - nested
2. second

- [x] done

> quoted

```python
def brew(leaves):
    return "<b>tea</b>" * leaves
```
"""
HOSTILE = """\
<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">

[click](javascript:window.hacked=3) [data](data:text/html,<script>window.hacked=4</script>)
![pixel](https://example.org/pixel.png) <a href="javascript:alert(1)" onclick="window.hacked=5">a</a>

```html"><img src=x onerror=window.hacked=6>
</code></pre><script>window.hacked = 7</script>
```

| <svg onload=window.hacked=8> |
| --- |
| [x](JaVaScRiPt:window.hacked=9) |
"""


class FakeApi:
    """health: None when ready, else (stage, percent). key: the one that requests need, if any."""

    def __init__(self, port=0):
        self.health = None
        self.key = None
        self.token_seconds = 0.02
        self.requests = []               # bodies of chat completions
        self.gone = threading.Event()    # a client left in the middle of an answer
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"api": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def start(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    api = None
    protocol_version = "HTTP/1.0"  # the body ends with the connection

    def log_message(self, *_):
        pass

    def respond(self, status, body=b"", content_type="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def respond_json(self, status, value, **headers):
        self.respond(status, json.dumps(value).encode(), **headers)

    def refuse(self, status, message, **extra):
        error = {"message": message, "type": "Error", "param": None, "code": status}
        self.respond_json(status, {**extra, "error": error})

    def allowed(self):
        if self.api.key and self.headers.get("Authorization") != f"Bearer {self.api.key}":
            self.refuse(401, "a valid API key is needed: Authorization: Bearer KEY")
            return False
        return True

    def do_GET(self):
        if self.path == "/health":
            if self.api.health is None:
                return self.respond(200)
            stage, percent = self.api.health
            return self.refuse(503, f"the model is not ready yet: {stage}", stage=stage, percent=percent)
        if self.path == "/v1/models":
            card = {"id": "fake/Model-0.1B", "object": "model", "max_model_len": 8192}
            return self.allowed() and self.respond_json(200, {"object": "list", "data": [card]})
        file = WEB / (self.path.lstrip("/") or "index.html")
        if file.parent != WEB or not file.is_file():
            return self.refuse(404, f"there is nothing at {self.path}")
        self.respond(200, file.read_bytes(), f"{TYPES[file.suffix]}; charset=utf-8", Cache_Control="no-cache",
                     Content_Security_Policy=POLICY, X_Content_Type_Options="nosniff")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.api.requests.append(body)
        question = body["messages"][-1]["content"]
        answer = ANSWERS.get(question, Handler.echo)
        try:
            answer(self, question)
        except (BrokenPipeError, ConnectionResetError):
            self.api.gone.set()

    # ---- Answers ----

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.tokens = 0

    def event(self, value):
        self.wfile.write(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")
        self.wfile.flush()

    def usage(self):
        return {"prompt_tokens": 10, "completion_tokens": self.tokens, "total_tokens": 10 + self.tokens}

    def delta(self, finish=None, **delta):
        self.event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "usage": self.usage(),
                    "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def tell(self, text, field="content", size=4):
        for start in range(0, len(text), size):
            time.sleep(self.api.token_seconds)
            self.tokens += 1
            self.delta(**{field: text[start:start + size]})

    def end(self, reason="stop"):
        self.delta(finish=reason)
        self.event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "usage": self.usage(), "choices": []})
        self.event(b"[DONE]")

    def echo(self, question):
        self.begin()
        self.wfile.write(b": a comment that clients skip\n\n")
        self.tell(f"You said: {question}")
        self.end()

    def endless(self, _):
        self.begin()
        while True:
            self.tell("on and on ")

    def markdown(self, _):
        self.begin()
        self.tell(MARKDOWN)
        self.end()

    def hostile(self, _):
        self.begin()
        self.tell(HOSTILE, size=7)
        self.end()

    def reasoning(self, _):
        self.begin()
        self.tell("Let me think about **it**.", field="reasoning")
        self.tell("Forty-two.")
        self.end()

    def cut(self, _):
        self.begin()
        self.tell("No end in")
        self.end("length")

    def refused(self, _):
        self.refuse(400, "temperature 9: must be between 0 and 2")

    def busy(self, _):
        self.refuse(503, "all 64 places are taken")

    def breaks_off(self, _):
        self.begin()
        self.tell("Half an ans")
        self.event({"error": {"message": "the deadline of 5 s has passed", "type": "Error", "param": None, "code": 504}})
        self.event(b"[DONE]")

    def hangs_up(self, _):
        self.begin()
        self.tell("Half an ans")


ANSWERS = {
    "endless": Handler.endless,
    "markdown": Handler.markdown,
    "hostile": Handler.hostile,
    "reasoning": Handler.reasoning,
    "cut": Handler.cut,
    "refused": Handler.refused,
    "busy": Handler.busy,
    "breaks off": Handler.breaks_off,
    "hangs up": Handler.hangs_up,
}


if __name__ == "__main__":
    fake = FakeApi(int(sys.argv[1]) if len(sys.argv) > 1 else 8010)
    print(f"{fake.url}  (say one of: {', '.join(ANSWERS)})")
    fake.server.serve_forever()
