"""Many prompts on one backbone: the serving engine against a predict for each request, and against PEFT's adapters.

SmolLM2-135M with prompts of random values, P = 20. Short texts of 8 to 24 tokens. Letters: P virtual tokens.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import median, quantiles
from typing import Any

import torch
from peft import PromptTuningConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import softprompt as sp
from benchmarks import harness, sides
from benchmarks.harness import Row
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.backbones.precision import resolve_dtype
from softprompt.prompts.base import BuildContext
from softprompt.serving import Engine, Sampling, Settings
from softprompt.serving.server import BackgroundServer

NAME = "serving"
MODEL = "smollm2-135m-instruct"
CPU = torch.device("cpu")
LENGTH = 20  # P
FIFTH = 5
CLASSIFY = sp.TextClassification("{text}\nMood:", labels={"bad": " bad", "good": " good", "calm": " calm"})
WRITE = sp.TextGeneration("{text}\n", target="{answer}", max_new_tokens=64)
WORDS = """the hotel room was very small and cold but people at the desk were kind we would come again next year""".split()  # noqa: SIM905 - a sentence


@dataclass(frozen=True)
class Setting(harness.DeviceSetting):
    """With the sizes of each case."""

    @property
    def prompts(self) -> int:
        return 10 if self.tiny else 100

    @property
    def texts(self) -> int:
        return 60 if self.tiny else 2000

    @property
    def clients(self) -> int:
        return 8 if self.tiny else 32

    @property
    def writers(self) -> int:
        return 3 if self.tiny else 16

    @property
    def new_tokens(self) -> int:
        return 8 if self.tiny else 64

    @property
    def kept(self) -> int:
        return 20 if self.tiny else 1000

    @property
    def backbone(self) -> Backbone:
        return backbone_of(self.tiny, self.dtype)


@cache
def backbone_of(tiny: bool, dtype: torch.dtype) -> Backbone:
    """The frozen model that all sides share."""
    if not tiny:
        return load_backbone(MODEL, dtype=dtype, device=CPU)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([" ".join(WORDS) + " bad good calm"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return load_backbone(sides.random_llama(sides.TINY, dtype, CPU).model, tokenizer=fast)


def prompt_of(backbone: Backbone, task: Any, number: int) -> sp.TunedPrompt:
    """A prompt of random values: what a trained one is to a server."""
    generator = torch.Generator().manual_seed(number)
    module = sp.PromptTuning(length=LENGTH, init="vocab").build(
        BuildContext(backbone.spec, generator=generator)
    )
    method = sp.PromptTuning(length=LENGTH)
    return sp.TunedPrompt(
        backbone=backbone, task=task, method=method, module=module.bake().requires_grad_(False)
    )


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(8, 20)))


def in_engine(setting: Setting, body: Callable[[Engine], Awaitable[Any]], **settings: Any) -> Any:
    """What `body` gives with an engine that runs."""

    async def main() -> Any:
        async with Engine(setting.backbone, settings=Settings(**settings)) as engine:
            return await body(engine)

    return asyncio.run(main())


@dataclass
class Classified:
    """The same requests for all sides: numbers of prompts and texts, in the order in which they come."""

    setting: Setting
    requests: list[tuple[int, str]] = field(init=False)
    tuned: list[sp.TunedPrompt] = field(init=False)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = random.Random(0)
        numbers = [n % self.setting.prompts for n in range(self.setting.texts)]
        draw.shuffle(numbers)
        self.requests = [(number, sentence(draw)) for number in numbers]
        self.tuned = [prompt_of(self.setting.backbone, CLASSIFY, n) for n in range(self.setting.prompts)]

    async def by_engine(self, engine: Engine) -> list[str]:
        """Labels, by clients that each ask, wait for the answer, and ask again."""
        left = iter(enumerate(self.requests))
        labels = [""] * len(self.requests)
        self.waits.clear()

        async def client() -> None:
            for place, (number, text) in left:
                start = time.perf_counter()
                answer = await engine.answer(str(number), [text])
                self.waits.append(time.perf_counter() - start)
                labels[place] = answer.predictions[0].label

        await asyncio.gather(*[client() for _ in range(self.setting.clients)])
        return labels

    def by_predict(self) -> list[str]:
        """One `predict` a request, one after another, for every fifth request."""
        return [self.tuned[number].predict([text])[0].label for number, text in self.requests[::FIFTH]]

    def by_peft(self) -> Callable[[], list[str]]:
        """PEFT: rows grouped by prompt, in batches of 16, the adapter switched between groups."""
        backbone: Any = self.setting.backbone
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
        tuned = sides.peft_model(backbone.model, config)
        for n in range(1, self.setting.prompts):
            tuned.add_adapter(str(n), config)
        for n, prompt in enumerate(self.tuned):
            encoder: Any = tuned.prompt_encoder["default" if n == 0 else str(n)]
            with torch.no_grad():
                encoder.embedding.weight.copy_(prompt.module().tokens[0])
        tokenizer = backbone.tokenizer
        words = {
            label: tokenizer(w[0], add_special_tokens=False)["input_ids"][0]
            for label, w in CLASSIFY.label_words.items()
        }
        groups: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(self.requests):
            groups.setdefault(number, []).append(place)
        pad = tokenizer.pad_token_id or 0

        @torch.no_grad()
        def labels() -> list[str]:
            found = [""] * len(self.requests)
            for number, places in groups.items():
                tuned.set_adapter("default" if number == 0 else str(number))
                for start in range(0, len(places), 16):
                    some = places[start : start + 16]
                    ids = [tokenizer(f"{self.requests[p][1]}\nMood:")["input_ids"] for p in some]
                    width = max(map(len, ids))
                    rows = torch.tensor([one + [pad] * (width - len(one)) for one in ids])
                    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
                    logits = tuned(input_ids=rows, attention_mask=mask).logits
                    for b, place in enumerate(some):
                        last = logits[b, LENGTH + len(ids[b]) - 1]
                        shares = {label: last[i].item() for label, i in words.items()}
                        found[place] = max(shares, key=shares.__getitem__)
            return found

        return labels


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    return sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours)


def classification(setting: Setting) -> list[Row]:
    """Requests per second, against one predict a request and against PEFT; waits at the median and at 99 of 100."""
    case = Classified(setting)
    peft = case.by_peft()

    async def paired(engine: Engine) -> list[Row]:
        for n, tuned in enumerate(case.tuned):
            await engine.add(str(n), tuned)
        seconds: dict[str, list[float]] = {"engine": [], "predict": [], "peft": []}
        labels: dict[str, list[str]] = {}
        waits: list[float] = []
        for turn in range(setting.repetitions + 1):  # the first turn warms up
            for name in seconds:
                start = time.perf_counter()
                if name == "engine":
                    labels[name] = await case.by_engine(engine)
                else:
                    labels[name] = await asyncio.to_thread(case.by_predict if name == "predict" else peft)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                if turn and name == "engine":
                    waits += case.waits
        told: dict[str, Any] = {
            "prompts": setting.prompts,
            "clients": setting.clients,
            "p50_ms": 1000 * median(waits),
            "p99_ms": 1000 * quantiles(waits, n=100)[-1],
            **setting.facts,
        }
        ours = [len(case.requests) / s for s in seconds["engine"]]
        found = []
        for name, what, step in (("predict", "a predict each", FIFTH), ("peft", "PEFT in groups of 16", 1)):
            theirs = [len(case.requests[::step]) / s for s in seconds[name]]
            same = agreement(labels["engine"][::step], labels[name])
            extra = {"spread": harness.spreads(ours, theirs), "same_labels": same, **told}
            row = Row(f"classify, against {what}", median(ours), median(theirs), "requests/s", True, extra)
            found.append(row)
        return found

    rows: list[Row] = in_engine(setting, paired)
    return rows


def generation(setting: Setting) -> list[Row]:
    """Tokens per second of 16 clients with 16 prompts, against one predict each, and against the backbone with words in
    the place of the prompts, by the same continuous batching."""
    backbone = setting.backbone
    draw = random.Random(1)
    texts = [sentence(draw) for _ in range(setting.writers)]
    tuned = [prompt_of(backbone, WRITE, n) for n in range(setting.writers)]
    words = [" ".join(draw.choices(WORDS, k=LENGTH)) for _ in texts]
    sampling = Sampling(max_new_tokens=setting.new_tokens)

    async def paired(engine: Engine) -> list[Row]:
        for n, prompt in enumerate(tuned):
            await engine.add(str(n), prompt)

        def tokens(written: str) -> int:
            return 1 + len(backbone.tokenizer(written, add_special_tokens=False)["input_ids"])

        async def text(name: str, value: str) -> int:
            return tokens("".join([piece async for piece in engine.write(name, value, sampling)]))

        async def engine_side() -> int:
            return sum(await asyncio.gather(*[text(str(n), value) for n, value in enumerate(texts)]))

        async def words_side() -> int:
            values = [f"{front} {value}\n" for front, value in zip(words, texts, strict=True)]
            return sum(await asyncio.gather(*[text(backbone.name, value) for value in values]))

        def one_by_one() -> int:
            count = 0
            for prompt, value in zip(tuned, texts, strict=True):
                task = WRITE.answering({"max_new_tokens": setting.new_tokens}, None)
                (answer,) = prompt.with_task(task).predict([value])
                count += tokens(answer)
            return count

        rates: dict[str, list[float]] = {"engine": [], "words": [], "alone": []}
        for turn in range(setting.repetitions + 1):
            for name in rates:
                start = time.perf_counter()
                if name == "alone":
                    count = await asyncio.to_thread(one_by_one)
                else:
                    count = await (engine_side() if name == "engine" else words_side())
                if turn:
                    rates[name].append(count / (time.perf_counter() - start))
        told = {"clients": setting.writers, "new_tokens": setting.new_tokens, **setting.facts}
        return [
            Row(
                f"generate, against {what}",
                median(rates["engine"]),
                median(rates[name]),
                "tokens/s",
                True,
                {"spread": harness.spreads(rates["engine"], rates[name]), **told},
            )
            for name, what in (("alone", "a generate each"), ("words", "the backbone behind words"))
        ]

    rows: list[Row] = in_engine(setting, paired)
    return rows


def http_cost(setting: Setting) -> list[Row]:
    """Milliseconds of a request at the median with an empty engine, and with a tiny model against the engine alone."""
    count = 50 if setting.tiny else 500
    tiny = backbone_of(True, torch.float32)
    engine = Engine(tiny, settings=Settings(max_wait_ms=0))
    body = json.dumps({"model": "mood", "input": "the room was small"})
    with BackgroundServer(engine) as server:
        server.call(engine.add("mood", prompt_of(tiny, CLASSIFY, 0)))
        host, _, port = server.address.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port))

        def timed(method: str, path: str, body: str | None) -> float:
            start = time.perf_counter()
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            connection.getresponse().read()
            return 1000 * (time.perf_counter() - start)

        async def alone() -> float:
            start = time.perf_counter()
            await engine.answer("mood", ["the room was small"])
            return 1000 * (time.perf_counter() - start)

        empty, asked, inside = [], [], []
        for _ in range(count):
            empty.append(timed("GET", "/v1/models/mood", None))
            asked.append(timed("POST", "/v1/classify", body))
            inside.append(server.call(alone()))
        connection.close()
    added = [one - other for one, other in zip(asked, inside, strict=True)]
    return [
        Row(
            "HTTP, a request that asks no model",
            median(empty),
            None,
            "ms",
            extra={"p99": quantiles(empty, n=100)[-1]},
        ),
        Row("HTTP, added to a classification", median(added), None, "ms", extra={"whole": median(asked)}),
    ]


def many(setting: Setting) -> list[Row]:
    """What the last of 1,000 prompts costs: milliseconds to load it from its folder, and bytes."""
    backbone = setting.backbone
    with tempfile.TemporaryDirectory() as place:
        for n in range(setting.kept):
            prompt_of(backbone, CLASSIFY, n).save(f"{place}/{n}")

        async def load(engine: Engine) -> tuple[list[float], int]:
            times: list[float] = []
            before = 0
            for n in range(setting.kept):
                if n == setting.kept // 2:
                    before = harness._status_bytes("VmRSS")
                start = time.perf_counter()
                await engine.add(str(n), f"{place}/{n}")
                times.append(1000 * (time.perf_counter() - start))
            return times, (harness._status_bytes("VmRSS") - before) // (setting.kept - setting.kept // 2)

        times, size = in_engine(setting, load)
    last = times[-max(10, setting.kept // 10) :]
    name = f"prompt {setting.kept:,}"
    return [
        Row(f"{name}, loading", median(last), None, "ms", extra={"greatest": max(last)}),
        Row(f"{name}, memory", size / harness.MIB, None, "MiB"),
    ]


CASES = {"classify": classification, "generate": generation, "http": http_cost, "prompts": many}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(NAME, "Many prompts on one backbone, against one request at a time and PEFT.")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or auto")
    options = parser.parse_args(argv)
    setting = Setting(options.quick, options.tiny, options.only, CPU, resolve_dtype(options.dtype, CPU))
    start = time.perf_counter()
    rows = [row for name, case in CASES.items() if setting.wants(name) for row in case(setting)]
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
