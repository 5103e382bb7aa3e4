"""The commands as a shell sees them: exit status, output, what a closed pipe does."""

import json
import os
import pathlib
import re
import subprocess
import time
import urllib.request

import pytest

REFT = os.environ.get("REFT_BINARY")
MODEL = os.environ.get("REFT_MODEL")
pytestmark = pytest.mark.skipif(not (REFT and MODEL), reason="needs REFT_BINARY and REFT_MODEL")


def reft(*arguments, stdin=""):
    return subprocess.run(
        [REFT, *map(str, arguments)], input=stdin, text=True, capture_output=True, timeout=120
    )


def test_serve_outlives_the_reader_of_its_output():
    server = subprocess.Popen(
        [REFT, "serve", "--model", MODEL, "--host", "127.0.0.1", "--port", "0",
         "--max-model-len", "512", "--access-log"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in server.stderr:
            if found := re.search(r"HTTP server listening on (\S+)", line):
                break
        server.stderr.close()
        for _ in range(3):
            with urllib.request.urlopen(f"http://{found[1]}/health", timeout=30) as reply:
                assert reply.status == 200
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 0


def test_serve_without_a_reader_from_the_start():
    read, write = os.pipe()
    os.close(read)
    server = subprocess.Popen(
        [REFT, "serve", "--model", MODEL, "--port", "99999999"], stderr=write, stdout=write
    )
    os.close(write)
    assert server.wait(timeout=60) == 1, "an error, not a signal"


def test_closed_standard_streams_are_not_taken_by_sockets():
    server = subprocess.Popen(
        [REFT, "serve", "--model", MODEL, "--host", "127.0.0.1", "--port", "0"],
        preexec_fn=lambda: os.closerange(0, 3),
    )
    links = pathlib.Path(f"/proc/{server.pid}/fd")
    try:
        while not any("socket:" in os.path.realpath(link) for link in links.iterdir()):
            assert server.poll() is None
            time.sleep(0.05)
        assert [os.readlink(links / str(i)) for i in range(3)] == ["/dev/null"] * 3
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_tokenize_and_back():
    shown = reft("tokenize", "--model", MODEL, "--json", "Hello world")
    tokens = json.loads(shown.stdout)["tokens"]
    assert reft("tokenize", "--model", MODEL, "--decode", *tokens).stdout == "Hello world\n"
    as_json = json.dumps(tokens)
    assert reft("tokenize", "--model", MODEL, "--decode", stdin=as_json).stdout == "Hello world\n"
    for bad in ("abc", "-1", "99999999", "99999999999999999999", "5x"):
        refused = reft("tokenize", "--model", MODEL, "--decode", stdin=f"5 {bad}")
        assert refused.returncode == 1 and f"'{bad}'" in refused.stderr


def test_run_takes_standard_input():
    answer = reft("run", "--model", MODEL, "--temperature", 0, "--max-tokens", 12,
                  stdin="What is the capital of France?")  # fmt: skip
    assert answer.returncode == 0 and "Paris" in answer.stdout
    assert reft("run", "--model", MODEL).returncode == 1


def test_inspect_shows_plan_and_ops():
    shown = reft("inspect", "--model", MODEL).stdout
    for word in ("architecture", "parameters", "kv_bytes_per_token", "cuda", "rms_norm"):
        assert word in shown
    plan = json.loads(reft("inspect", "--model", MODEL, "--json", "--parameters").stdout)
    assert plan["ops"]["rms_norm"]["cpu"] is True
    assert len(plan["parameter_shapes"]) > plan["layers"]


def test_bench_serve_reports_every_percentile(url, tmp_path):
    data = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "Tell me about the sea and its tides."},
             {"from": "gpt", "value": "The sea rises and falls twice a day."}]  # fmt: skip
    too_long = [{"from": "human", "value": "word " * 20000}, turns[1]]
    data.write_text(json.dumps([{"conversations": turns}, {"conversations": too_long}]))
    for load in (["--input-len", 16, "--output-len", 4],
                 ["--dataset-name", "sharegpt", "--dataset-path", data, "--output-len", 0]):  # fmt: skip
        result = tmp_path / "result.json"
        run = reft("bench", "serve", "--base-url", url + "/", "--model", MODEL, "--num-prompts", 3,
                   "--quiet", "--backend", "openai", "--save-result", result, *load)  # fmt: skip
        assert run.returncode == 0, run.stderr
        numbers = json.loads(result.read_text())
        assert numbers["completed"] == 3 and numbers["failed"] == 0
        for metric in ("ttft", "tpot", "itl", "e2el"):
            for kind in ("mean", "median", "p99"):
                assert numbers[f"{kind}_{metric}_ms"] > 0
    for flag, bad in (("--metric-percentiles", "50,101"), ("--percentile-metrics", "ttft,speed")):
        run = reft("bench", "serve", "--base-url", "http://127.0.0.1:1", flag, bad)
        assert run.returncode == 1 and flag in run.stderr
    not_sharegpt = tmp_path / "other.json"
    not_sharegpt.write_text('[{"instruction": "a", "output": "b"}]')
    run = reft("bench", "serve", "--base-url", url, "--model", MODEL, "--dataset-name", "sharegpt",
               "--dataset-path", not_sharegpt)  # fmt: skip
    assert run.returncode == 1 and "ShareGPT" in run.stderr


def test_unknown_flags_suggest_the_nearest():
    for given, meant in (("--modle", "--model"), ("--max_modle_len", "--max-model-len")):
        refused = reft("serve", given, "x")
        assert refused.returncode == 1 and f"did you mean {meant}?" in refused.stderr
