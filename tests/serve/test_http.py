"""Plain HTTP against a live server: the tables of requests, tokens, templates, metrics, raw sockets."""

import json
import pathlib
import socket
import urllib.parse

import pytest

HERE = pathlib.Path(__file__).parent
BAD = json.loads((HERE / "bad_requests.json").read_text())
ODD = json.loads((HERE / "odd_requests.json").read_text())
MESSAGES = [{"role": "user", "content": "x"}]


def send(http, item):
    body = item["raw"] if "raw" in item else json.dumps(item["json"]) if "json" in item else None
    headers = {"content-type": "application/json"} | item.get("headers", {})
    content = None if body is None else body.encode()
    return http.request(item.get("method", "POST"), item["path"], content=content, headers=headers)


# httpx resolves ".." itself; those paths are sent by the raw socket below.
@pytest.mark.parametrize("item", BAD, ids=[i["name"] for i in BAD])
def test_bad_request(http, item):
    if ".." in item["path"]:
        pytest.skip("this client rewrites the path")
    reply = send(http, item)
    assert reply.status_code == item["status"], reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if "param" in item:
        assert error["param"] == item["param"]
    if "code" in item:
        assert error["code"] == item["code"]


@pytest.mark.parametrize("item", ODD, ids=[i["name"] for i in ODD])
def test_odd_request(http, item):
    reply = send(http, item)
    assert reply.status_code == 200, reply.text


def test_tokenize_and_back(http, max_model_len):
    text = "Hello wörld, 你好 😀\n  x"
    reply = http.post(
        "/tokenize", json={"prompt": text, "add_special_tokens": False, "return_token_strs": True}
    ).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == max_model_len
    assert http.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": text}


def test_tokenized_messages_are_the_template(http):
    prompt = http.post("/apply_template", json={"messages": MESSAGES}).json()["prompt"]
    by_messages = http.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    by_text = http.post(
        "/tokenize", json={"prompt": prompt, "add_special_tokens": False}
    ).json()["tokens"]
    assert by_messages == by_text
    shorter = http.post(
        "/apply_template", json={"messages": MESSAGES, "add_generation_prompt": False}
    ).json()["prompt"]
    assert prompt.startswith(shorter) and prompt != shorter
    usage = http.post(
        "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1}
    ).json()["usage"]
    assert usage["prompt_tokens"] == len(by_messages)


def test_continue_final_message(http):
    messages = MESSAGES + [{"role": "assistant", "content": "The answer is"}]
    prompt = http.post(
        "/apply_template", json={"messages": messages, "continue_final_message": True}
    ).json()["prompt"]
    assert prompt.endswith("The answer is")


def test_seeds_curl_stream(http, url):
    body = {
        "messages": [{"role": "user", "content": "Who are you?"}],
        "max_tokens": 24,
        "temperature": 0.6,
        "stream": True,
    }
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["x-accel-buffering"] == "no"
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    first = chunks[0]
    assert list(first) == [
        "id", "object", "created", "model", "system_fingerprint", "choices", "usage",
    ]  # fmt: skip
    assert first["choices"] == [
        {"delta": {"role": "assistant"}, "index": 0, "logprobs": None, "finish_reason": None}
    ]
    assert first["usage"] is None
    assert chunks[1]["choices"][0]["delta"]["content"]


def test_metrics_are_prometheus_text(http):
    from prometheus_client.parser import text_string_to_metric_families

    http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(reply.text)}
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
        "gpu_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions",
        "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds",
        "request_inference_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
        "request_params_n", "request_params_max_tokens", "cache_config_info",
    ):  # fmt: skip
        family = families["vllm:" + name]
        assert {"model_name", "engine"} <= set(family.samples[0].labels), name
    bounds = [
        s.labels["le"]
        for s in families["vllm:inter_token_latency_seconds"].samples
        if s.name.endswith("_bucket")
    ]
    assert any(float(b) < 0.001 for b in bounds), "sub-millisecond buckets"


def test_small_routes(http):
    assert http.get("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    assert http.head("/health").status_code == 200
    assert http.options("/v1/models").status_code == 204


def raw(url, data, read=True):
    parts = urllib.parse.urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as s:
        s.sendall(data)
        out = b""
        while read:
            try:
                chunk = s.recv(65536)
            except ConnectionResetError:
                break
            if not chunk:
                break
            out += chunk
        return out


def test_raw_sockets(url):
    tail = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    for path in (b"/ui/../../etc/passwd", b"/ui/%2e%2e/%2e%2e/etc/passwd", b"/../.."):
        assert raw(url, b"GET " + path + tail).startswith(b"HTTP/1.1 400 ")
    two = b"GET /version HTTP/1.1\r\nhost: a\r\n\r\nGET /version" + tail
    assert raw(url, two).count(b"HTTP/1.1 200 OK") == 2
    assert raw(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600) == b""
    assert raw(url, b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    huge = b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n"
    assert raw(url, huge).startswith(b"HTTP/1.1 431 ")


def test_disconnects(url):
    body = json.dumps({"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    text = (head + f"content-length: {len(body)}\r\n\r\n{body}").encode()
    for cut in (10, len(text) - 20, len(text)):
        for _ in range(20):
            raw(url, text[:cut], read=False)


def test_ui_page_comes_with_and_without_gzip(http):
    plain = http.get("/ui.html", headers={"accept-encoding": "identity"})
    assert plain.status_code == 200 and "content-encoding" not in plain.headers
    assert plain.text.lower().startswith("<!doctype html>")
    packed = http.get("/ui.html", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.text == plain.text
    refused = http.get("/ui.html", headers={"accept-encoding": "gzip;q=0, deflate"})
    assert "content-encoding" not in refused.headers and refused.text == plain.text
