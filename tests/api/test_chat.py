"""Chat completions through the official OpenAI client."""

import concurrent.futures

import openai
import pytest

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]


def test_whole_answer(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, temperature=0
    )
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_greedy_is_repeatable_and_equals_the_stream(client, model):
    options = dict(model=model, messages=QUESTION, max_tokens=32, temperature=0)
    whole = client.chat.completions.create(**options)
    again = client.chat.completions.create(**options)
    assert whole.choices[0].message.content == again.choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_seed_decides_the_sample(client, model):
    def sample(seed):
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=24, temperature=1.0, seed=seed
        )
        return answer.choices[0].message.content

    assert sample(7) == sample(7)


def test_many_choices(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=8, temperature=1.0, n=3, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_stop_string_does_not_leak(client, model):
    options = dict(model=model, messages=QUESTION, max_tokens=48, temperature=0)
    whole = client.chat.completions.create(**options).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    answer = client.chat.completions.create(stop=[stop], **options)
    assert stop not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert whole.startswith(answer.choices[0].message.content)


def test_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs)


def test_logit_bias_forces_a_token(client, model, server_url):
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=3,
        temperature=0,
        logit_bias={"100": 100},
        extra_body={"return_token_ids": True},
    )
    assert answer.choices[0].model_extra["token_ids"][:2] == [100, 100]


def test_system_and_content_parts(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        ],
        max_tokens=8,
    )
    assert answer.choices[0].message.content is not None


def test_tools_are_accepted(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=16,
        temperature=0,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "colour",
                    "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
                },
            }
        ],
    )
    message = answer.choices[0].message
    assert message.content is not None or message.tool_calls


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3.0}, "temperature"),
        ({"max_tokens": 10_000_000}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 2, "temperature": 0}, "n"),
    ],
)
def test_bad_values_are_400_and_name_the_field(client, model, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=QUESTION, **options)
    assert caught.value.body["param"] == param
    assert caught.value.body["code"] == 400


def test_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert caught.value.body["param"] == "model"


def test_unknown_fields_and_nulls_are_ignored(client, model):
    client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=1,
        extra_body={"no_such_field": [1], "stop": None, "seed": None, "cache_prompt": False},
    )


def test_leaving_a_stream_early(client, model):
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)


def test_parallel_answers_equal_single_ones(client, model):
    questions = [f"Tell me a fact about the number {i}." for i in range(8)]

    def ask(question):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=16,
            temperature=0,
        )
        return answer.choices[0].message.content

    alone = [ask(question) for question in questions]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, questions))
    assert alone == together
