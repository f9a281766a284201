"""A running server for the API tests.

NIBBLE_URL names one that runs already ("http://127.0.0.1:8000"); otherwise the release binary serves
NIBBLE_MODEL, or the model that `make serve` leaves in models/. Without either the tests are skipped.
"""

import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build" / "release" / "nibble"
DEFAULT_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct-NVFP4"
READY_SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(url, process):
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"nibble serve ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"{url}/health did not become 200 within {READY_SECONDS} s")


@pytest.fixture(scope="session")
def server_url():
    url = os.environ.get("NIBBLE_URL")
    if url:
        yield url.rstrip("/")
        return
    model = os.environ.get("NIBBLE_MODEL", str(DEFAULT_MODEL))
    if not BINARY.exists() or not os.path.exists(model):
        pytest.skip("no server: set NIBBLE_URL, or build the release binary and set NIBBLE_MODEL")
    port = free_port()
    process = subprocess.Popen([str(BINARY), "serve", model, "--port", str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def client(server_url):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(
        base_url=server_url + "/v1",
        api_key=os.environ.get("NIBBLE_API_KEY", "none"),
        max_retries=0,
        timeout=120,
    )


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
