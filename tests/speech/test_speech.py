"""The official OpenAI client against `reft serve` with Whisper-base (test.sh, step speech)."""
import os
import pathlib
import re
import subprocess

import openai
import pytest

FILE = pathlib.Path(__file__).parent / "jfk.flac"
WORDS = "and so my fellow americans ask not what your country can do for you ask what you can do for your country".split()


@pytest.fixture(scope="module")
def client():
    return openai.OpenAI(base_url=os.environ["REFT_URL"] + "/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def words_of(text):
    return re.sub(r"[^a-z ]", "", " ".join(text.lower().split())).split()


def create(client, model, **options):
    with FILE.open("rb") as file:
        return client.audio.transcriptions.create(model=model, file=file, **options)


def test_json(client, model):
    assert words_of(create(client, model).text) == WORDS


def test_text_and_subtitles(client, model):
    assert words_of(create(client, model, response_format="text")) == WORDS
    srt = create(client, model, response_format="srt", language="en")
    assert re.match(r"1\n00:00:00,000 --> 00:00:0\d,\d{3}\nAnd so", srt)
    assert create(client, model, response_format="vtt", language="en").startswith("WEBVTT\n\n00:00.000 --> ")


def test_verbose_json_with_words(client, model):
    result = create(client, model, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert result.language == "english" and abs(float(result.duration) - 11) < 0.1
    assert [words_of(w.word)[0] for w in result.words] == WORDS
    assert all(a.end <= b.start + 1e-6 for a, b in zip(result.words, result.words[1:]))
    assert words_of(" ".join(s.text for s in result.segments)) == WORDS


def test_stream(client, model):
    events = list(create(client, model, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert "".join(e.delta for e in events[:-1]) == events[-1].text
    assert words_of(events[-1].text) == WORDS


def test_translation(client, model):
    with FILE.open("rb") as file:
        assert "country" in client.audio.translations.create(model=model, file=file).text


def test_errors_name_the_field(client, model):
    for options, param in (({"language": "klingon"}, "language"), ({"temperature": 9}, "temperature"),
                           ({"response_format": "docx"}, "response_format")):
        with pytest.raises(openai.BadRequestError) as error:
            create(client, model, **options)
        assert error.value.param == param
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.transcriptions.create(model=model, file=("a.wav", b"no sound"))
    assert error.value.param == "file"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    assert "transcriptions" in error.value.message


@pytest.mark.skipif("REFT_BINARY" not in os.environ, reason="without the executable")
def test_command(tmp_path):
    command = [os.environ["REFT_BINARY"], "transcribe", str(FILE), "--model", os.environ["REFT_MODEL"]]
    run = subprocess.run(command, text=True, capture_output=True, check=True, timeout=300)
    assert words_of(run.stdout) == WORDS
    out = tmp_path / "out.srt"
    subprocess.run([*command, "--output-format", "srt", "--output", str(out), "--beam-size", "5"], check=True, timeout=300)
    assert out.read_text().startswith("1\n00:00:00,000 --> ")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    run = subprocess.run([command[0], "transcribe", str(bad), "--model", command[-1]], text=True, capture_output=True)
    assert run.returncode != 0 and "bad.wav" in run.stderr
