"""Completions, tokens and the service endpoints, as benchmark and evaluation clients use them."""

import json
import os
import urllib.error
import urllib.request

import pytest


def call(url, path, body=None, expect=200):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data)
    request.add_header("Content-Type", "application/json")
    if os.environ.get("NIBBLE_API_KEY"):
        request.add_header("Authorization", "Bearer " + os.environ["NIBBLE_API_KEY"])
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    assert status == expect, text
    return text


def test_completion_default_tokens(client, model):
    answer = client.completions.create(
        model=model, prompt="Once upon a time", temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 16


def test_list_equals_single(client, model):
    prompts = ["The capital of France is", "Two plus two is", "Water boils at"]
    together = client.completions.create(model=model, prompt=prompts, max_tokens=8, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for prompt, choice in zip(prompts, together.choices):
        alone = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
        assert alone.choices[0].text == choice.text


def test_stream_equals_whole(client, model):
    options = dict(model=model, prompt="The sea is", max_tokens=20, temperature=0)
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_token_ids_equal_text(client, model, server_url):
    prompt = "The quick brown fox"
    ids = json.loads(call(server_url, "/tokenize", {"model": model, "prompt": prompt}))["tokens"]
    text = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
    tokens = client.completions.create(model=model, prompt=ids, max_tokens=8, temperature=0)
    assert text.choices[0].text == tokens.choices[0].text
    assert text.usage.prompt_tokens == len(ids)


def test_loglikelihood_contract(client, model, server_url):
    """What lm-eval slices: one entry per prompt token, one for the generated one."""
    context, continuation = "The capital of France is", " Paris"
    ids = json.loads(
        call(server_url, "/tokenize", {"prompt": context + continuation, "add_special_tokens": False})
    )["tokens"]
    answer = client.completions.create(
        model=model, prompt=[ids, ids], max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234
    )
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert len(logprobs.token_logprobs) == len(ids) + 1
        assert logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs[0] is None
        for token, value, top in list(
            zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)
        )[1:]:
            assert top[token] == value
    assert answer.choices[0].logprobs.token_logprobs == answer.choices[1].logprobs.token_logprobs


def test_scoring_without_generating(client, model):
    answer = client.completions.create(
        model=model, prompt="One two three", max_tokens=0, echo=True, logprobs=0
    )
    assert answer.choices[0].text == "One two three"
    assert answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens


@pytest.mark.parametrize("text", ["Hello world", "ünïcödé 🙂", "a\n\tb  c", "<|im_start|>x"])
def test_tokenize_round_trip(server_url, text):
    tokens = json.loads(
        call(server_url, "/tokenize", {"prompt": text, "add_special_tokens": False})
    )
    assert tokens["count"] == len(tokens["tokens"])
    back = json.loads(call(server_url, "/detokenize", {"tokens": tokens["tokens"]}))
    assert back["prompt"] == text


def test_service_endpoints(server_url, model):
    assert call(server_url, "/health") == ""
    assert call(server_url, "/live") == ""
    assert "version" in json.loads(call(server_url, "/version"))
    metrics = call(server_url, "/metrics")
    assert f'vllm:num_requests_running{{model_name="{model}"' in metrics
    assert "vllm:generation_tokens_total" in metrics
    error = json.loads(call(server_url, "/v1/nothing", expect=404))["error"]
    assert error["code"] == 404
