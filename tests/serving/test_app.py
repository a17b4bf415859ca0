"""The server, asked by the official openai client and by plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import openai
import pytest

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from tests.serving.conftest import INPUTS
from tests.tolerances import assert_equal_up_to_rounding

Prompts = Mapping[str, sp.TunedPrompt]


def test_the_models_are_the_prompts_and_the_backbone(client: openai.OpenAI, backbone: CausalBackbone) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert models["mood"]["task"] == "text-classification"
    assert models["mood"]["labels"] == ["neg", "pos"]
    assert (models["pair"]["fields"], models["pair"]["lane"]) == (["text", "other"], "score")
    assert (models["tale"]["lane"], models["prefix-story"]["lane"]) == ("continuous", "grouped")
    assert models[backbone.name]["is_backbone"]
    assert client.models.retrieve(backbone.name).model_dump() == models[backbone.name]


@pytest.mark.parametrize(
    ("name", "answered"),
    [("mood", "label"), ("calm", "label"), ("pair", "label"), ("amount", "value"), ("tags", "tags")],
)
def test_classify_answers_as_predict_does(
    http: httpx2.Client, prompts: Prompts, name: str, answered: str
) -> None:
    value: Any = INPUTS.get(name, "the film")
    answer = http.post("/v1/classify", json={"model": name, "input": [value, value]}).json()
    (alone,) = prompts[name].predict([value])
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one in answer["data"]:
        assert_equal_up_to_rounding(
            one["probabilities"] if answered == "label" else one[answered],
            alone.probabilities if answered == "label" else alone,
        )
    assert answer["usage"]["prompt_tokens"] > 0


def test_a_completion_is_the_text_that_predict_writes(client: openai.OpenAI, prompts: Prompts) -> None:
    for name in ("story", "prefix-story"):
        answer = client.completions.create(model=name, prompt=["the dog", "the film"], n=2)
        expected = prompts[name].predict(["the dog", "the film"])
        assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_with_a_prompt_is_one_message(client: openai.OpenAI, prompts: Prompts) -> None:
    (expected,) = prompts["story"].predict(["the dog"])
    user: Any = {"role": "user", "content": "the dog"}
    answer = client.chat.completions.create(model="story", messages=[user])
    assert answer.choices[0].message.content == expected
    parts: Any = {"role": "user", "content": [{"type": "text", "text": "the dog"}]}
    answer = client.chat.completions.create(model="story", messages=[parts])
    assert answer.choices[0].message.content == expected
    with pytest.raises(openai.BadRequestError, match="send one message of the user"):
        client.chat.completions.create(model="story", messages=[user, user])
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny/llama", messages=[user])


def test_a_prompt_of_chats_takes_a_conversation(
    client: openai.OpenAI, http: httpx2.Client, prompts: Prompts
) -> None:
    turns: Any = [
        {"role": "system", "content": "the old house"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "the film"},
    ]
    answer = client.chat.completions.create(model="chat", messages=turns)
    assert [answer.choices[0].message.content] == prompts["chat"].predict([{"messages": turns}])
    developer: Any = [{**turns[0], "role": "developer"}, *turns[1:]]
    again = client.chat.completions.create(model="chat", messages=developer)
    assert again.choices[0].message == answer.choices[0].message
    chosen = http.post("/v1/classify", json={"model": "one-of", "input": "the dog"}).json()["data"]
    assert chosen == [{"index": 0, "text": prompts["one-of"].predict(["the dog"])[0]}]


def test_streams_end_in_usage_and_done(client: openai.OpenAI, http: httpx2.Client, prompts: Prompts) -> None:
    expected = prompts["story"].predict(["the dog", "the film"])
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model="story", prompt=["the dog", "the film"], stream=True, stream_options=options
        )
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == expected
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 2
    finished = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(finished) == 2

    message: Any = {"role": "user", "content": "the dog"}
    streamed = list(
        client.chat.completions.create(
            model="story", messages=[message], stream=True, logprobs=True, top_logprobs=2
        )
    )
    deltas = [chunk.choices[0].delta for chunk in streamed]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == expected[0]
    last = streamed[-1].choices[0]
    assert last.logprobs is not None
    assert last.logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in last.logprobs.content)

    raw = http.post("/v1/completions", json={"model": "story", "prompt": "the dog", "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = raw.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["model"] == "story" for event in events[:-2])


def test_sampling_settings_reach_the_text(client: openai.OpenAI) -> None:
    def write(**how: Any) -> Any:
        return client.completions.create(model="story", prompt="the film", **how).choices[0]

    whole = write(logprobs=2)
    assert len(whole.logprobs.tokens) == len(whole.logprobs.top_logprobs) == 8
    assert max(whole.logprobs.top_logprobs[0].values()) == whole.logprobs.token_logprobs[0]  # the likeliest
    assert whole.finish_reason == "length"
    stop = whole.text[3:6]
    cut = write(stop=[stop])
    assert (cut.text, cut.finish_reason) == (whole.text[:3].rstrip(), "stop")
    assert write(temperature=1.0, seed=5).text == write(temperature=1.0, seed=5).text
    assert len(write(max_tokens=1, logprobs=0).logprobs.tokens) == 1


def test_the_backbone_alone_continues_a_text_and_answers_beside_a_prompt(
    client: openai.OpenAI, http: httpx2.Client, backbone: CausalBackbone
) -> None:
    assert client.completions.create(model=backbone.name, prompt="the dog", max_tokens=4).choices[0].text
    asked = {"model": "mood", "input": "the dog", "without_prompt": True}
    bare = http.post("/v1/classify", json=asked).json()["data"][0]
    tuned = http.post("/v1/classify", json={**asked, "without_prompt": False}).json()["data"][0]
    assert bare["probabilities"] != tuned["probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "body", "status", "said"),
    [
        ("classify", {"model": "mod", "input": "a"}, 404, "did you mean 'mood'"),
        ("classify", {"model": "story", "input": "a"}, 400, "writes text"),
        ("classify", {"model": "mood", "input": []}, 400, "there is no input"),
        ("classify", {"model": "mood", "input": [1, 2]}, 400, "token ids are not taken"),
        ("classify", {"model": "mood", "input": ["a"] * 33}, 400, "may have 32"),
        ("classify", {"model": "mood", "input": "a" * 2001}, 400, "shorten it"),
        ("classify", {"model": "pair", "input": "a"}, 400, "columns"),
        ("classify", {"model": "mood", "input": {"txt": "a"}}, 400, "column"),
        ("classify", {"model": "mood", "input": "a", "labels": []}, 400, "labels"),
        ("classify", {"input": "a"}, 400, "model"),
        ("classify", [1], 400, "should be an object"),
        ("completions", {"model": "mood", "prompt": "a"}, 400, "answers with labels"),
        ("completions", {"model": "story", "prompt": [[1, 2]]}, 400, "token ids are not taken"),
        ("completions", {"model": "story", "prompt": "a", "n": 17}, 400, "writes 16"),
        ("completions", {"model": "story", "prompt": "a", "temperature": 3}, 400, "temperature"),
        ("completions", {"model": "story", "prompt": "a", "temperature": "1"}, 400, "temperature"),
        ("completions", {"model": "story", "prompt": "a", "presence_penalty": 1}, 400, "not built"),
        ("completions", {"model": "story", "prompt": "a", "max_tokens": 10**6}, 400, "1 to 1024"),
        ("completions", {"model": "story", "prompt": "a", "stop": [""]}, 400, "empty text"),
        ("chat/completions", {"model": "story", "messages": []}, 400, "messages"),
        ("chat/completions", {"model": "story", "messages": [{"role": "user"}]}, 400, "content"),
        ("prompts", {"name": "x", "folder": "../.."}, 400, "no saved prompt inside"),
        ("prompts", {"name": "x", "folder": "/etc"}, 400, "no saved prompt inside"),
        ("prompts", {"name": "x", "folder": "a\0b"}, 400, "no saved prompt inside"),
        ("prompts", {"name": "x", "folder": "a" * 5000}, 400, "no saved prompt inside"),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(
    http: httpx2.Client, route: str, body: Any, status: int, said: str
) -> None:
    answer = http.post(f"/v1/{route}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_unknown_paths_and_methods_are_refused_in_the_same_shape(http: httpx2.Client) -> None:
    for method, path, status in (
        ("GET", "/v2", 404),
        ("GET", "/v1/classify", 405),
        ("GET", "/openapi.json", 404),
        ("OPTIONS", "/v1/models", 405),
    ):
        answer = http.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "not_found")
        assert "access-control-allow-origin" not in answer.headers


def test_health_readiness_and_metrics(http: httpx2.Client) -> None:
    http.post("/v1/classify", json={"model": "mood", "input": "the secret word"})
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    text = http.get("/metrics").text
    assert 'softprompt_rows_total{prompt="mood"}' in text
    assert 'softprompt_requests_total{route="/v1/classify",status="200"}' in text
    for name in ("under_way", "batch_rows_bucket", "request_seconds_bucket", "tokens_total"):
        assert f"softprompt_{name}" in text
    assert "secret" not in text
