"""The `openai` client against a live server."""

import asyncio
import concurrent.futures

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(client, model, **kwargs):
    kwargs.setdefault("messages", QUESTION)
    kwargs.setdefault("max_tokens", 16)
    kwargs.setdefault("temperature", 0)
    return client.chat.completions.create(model=model, **kwargs)


def complete(client, model, **kwargs):
    kwargs.setdefault("prompt", "The capital of France is")
    kwargs.setdefault("max_tokens", 8)
    kwargs.setdefault("temperature", 0)
    return client.completions.create(model=model, **kwargs)


def test_models(client, model):
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("no-such-model")
    assert e.value.code == "model_not_found"


def test_chat(client, model):
    answer = chat(client, model)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    assert answer.system_fingerprint
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_equals_whole(client, model):
    whole = chat(client, model)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or (
        chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    )
    assert all(c.usage is None for c in chunks[:-1])
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}


def test_stream_helper(client, model):
    with client.chat.completions.stream(
        model=model, messages=QUESTION, max_tokens=64, temperature=0, stop=["e"]
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content


def test_chat_logprobs(client, model):
    answer = chat(client, model, logprobs=True, top_logprobs=4, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 4
        assert bytes(token.bytes).decode(errors="replace") == token.token
        # Greedy: the chosen token is the most likely one.
        assert token.top_logprobs[0].token == token.token
        values = [t.logprob for t in token.top_logprobs]
        assert values == sorted(values, reverse=True)
    streamed = []
    for chunk in chat(client, model, logprobs=True, top_logprobs=4, max_tokens=6, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in content]


def test_chat_n_and_seed(client, model):
    def texts(seed):
        answer = chat(client, model, n=3, temperature=1.0, seed=seed, max_tokens=12)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    first = texts(7)
    assert first == texts(7)
    assert first != texts(8)
    assert len(set(first)) > 1
    streamed = ["", "", ""]
    for chunk in chat(client, model, n=3, temperature=1.0, seed=7, max_tokens=12, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == first


def test_chat_stop(client, model):
    whole = chat(client, model, max_tokens=24).choices[0].message.content
    word = whole.split()[2]
    answer = chat(client, model, max_tokens=24, stop=[word])
    assert answer.choices[0].finish_reason == "stop"
    assert word not in answer.choices[0].message.content
    assert answer.choices[0].stop_reason == word
    assert whole.startswith(answer.choices[0].message.content)


def test_chat_extra_body(client, model):
    answer = chat(
        client,
        model,
        max_tokens=6,
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "min_tokens": 6,
            "return_token_ids": True,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    assert answer.usage.completion_tokens == 6
    assert len(answer.choices[0].token_ids) == 6
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens


def test_tools_are_accepted(client, model):
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    assert chat(client, model, tools=[tool], tool_choice="auto").choices[0].message.content
    with pytest.raises(openai.BadRequestError) as e:
        chat(client, model, tools=[tool], tool_choice="required")
    assert e.value.param == "tool_choice"


def test_completion(client, model):
    answer = complete(client, model)
    assert answer.object == "text_completion"
    assert "Paris" in answer.choices[0].text
    chunks = list(complete(client, model, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_completion_prompt_kinds(client, model, http):
    tokens = http.post("/tokenize", json={"prompt": "The capital of France is"}).json()["tokens"]
    by_text = complete(client, model).choices[0].text
    assert complete(client, model, prompt=tokens).choices[0].text == by_text
    both = complete(client, model, prompt=["The capital of France is", "One plus one is"])
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == by_text
    batch = complete(client, model, prompt=[tokens, tokens[:2]], n=2, temperature=1.0, seed=3)
    assert [c.index for c in batch.choices] == [0, 1, 2, 3]
    streamed = ["", ""]
    for chunk in complete(
        client, model, prompt=["The capital of France is", "One plus one is"], stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [c.text for c in both.choices]


def test_completion_echo_and_logprobs(client, model):
    prompt = "The capital of France is"
    answer = complete(client, model, echo=True, logprobs=3, max_tokens=2)
    text = answer.choices[0].text
    logprobs = answer.choices[0].logprobs
    assert text.startswith(prompt)
    assert "".join(logprobs.tokens).endswith(text)
    assert logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == answer.usage.total_tokens
    scored = complete(client, model, echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == prompt
    assert scored.usage.completion_tokens == 0


def test_prompt_logprobs(client, model):
    answer = complete(client, model, max_tokens=1, extra_body={"prompt_logprobs": 1})
    prompt_logprobs = answer.choices[0].prompt_logprobs
    assert len(prompt_logprobs) == answer.usage.prompt_tokens
    assert prompt_logprobs[0] is None
    assert all("decoded_token" in v for v in prompt_logprobs[1].values())


@pytest.mark.parametrize(
    "kwargs, error, param",
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"top_p": 2}, openai.BadRequestError, "top_p"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
    ],
)
def test_errors_name_the_parameter(client, model, kwargs, error, param):
    for stream in (False, True):
        with pytest.raises(error) as e:
            chat(client, model, stream=stream, **kwargs)
        assert e.value.param == param
        assert e.value.type == "invalid_request_error"
        assert e.value.request_id


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as e:
        chat(client, "no-such-model")
    assert (e.value.param, e.value.code) == ("model", "model_not_found")


def test_too_long_a_prompt(client, model, max_model_len):
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, model, prompt="hello " * (max_model_len + 10))
    assert e.value.code == "context_length_exceeded"
    assert f"maximum context length is {max_model_len} tokens" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, model, max_tokens=max_model_len)
    assert e.value.param == "max_tokens"


def test_many_at_once(client, model):
    alone = complete(client, model, max_tokens=12).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(complete, client, model, max_tokens=12) for _ in range(16)]
        assert {f.result().choices[0].text for f in futures} == {alone}


def test_cancelled_stream(client, model, http):
    stream = chat(client, model, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 3:
            break
    stream.close()
    for _ in range(200):
        metrics = http.get("/metrics").text
        running = [l for l in metrics.splitlines() if l.startswith("vllm:num_requests_running")]
        if float(running[0].split()[-1]) == 0:
            return
    pytest.fail("the engine still runs a request whose client left")


def test_async_client(url, model):
    async def run():
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=model, messages=QUESTION, max_tokens=8, stream=True
            )
            return [c async for c in stream]

    assert len(asyncio.run(run())) > 2


def test_the_default_model_knows_the_capital_of_france(client, model):
    if "SmolLM2" not in model:
        pytest.skip("another model is served")
    ask = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    answer = client.chat.completions.create(**ask, max_tokens=30)
    assert "Paris" in answer.choices[0].message.content
    chunks = client.chat.completions.create(**ask, max_tokens=30, stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == answer.choices[0].message.content
