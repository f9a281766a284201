"""The command line as a user meets it: help, errors, one-shot answers, the terminal chat, serving and stopping."""
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NIBBLE = pathlib.Path(os.environ.get("NIBBLE", ROOT / "build/release/nibble"))
MODEL = ROOT / "models/SmolLM2-135M-Instruct-NVFP4"
GGUF = ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDENS = ROOT / "tests/golden"

sys.path.append(str(ROOT / "tools"))
import golden_weights  # noqa: E402

pytestmark = pytest.mark.skipif(not NIBBLE.exists(), reason=f"{NIBBLE} is not built")
needs_model = pytest.mark.skipif(not (MODEL / "config.json").exists(), reason="make model has not run")

COMMANDS = ("serve", "chat", "run", "quantize", "inspect", "bench", "eval", "pull", "doctor")


def nibble(*arguments, stdin=None, timeout=120):
    return subprocess.run([NIBBLE, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny checkpoint in NVFP4."""
    return golden_weights.write_checkpoint(GOLDENS / "llama_0/nvfp4", tmp_path_factory.mktemp("nvfp4"))


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory):
    return golden_weights.write_checkpoint(GOLDENS / "llama_0/bf16", tmp_path_factory.mktemp("bf16"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_help_lists_every_command():
    done = nibble("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "doctor"])
def test_every_command_teaches_by_example(command):
    done = nibble(command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_an_unknown_flag_suggests_the_nearest(tiny):
    done = nibble("serve", tiny, "--max-modle-len", "64")
    assert done.returncode == 2
    assert "--max-modle-len" in done.stderr and "--max-model-len" in done.stderr


def test_a_missing_model_says_what_was_tried():
    done = nibble("inspect", "/no/such/model")
    assert done.returncode != 0
    assert "/no/such/model" in done.stderr


@pytest.mark.parametrize("flag, value, hint", [
    ("--device", "tpu", "auto, cpu, cuda or cuda:N"), ("--cpu-activations", "int3", "bf16, int16, int8 or requantized"),
    ("--kv-cache-dtype", "int2", "bf16, fp8 or nvfp4"), ("--max-model-len", "many", "32k"), ("--block-size", "17", "17")])
def test_bad_values_are_named_with_what_is_allowed(flag, value, hint, tiny):
    done = nibble("run", tiny, "hello", flag, value)
    assert done.returncode == 2
    assert value in done.stderr and hint in done.stderr


def test_underscores_are_accepted_as_vllm_does(tiny):
    done = nibble("run", tiny, "hello", "--max_model_len", "many")
    assert "unknown argument" not in done.stderr


def test_inspect_counts_formats_and_bytes(tiny):
    done = nibble("inspect", tiny, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["layers"] == 3
    assert facts["kv_bytes_per_token_bf16"] == 3 * 2 * 2 * 24 * 2
    stored = sum(entry["bytes"] for entry in facts["stored"].values())
    header_and_data = (tiny / "model.safetensors").stat().st_size
    assert 0 < stored < header_and_data


def test_inspect_counts_what_a_token_reads_from_a_config_alone():
    done = nibble("inspect", ROOT / "configs/Llama-3.1-8B", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    token = facts["bytes_per_token"]
    parts = {"attention", "linear_attention", "ffn", "experts", "shared_expert", "head", "kv", "state", "other"}
    assert set(token) == parts | {"total"}
    assert token["total"] == sum(token[part] for part in parts)
    assert abs(token["total"] - 5.044e9) < 0.02 * 5.044e9
    assert token["kv"] == 1024 * facts["kv_bytes_per_token"] == 1024 * facts["kv_bytes_per_token_fp8"]
    assert facts["context"] == 1024
    assert facts["bytes"]["stored"] > 0 and facts["bytes"]["resident"] > 0
    assert facts["active_parameters"] < facts["parameters"]
    assert facts["left_over"] == []
    assert abs(facts["ceiling_tok_s"]["GB10"] - 273e9 / token["total"]) < 1e-6
    assert {"GB10", "H200", "this machine"} == set(facts["ceiling_tok_s"])

    longer = json.loads(nibble("inspect", ROOT / "configs/Llama-3.1-8B", "--json", "--context", "32K").stdout)
    assert longer["bytes_per_token"]["kv"] == 32 * token["kv"]
    smaller = json.loads(nibble("inspect", ROOT / "configs/Llama-3.1-8B", "--json", "--dummy-policy", "all-4bit").stdout)
    assert smaller["bytes_per_token"]["head"] < 0.3 * token["head"]


def test_a_config_alone_runs_with_dummy_weights(tmp_path, tiny):
    shutil.copy(tiny / "config.json", tmp_path)
    refused = nibble("run", tmp_path, "hello")
    assert refused.returncode != 0
    assert "--load-format dummy" in refused.stderr
    no_text = nibble("run", tmp_path, "--raw", "hello", "--load-format", "dummy")
    assert no_text.returncode == 2
    assert "token ids" in no_text.stderr
    bench = nibble("bench", "model", tmp_path, "--load-format", "dummy", "--prompt", "16", "--decode", "4",
                   "--repeat", "1", "--json")
    assert bench.returncode == 0, bench.stderr
    again = nibble("bench", "model", tmp_path, "--load-format", "dummy", "--prompt", "16", "--decode", "4",
                   "--repeat", "1", "--json")
    assert json.loads(bench.stdout)["last_logits"] == json.loads(again.stdout)["last_logits"]


def test_dummy_options_are_checked(tiny):
    unknown = nibble("inspect", tiny, "--load-format", "pickle")
    assert unknown.returncode == 2 and "expected auto, safetensors, gguf or dummy" in unknown.stderr
    stored = nibble("inspect", tiny, "--dummy-policy", "all-4bit")
    assert stored.returncode == 2 and "--load-format dummy" in stored.stderr
    wrong = nibble("inspect", ROOT / "configs/Llama-3.1-8B", "--quantization", "awq")
    assert wrong.returncode == 2 and "--quantization awq" in wrong.stderr and "drop the flag" in wrong.stderr


def test_quantize_writes_a_checkpoint_that_inspect_reads(tmp_path, tiny_bf16):
    for layout in ("modelopt", "compressed-tensors"):
        target = tmp_path / layout
        done = nibble("quantize", tiny_bf16, target, "--layout", layout, "--method", "max")
        assert done.returncode == 0, done.stderr
        assert "21 of 23 quantised" in done.stdout
        assert "21 nvfp4" in nibble("inspect", target).stdout
        again = nibble("quantize", tiny_bf16, target)
        assert again.returncode != 0 and "--force" in again.stderr
    assert [p.name for p in tmp_path.iterdir()] and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("form, line", [("mxfp4", "mxfp4"), ("fp8", "fp8"), ("bf16", "23 bf16")])
def test_quantize_writes_other_formats(tmp_path, form, line, tiny_bf16):
    done = nibble("quantize", tiny_bf16, tmp_path / "out", "--format", form)
    assert done.returncode == 0, done.stderr
    assert line in nibble("inspect", tmp_path / "out").stdout


def test_quantize_flags_name_what_they_allow(tmp_path, tiny):
    for flag, allowed in (("--format", "mxfp4"), ("--method", "four-over-six"), ("--layout", "compressed-tensors"),
                          ("--policy", "feed-forward"), ("--modelopt-rounding", "cpu")):
        done = nibble("quantize", tiny, tmp_path / "out", flag, "wrong")
        assert done.returncode == 2
        assert flag in done.stderr and "wrong" in done.stderr and allowed in done.stderr


def safetensors_is_valid(path):
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        return 0 < length < 1 << 27 and file.read(1) == b"{"


@needs_model
def test_a_killed_quantize_leaves_nothing_that_loads(tmp_path):
    for delay in (0.2, 0.5, 0.9, 1.4):
        process = subprocess.Popen([NIBBLE, "quantize", MODEL, tmp_path / "out", "--format", "bf16"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        if process.poll() is not None:
            break  # it was faster than that
        process.kill()
        process.wait()
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.rglob("config.json"))
        assert not any(safetensors_is_valid(p) for p in tmp_path.rglob("*.safetensors*"))


@needs_model
def test_eval_finds_a_model_equal_to_itself():
    done = nibble("eval", MODEL, "--reference", MODEL, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mean_kl"] == 0 and found["same_top"] == 1
    assert 5 < found["perplexity"] < 50


def test_doctor_names_processor_and_kernels():
    done = nibble("doctor")
    assert done.returncode == 0
    assert "processor" in done.stdout and "chosen" in done.stdout


@needs_model
def test_an_instruction_set_can_be_chosen():
    done = nibble("run", MODEL, "Hello", "--cpu-isa", "generic", "--max-tokens", 2)
    assert done.returncode == 0, done.stderr
    assert "kernels: cpu generic" in done.stderr


@needs_model
def test_an_unknown_instruction_set_is_refused_with_those_there_are():
    done = nibble("run", MODEL, "Hello", "--cpu-isa", "mmx")
    assert done.returncode == 2
    assert "--cpu-isa" in done.stderr and "generic" in done.stderr


@needs_model
def test_run_answers_on_stdout_alone():
    done = nibble("run", MODEL, "What is the capital of France?", "--temperature", 0, "--max-tokens", 24)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "tokens/s" in done.stderr and "tokens/s" not in done.stdout


@needs_model
def test_run_reads_standard_input_and_seeds_repeat():
    answers = {nibble("run", MODEL, "-", "--seed", 7, "--max-tokens", 16, stdin="Tell me a story.").stdout
               for _ in range(2)}
    assert len(answers) == 1


@needs_model
def test_every_answer_accounts_for_itself():
    runs = [nibble("run", MODEL, "Hello", "--temperature", 0, "--max-tokens", 8, "--threads", threads).stderr
            for threads in (1, 2)]
    closing = [run.splitlines()[-1] for run in runs]
    for part in ("tokens/s", "ms/token", "GB/s (", "last logits "):
        assert part in closing[0]
    hashes = {line.split("last logits ")[1] for line in closing}
    assert len(hashes) == 1 and re.fullmatch("[0-9a-f]{16}", hashes.pop())


@needs_model
def test_bench_hashes_the_same_logits_alone_and_in_a_batch():
    results = [json.loads(nibble("bench", "model", MODEL, "--prompt", 24, "--decode", 6, "--repeat", 1, "--batch",
                                 batch, "--json").stdout) for batch in (1, 3)]
    alone, batch = (result["last_logits"] for result in results)
    assert len(alone) == 1 and len(batch) == 3 == len(set(batch))
    assert alone[0] == batch[0]
    assert 0 < results[0]["share_of_read"]


@needs_model
def test_the_plan_says_what_set_the_kv_cache():
    done = nibble("run", MODEL, "Hello", "--max-tokens", 2)
    assert "one whole context (--max-model-len); --kv-cache-memory-bytes sets another size" in done.stderr
    done = nibble("run", MODEL, "Hello", "--max-tokens", 2, "--max-num-seqs", 64)
    assert "65536 tokens: 64 (--max-num-seqs) sequences of 1024" in done.stderr
    done = nibble("run", MODEL, "Hello", "--max-tokens", 2, "--kv-cache-memory-bytes", "16M")
    assert "as --kv-cache-memory-bytes says" in done.stderr


@needs_model
def test_chat_keeps_turns_and_leaves_on_end_of_input():
    terminal, inner = pty.openpty()
    process = subprocess.Popen([NIBBLE, "chat", MODEL, "--temperature", "0", "--max-tokens", "24"], stdin=inner,
                               stdout=inner, stderr=subprocess.DEVNULL)
    os.close(inner)
    screen = ""

    def read_until(text):
        nonlocal screen
        end = time.monotonic() + 120
        while text not in screen:
            assert time.monotonic() < end, screen
            screen += os.read(terminal, 4096).decode(errors="replace")

    read_until("> ")
    os.write(terminal, "What is the capital of France?\r".encode())
    read_until("tokens/s")
    assert "Paris" in screen
    read_until("\x1b[0m\r\n\r\x1b[K> ")  # the next prompt
    os.write(terminal, b"\x04")
    assert process.wait(timeout=30) == 0


def wait_until_ready(process, port):
    started = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        assert process.poll() is None and time.monotonic() - started < 60
        time.sleep(0.05)


def post(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@needs_model
def test_serve_starts_refuses_a_used_port_and_stops_on_sigterm():
    port = free_port()
    process = subprocess.Popen([NIBBLE, "serve", MODEL, "--port", str(port), "--max-model-len", "512"],
                               stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(process, port)
        second = nibble("serve", MODEL, "--port", port)
        assert second.returncode != 0 and str(port) in second.stderr and "--port" in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "Application startup complete" in log and f"127.0.0.1:{port}" in log


def byte_tokenizer():
    """tokenizer.json whose ids are bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}
    return {"added_tokens": [], "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": model}


@pytest.mark.parametrize("form", ["list", "files"])
def test_requests_with_tools_take_the_template_for_tools(tmp_path, tiny, form):
    default, for_tools = "plain {{ messages[0].content }}", "{{ bos_token }}{{ tools[0].function.name }}: tools"
    model = pathlib.Path(shutil.copytree(tiny, tmp_path / "model"))
    (model / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (model / "special_tokens_map.json").write_text('{"bos_token": {"content": "B"}}')
    config = {}
    if form == "list":
        config = {"chat_template": [{"name": "default", "template": default}, {"name": "tool_use", "template": for_tools}]}
    else:
        (model / "chat_template.jinja").write_text(default)
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates/tool_use.jinja").write_text(for_tools)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    port = free_port()
    process = subprocess.Popen([NIBBLE, "serve", model, "--port", str(port), "--device", "cpu"], stderr=subprocess.PIPE)
    try:
        wait_until_ready(process, port)
        chat = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False}
        tools = {"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]}
        assert bytes(post(port, "/tokenize", chat)["tokens"]) == b"plain Hi"
        assert bytes(post(port, "/tokenize", chat | tools)["tokens"]) == b"Badd: tools"
        done = post(port, "/v1/chat/completions", chat | tools | {"max_tokens": 2})
        assert done["usage"]["prompt_tokens"] == len("Badd: tools")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    quantised = tmp_path / "quantised"
    assert nibble("quantize", model, quantised, "--format", "bf16").returncode == 0
    assert (quantised / "additional_chat_templates/tool_use.jinja").exists() == (form == "files")


def start_loading(tmp_path, command):
    """A command whose model comes from a hub that never answers: it loads until it is stopped."""
    silent_hub = socket.create_server(("127.0.0.1", 0))
    environment = dict(os.environ, HF_HOME=str(tmp_path / "hub"), HF_ENDPOINT=f"http://127.0.0.1:{silent_hub.getsockname()[1]}")
    environment.pop("HF_HUB_OFFLINE", None)
    process = subprocess.Popen([NIBBLE, *map(str, command)], env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    connection, _ = silent_hub.accept()
    assert connection.recv(1)
    return process, (silent_hub, connection)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["serve", "run", "chat", "bench"])
def test_a_signal_while_loading_ends_at_once_with_a_line(tmp_path, command, stop):
    arguments = {"serve": ["serve", "org/model", "--port", free_port()], "run": ["run", "org/model", "Hello"],
                 "chat": ["chat", "org/model"], "bench": ["bench", "model", "org/model"]}[command]
    process, sockets = start_loading(tmp_path, arguments)
    process.send_signal(stop)
    out, log = process.communicate(timeout=10)
    assert process.returncode == (0 if command == "serve" else 128 + stop), log
    assert log.splitlines()[-1] == "stopped while loading the model" and not out
    for connection in sockets:
        connection.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 0]


@needs_model
def test_sigterm_at_any_moment_of_a_start_ends_serve_with_0():
    for delay in (0, 0.05, 0.2, 0.5, 0.8):
        port = free_port()
        process = subprocess.Popen([NIBBLE, "serve", MODEL, "--port", str(port)], stderr=subprocess.PIPE, text=True)
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=20)[1]
        assert process.returncode == 0, (delay, log)
        assert "stopped while loading the model" in log or "shutting down" in log


@pytest.mark.skipif(not GGUF.exists(), reason="make model has not run")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_quantize_leaves_nothing(tmp_path, stop):
    process = subprocess.Popen([NIBBLE, "quantize", GGUF, tmp_path / "out", "--threads", "1"], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(stop)
    log = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "nothing was written" in log, log
    assert not list(tmp_path.iterdir())
