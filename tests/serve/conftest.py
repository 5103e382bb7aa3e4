"""The live server that this suite talks to: REFT_URL, by default http://127.0.0.1:8888."""

import os

import httpx
import openai
import pytest

URL = os.environ.get("REFT_URL", "http://127.0.0.1:8888").rstrip("/")
API_KEY = os.environ.get("REFT_API_KEY", "none")


@pytest.fixture(scope="session")
def url():
    return URL


@pytest.fixture(scope="session")
def http():
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key=API_KEY, timeout=120, max_retries=0)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def max_model_len(http):
    return http.get("/v1/models").json()["data"][0]["max_model_len"]


@pytest.fixture(autouse=True)
def next_request_is_served(http):
    """Whatever a test did, the server answers afterwards."""
    yield
    assert http.get("/health").status_code == 200
