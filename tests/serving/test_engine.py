"""The engine without HTTP: what it answers is what each prompt answers alone."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.serving import (
    BadRequestError,
    Engine,
    PromptNotFoundError,
    QueueFullError,
    Sampling,
    Settings,
)
from softprompt.serving.errors import StoppedError, TimedOutError
from softprompt.serving.server import BackgroundServer
from tests.serving.conftest import INPUTS, STORY, prompt
from tests.tiny.language import WORDS
from tests.tiny.task import ROWS, TASK
from tests.tolerances import assert_equal_up_to_rounding

Prompts = Mapping[str, sp.TunedPrompt]
SCORED = ("mood", "calm", "prefix-mood", "pair", "amount", "tags")
WRITTEN = ("story", "tale", "prefix-story")


def run(backbone: CausalBackbone, body: Callable[[Engine], Awaitable[Any]], **settings: Any) -> Any:
    """What `body` returns, given a running engine."""

    async def main() -> Any:
        folder = settings.pop("folder", None)
        async with Engine(backbone, folder, Settings(**settings)) as engine:
            return await body(engine)

    return asyncio.run(main())


def shared(server: BackgroundServer, body: Callable[[Engine], Coroutine[Any, Any, Any]]) -> Any:
    """The same with the engine that all tests share, which has all prompts."""
    return server.call(body(server.engine))


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))


def test_rows_of_all_prompts_in_one_pass_are_answered_as_each_prompt_answers_alone(
    server: BackgroundServer, prompts: Prompts
) -> None:
    draw = random.Random(0)
    asked = [(name, INPUTS.get(name) or sentence(draw)) for name in SCORED for _ in range(3)]
    draw.shuffle(asked)
    passes: list[tuple[int, int, float]] = []

    def watch(*told: Any) -> None:
        passes.append(told)

    async def body(engine: Engine) -> list[Any]:
        engine.batches.append(watch)
        try:
            return await asyncio.gather(*(engine.answer(name, [value]) for name, value in asked))
        finally:
            engine.batches.remove(watch)

    for (name, value), answer in zip(asked, shared(server, body), strict=True):
        (alone,) = prompts[name].predict([value])
        assert_equal_up_to_rounding(answer.predictions[0], alone)
    assert max(rows for rows, _, _ in passes) > 1
    assert max(number for _, number, _ in passes) > 1


def test_texts_of_all_prompts_are_those_that_each_prompt_writes_alone(
    server: BackgroundServer, prompts: Prompts
) -> None:
    draw = random.Random(1)
    asked = [(name, sentence(draw)) for name in WRITTEN for _ in range(4)]
    draw.shuffle(asked)

    async def body(engine: Engine) -> list[str]:
        assert engine.describe(engine.registry["tale"])["lane"] == "continuous"
        assert engine.describe(engine.registry["prefix-story"])["lane"] == "grouped"
        requests = [await engine.open(name, value) for name, value in asked]
        return await asyncio.gather(*(request.text() for request in requests))

    for (name, value), text in zip(asked, shared(server, body), strict=True):
        assert text == prompts[name].predict([value])[0]


def test_chats_and_choices_are_served_as_they_are_predicted(
    server: BackgroundServer, prompts: Prompts
) -> None:
    async def body(engine: Engine) -> list[Any]:
        texts = [(await engine.open(name, "the old house")).text() for name in ("chat", "story")]
        alone = (await engine.open("chat", "the old house", without_prompt=True)).text()
        answers = (engine.answer(name, ["the old house"]) for name in ("one-of", "mood", "one-of"))
        return await asyncio.gather(*texts, alone, *answers)

    said, story, alone, chosen, _, again = shared(server, body)
    assert said == prompts["chat"].predict(["the old house"])[0]
    assert story == prompts["story"].predict(["the old house"])[0]
    assert isinstance(alone, str)
    assert chosen.predictions == again.predictions == prompts["one-of"].predict(["the old house"])


@pytest.mark.slow
def test_a_thousand_prompts_answer_as_alone_while_prompts_come_and_go(backbone: CausalBackbone) -> None:
    draw = random.Random(2)
    many = {f"p{i}": prompt(backbone, TASK, sp.PromptTuning(length=1 + i % 7), i) for i in range(1000)}
    asked = [(f"p{draw.randrange(1000)}", sentence(draw)) for _ in range(400)]
    written = [(draw.choice(WORDS), Sampling(max_new_tokens=6)) for _ in range(8)]
    story = prompt(backbone, STORY, sp.PromptTuning(length=5), 11)

    async def body(engine: Engine) -> tuple[list[Any], list[str]]:
        for name, tuned in many.items():
            await engine.add(name, tuned)
        await engine.add("story", story)

        async def churn() -> None:
            for turn in range(60):
                await engine.add(f"hot{turn}", many[f"p{turn}"])
                await engine.add("hot-story", story, overwrite=True)
                text = asyncio.create_task((await engine.open("hot-story", "the film")).text())
                cancelled = asyncio.create_task(engine.answer(f"hot{turn}", ["the dog"]))
                await asyncio.sleep(0)
                cancelled.cancel()
                await engine.remove(f"hot{turn}")
                if turn % 2:
                    text.cancel()
                await asyncio.gather(text, cancelled, return_exceptions=True)

        answers = asyncio.gather(*(engine.answer(name, [text]) for name, text in asked))
        texts = asyncio.gather(*[(await engine.open("story", text, how)).text() for text, how in written])
        await asyncio.gather(answers, texts, churn())
        assert engine.under_way == 0
        return await answers, await texts

    answers, texts = run(backbone, body, compiled_bytes=100_000)
    for (name, text), answer in zip(asked, answers, strict=True):
        (alone,) = many[name].predict([text])
        for label, p in alone.probabilities.items():
            assert answer.predictions[0].probabilities[label] == pytest.approx(p, abs=1e-5)
    for (text, _), found in zip(written, texts, strict=True):
        row = story.encoder.encode({"text": text}, answer=False)
        (ids,) = story.model.generate([row], max_new_tokens=6, do_sample=False, eos_token_id=2)
        assert found == backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_the_folder_is_followed_and_a_broken_prompt_leaves_the_others_and_its_former_self(
    backbone: CausalBackbone, prompts: Prompts, folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "prompts"
    shutil.copytree(folder / "mood", root / "mood")
    (root / "notes").mkdir()

    async def body(engine: Engine) -> None:
        (before,) = (await engine.answer("mood", ["the dog"])).predictions
        assert before == prompts["mood"].predict(["the dog"])[0]
        shutil.copytree(folder / "story", root / "new")
        prompt(backbone, TASK, sp.PromptTuning(length=2), 77).save(root / "mood", overwrite=True)
        shutil.copytree(folder / "calm", root / "broken")
        (root / "broken" / "prompt.json").write_text("{")
        (problem,) = await engine.look_again()
        assert problem.startswith("broken is not served")
        assert await engine.look_again() == []  # it is not read again before it changes
        assert [entry.name for entry in engine.registry] == ["mood", "new"]
        (after,) = (await engine.answer("mood", ["the dog"])).predictions
        assert after != before
        (root / "mood" / "prompt.json").write_text("{")
        assert len(await engine.look_again()) == 1
        assert (await engine.answer("mood", ["the dog"])).predictions == [after]
        shutil.rmtree(root / "new")
        await engine.look_again()
        assert [entry.name for entry in engine.registry] == ["mood"]

    run(backbone, body, folder=root, reload_seconds=0)


def test_what_cannot_be_served_is_refused_in_plain_words(
    server: BackgroundServer, backbone: CausalBackbone, prompts: Prompts, folder: Path, tmp_path: Path
) -> None:
    from tests.tiny.task import tiny_backbone

    other = tiny_backbone(seed=5)
    prompt(other, TASK, sp.PromptTuning(length=2)).save(tmp_path / "other")

    async def body(engine: Engine) -> None:
        with pytest.raises(sp.WrongBackboneError):
            await engine.add("other", tmp_path / "other")
        with pytest.raises(BadRequestError, match="another backbone object"):
            await engine.add("other", prompt(other, TASK, sp.PromptTuning(length=2)))
        with pytest.raises(BadRequestError, match="there is a prompt 'mood' already"):
            await engine.add("mood", folder / "mood")
        for name in ("../mood", "", "a/b", ".hidden", "x" * 200, backbone.name):
            with pytest.raises(BadRequestError, match="is not allowed"):
                await engine.add(name, folder / "mood")
        drawn = prompt(backbone, replace(STORY, generation={"num_beams": 2}), sp.PromptTuning(length=2))
        with pytest.raises(BadRequestError, match="num_beams"):
            await engine.add("drawn", drawn)
        with pytest.raises(PromptNotFoundError, match="did you mean 'mood'"):
            await engine.answer("mod", ["the dog"])
        with pytest.raises(BadRequestError, match="answers with labels"):
            await engine.open("mood", "the dog")
        with pytest.raises(BadRequestError, match="writes text"):
            await engine.answer(backbone.name, ["the dog"])
        with pytest.raises(BadRequestError, match=r"input 1: .*column"):
            await engine.answer("mood", ["the dog", {"words": "the dog"}])
        with pytest.raises(BadRequestError, match="there is room for 128"):
            await engine.open(backbone.name, "dog " * 200)
        with pytest.raises(BadRequestError, match="1 to 1024"):
            await engine.open(backbone.name, "dog", Sampling(max_new_tokens=5000))
        with pytest.raises(BadRequestError, match="no chat template"):
            await engine.open_chat(backbone.name, [{"role": "user", "content": "hi"}])

    shared(server, body)
    engine = Engine(backbone)
    with pytest.raises(PromptNotFoundError):
        asyncio.run(engine.answer("mood", ["a"]))
    asyncio.run(engine.add("mood", prompts["mood"]))
    with pytest.raises(StoppedError, match="async with"):
        asyncio.run(engine.answer("mood", ["a"]))


def test_the_backbone_alone_can_be_asked_where_words_answer(
    server: BackgroundServer, backbone: CausalBackbone, prompts: Prompts
) -> None:
    async def body(engine: Engine) -> None:
        (found,) = (await engine.answer("mood", ["the dog"], without_prompt=True)).predictions
        (alone,) = sp.fit(backbone, TASK, sp.ZeroShot(), ROWS, progress=False).predict(["the dog"])
        assert_equal_up_to_rounding(found, alone)
        assert (await engine.answer("calm", ["the dog"], without_prompt=True)).predictions[0].label in (
            "good",
            "bad",
        )
        with pytest.raises(BadRequestError, match="the backbone alone cannot be asked"):
            await engine.answer("amount", ["the dog"], without_prompt=True)
        request = await engine.open("story", "the dog", without_prompt=True)
        assert isinstance(await request.text(), str)

    shared(server, body)


@pytest.mark.slow
def test_a_full_queue_and_a_late_answer_are_errors_and_leave_nothing_behind(
    backbone: CausalBackbone, prompts: Prompts
) -> None:
    async def body(engine: Engine) -> None:
        await engine.add("mood", prompts["mood"])
        await engine.add("story", prompts["story"])
        with pytest.raises(QueueFullError, match="takes 4") as full:
            await engine.answer("mood", ["the dog"] * 5)
        assert full.value.retry_after == 1
        assert len((await engine.answer("mood", ["the dog"] * 4)).predictions) == 4
        request = await engine.open("story", "the dog")
        request.seconds = 0
        with pytest.raises(TimedOutError):
            await request.text()
        assert engine.under_way == 0

    run(backbone, body, max_queue=4)


def test_a_text_that_nobody_reads_on_is_ended(server: BackgroundServer, prompts: Prompts) -> None:
    async def body(engine: Engine) -> None:
        for name in ("story", "prefix-story"):
            request = await engine.open(name, "the dog", Sampling(max_new_tokens=60))
            pieces = aiter(request)
            await anext(pieces)
            await pieces.aclose()  # type: ignore[attr-defined]
            assert engine.under_way == 0
            again = await engine.open(name, "the dog")
            assert await again.text() == prompts[name].predict(["the dog"])[0]

    shared(server, body)


def test_sampling_stop_texts_and_log_probabilities(server: BackgroundServer) -> None:
    async def body(engine: Engine) -> None:
        async def write(**how: Any) -> Any:
            request = await engine.open("story", "the film", Sampling(**how))
            return await request.text(), request

        whole, request = await write(logprobs=2)
        assert request.finish == "length"
        assert (request.new_tokens, len(request.choices)) == (8, 8)
        assert all(one.top[0] == (one.token, one.logprob) for one in request.choices)  # greedy
        stop = whole[3:6]
        cut, request = await write(stop=(stop, "never there"))
        assert (cut, request.finish) == (whole[:3].rstrip(), "stop")
        seeded = [await write(temperature=1.0, seed=5) for _ in range(2)]
        assert seeded[0][0] == seeded[1][0]
        drawn, _ = await write(temperature=1.0, top_p=0.9, top_k=5)
        assert isinstance(drawn, str)
        likeliest, _ = await write(temperature=1.0, top_k=1)
        assert likeliest == whole

    shared(server, body)
