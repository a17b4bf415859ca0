"""Chat: the answer is the assistant's next turn, and the text is written by the model's own chat template. B rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.data import Row
from softprompt.outputs import EncodedRow, TargetLogits
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.chat_rows import COLUMNS, ChatFormat, Message, answers_of, read_messages
from softprompt.tasks.chat_template import ChatTemplate, Place, Side, behind, check_unmarked, without_marks
from softprompt.tasks.columns import check_columns
from softprompt.tasks.metrics import generation_metrics
from softprompt.tasks.template import ValuesWithControlTokens
from softprompt.tasks.writing import (
    Choices,
    Generation,
    Writer,
    answering,
    check_choices,
    check_distinct,
    check_generation,
    perplexity,
    reference_likelihoods,
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Chat(Task):
    """The answer is the assistant's next turn. A chat is written by the chat template of the backbone's tokenizer.

    Each answer of a chat is learned as it will be written: behind the turns before it and its header. The loss is that of the
    assistant's turns alone, each up to the token that ends it. What a row asks is its last turns; an answer at its end is the
    reference. Raises ValueError (pydantic's) for an unknown setting, and for options that `generate` does not take.
    """

    name: ClassVar[str] = "chat"
    main_metric: ClassVar[str] = "rouge_l"

    format: ChatFormat = "messages"
    """How rows write their turns: "messages", a list of {role, content} (OpenAI); "conversations", a list of {from, value}
    (ShareGPT); "alpaca", the columns instruction, input and output. A text in the place of a list is one turn of the user."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the format -> column of the data, where the two differ."""
    system: str | None = None
    """The system turn of chats that have none."""
    place: Place = 0
    """Where the virtual tokens stand: in the turn of this number (0 is the first, -1 the last before the answer); in the
    "system" turn, which is added where there is none; at the "front" of the chat, behind the BOS; or before the "answer"."""
    side: Side = "start"
    """Whether they stand at the start or at the end of what that turn says."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learned."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Length of the longest generated answer in tokens, end mark included; this much room is kept when a chat is cut."""
    chat_template: str | None = None
    """A template (Jinja) in the place of the tokenizer's own."""
    template_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the template is told beside the turns, as in {"enable_thinking": False}. Fix a date that it would else write."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("<|im_end|>") is in what a turn says: text, or that token, which may end it."""
    generation: Generation = dataclasses.field(default_factory=dict)
    """Options of transformers' `generate` for predictions, and `seed`; see `TextGeneration`."""
    choices: Choices = ()
    """The texts that an answer is one of: the one that is most probable as a whole is the prediction."""

    @model_validator(mode="after")
    def _check(self) -> Chat:
        check_columns(self.columns, COLUMNS[self.format])
        check_generation(self.generation)
        check_choices(self.choices, self.generation)
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        return COLUMNS[self.format][:1]

    @property
    def in_windows(self) -> bool:
        """Whether a chat may become several rows, one for each answer."""
        return self.turns == "all" and self.format != "alpaca"

    @property
    def writes_text(self) -> bool:
        return not self.choices

    @property
    def end_text(self) -> str | None:
        """None: a token ends an answer."""
        return None

    def answering(self, generation: Mapping[str, Any] | None, choices: Sequence[str] | None) -> Chat:
        """See `Task.answering`."""
        changed: Chat = answering(self, generation, choices)
        return changed

    def bind(self, setting: TextSetting) -> ChatEncoder:
        """Return the encoder.

        Raises ValueError for a backbone that is no causal language model, a tokenizer without a chat template, a template that
        does not take a question and its answer, and one behind whose answers nothing could end them.
        """
        tokenizer = setting.tokenizer
        if setting.closed or setting.read_media is not None:
            raise ValueError(
                f"a chat needs a causal language model that reads text alone, and this is {setting.family}"
            )
        if self.chat_template is None and not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template: take a model that was trained to chat (often named ...-instruct),"
                " TextGeneration with a template of your own, or give chat_template"
            )
        template = ChatTemplate(
            tokenizer, self.chat_template, self.template_settings, self.control_tokens, setting.rows
        )
        end = template.end_of_turn()
        if end is None and tokenizer.eos_token_id is None:
            raise ValueError(
                "the chat template ends answers with no control token, and the tokenizer has no EOS token: nothing stops them"
            )
        return ChatEncoder(self, setting, template, end)

    def evaluate(self, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """See `generation_metrics`; the reference is the last answer of a chat. Perplexity needs the model."""
        return generation_metrics(predictions, [self.reference(row) for row in rows])

    def reference(self, row: Row) -> str:
        """Return the last answer of a chat, stripped. Raises ValueError for a chat without one."""
        messages = self.messages(row, answer=True)
        return str(messages[last_answer(messages)]["content"] or "").strip()

    def messages(self, row: Row, *, answer: bool) -> list[Message]:
        """Return the turns of a row, with the task's system turn if they have none; see `read_messages`."""
        messages = read_messages(row, self.format, self.columns, answer=answer)
        check_unmarked(messages)
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return messages

    def with_prompt_in_front(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
        """Raises ValueError where the template begins with a BOS: virtual tokens never stand before it in a chat."""
        task = dataclasses.replace(self, place="front")
        encoder = task.bind(TextSetting(tokenizer, virtual_tokens=1))
        if encoder.encode({self.fields[0]: "a"}, answer=False).context[0] >= 0:
            raise ValueError(
                "the chat template begins with a BOS, and this prompt was trained to stand before everything"
            )
        return task

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the turns as plain lines, each behind the name of its role."""
        messages = self.messages(row, answer=answer)
        stop = last_answer(messages) + 1 if answer else len(asked(messages))
        return "\n".join(f"{m['role'].capitalize()}: {m['content'] or ''}" for m in messages[:stop])


def last_answer(messages: Sequence[Message]) -> int:
    """Return the number of the last answer. Raises ValueError for a chat without one."""
    if numbers := answers_of(messages):
        return numbers[-1]
    raise ValueError(
        f"the turns are of {[message['role'] for message in messages]}: none of the assistant's follows another turn, and there"
        " is no answer to learn"
    )


def asked(messages: Sequence[Message]) -> list[Message]:
    """Return the turns without answers at their end. Raises ValueError if nothing is asked then."""
    kept = list(messages)
    while kept and kept[-1]["role"] == "assistant":
        kept.pop()
    if all(message["role"] == "system" for message in kept):
        raise ValueError("the chat has no turn that could be answered")
    return kept


@dataclasses.dataclass(frozen=True)
class ChatEncoder(TaskEncoder):
    """A `Chat` bound to a tokenizer; see `TaskEncoder`. `end` is the token that ends an answer; None: the EOS token does."""

    task: Chat
    setting: TextSetting
    template: ChatTemplate
    end: str | None

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a chat behind which its last answer follows; with `answer`, that is the only target.

        With `answer`, the earlier answers that are learned are its `windows`. Of a chat that is too long the oldest turns are
        left out, then the last turn is cut at its end. Raises ValueError for turns that the task or the template does not take.
        """
        messages = self.task.messages(row, answer=answer)
        if not answer:
            return self._encode(asked(messages), None)
        last = last_answer(messages)
        found = [self._encode(messages[:last], messages[last])]
        if self.task.turns == "all":
            found += [self._encode(messages[:n], messages[n]) for n in answers_of(messages)[:-1]]
        return dataclasses.replace(found[0], windows=tuple(found[1:]))

    def _encode(self, given: Sequence[Message], answer: Message | None) -> EncodedRow:
        written = [
            self._target(given, {"role": "assistant", "content": choice}) for choice in self.task.choices
        ]
        choices = check_distinct(self.task.choices, written)
        targets = choices if answer is None else (self._target(given, answer),)
        reserved = max(self.task.max_new_tokens, *map(len, targets), *map(len, choices), 0)
        context = self._fitting(list(given), reserved)
        return EncodedRow(context, targets, None if answer is None else 0, origin=choices or None)

    def _context(self, given: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of turns and of the answer's header; what stands in front of the virtual tokens is read apart."""
        virtual = range(self.setting.virtual_tokens)
        if not virtual:
            return tuple(self.template.tokens(self.template.marked(given)))
        front, behind = self.template.split(given, self.task.place, self.task.side)
        return (*self.template.tokens(front), *(-1 - k for k in virtual), *self.template.tokens(behind))

    def _fitting(self, given: list[Message], reserved: int) -> tuple[int, ...]:
        """The context with room for an answer of `reserved` tokens. Raises ValueError if no room can be made."""
        context = self._context(given)
        if self.setting.max_tokens is None:
            return context
        room = self.setting.max_tokens - reserved
        whole = len(context)
        while len(context) > room and (shorter := _without_oldest(given)) is not None:
            given = shorter
            context = self._context(given)
        if len(context) <= room:
            return context
        *before, last = given
        text = last["content"] or ""
        fits, too_long, best = 0, len(text), None
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            context = self._context([*before, {**last, "content": text[:middle]}])
            if len(context) <= room:
                best, fits = context, middle
            else:
                too_long = middle
        if best is None:
            raise ValueError(
                f"the chat takes {whole} tokens; max_tokens={self.setting.max_tokens} less {reserved} (answer) is {room}, and"
                f" its last turn alone, cut short, still takes {len(context)}: raise max_tokens, lower max_new_tokens, or"
                " shorten the system turn"
            )
        return best

    def _target(self, given: Sequence[Message], answer: Message) -> tuple[int, ...]:
        """The tokens of an answer behind its header, up to the token that ends it."""
        # The answer may have marks that the turns before it lack: the texts are compared without.
        header = without_marks(self.template.marked(given))
        full = self.template.marked([*given, answer], answer=True)
        if not without_marks(full).startswith(header):
            raise ValueError(
                "the chat template writes the turns before an answer differently once the answer stands behind them, so that it"
                " could not be learned as it is to be written: set what it needs in template_settings (such as"
                " enable_thinking: false), or give a chat_template"
            )
        text = behind(full, len(header))
        if self.end is not None and (at := text.rfind(self.end)) >= 0:
            return tuple(self.template.tokens(text[: at + len(self.end)]))
        return (*self.template.tokens(text.rstrip()), self.setting.tokenizer.eos_token_id)

    def reference(self, row: Row) -> str:
        """Return the last answer of a chat, stripped."""
        return self.task.reference(row)

    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        """Return -log p of each answer, the mean over its tokens, (B,), in nats per token.

        Raises ValueError for a row without its answer.
        """
        sums, lengths = reference_likelihoods(logits)
        return -sums / lengths

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: the one that the template writes there, and EOS."""
        tokenizer = self.setting.tokenizer
        end = None if self.end is None else tokenizer.convert_tokens_to_ids(self.end)
        return tuple(dict.fromkeys(i for i in (end, tokenizer.eos_token_id) if isinstance(i, int)))

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Return the assistant's next turn for each row, stripped, in order; with choices the most probable one.

        `on_batch` is called with the number of rows done so far.
        """
        task = self.task
        writer = Writer(
            tokenizer=self.setting.tokenizer,
            max_new_tokens=task.max_new_tokens,
            stops=self.stops,
            generation=task.generation,
            choices=task.choices,
        )
        return writer.predict(model, rows, batch_size=batch_size, on_batch=on_batch)

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Return the perplexity of the answers that are learned."""
        return {"perplexity": perplexity(model, rows, batch_size=batch_size)}


def _without_oldest(given: Sequence[Message]) -> list[Message] | None:
    """The turns without the oldest that is no system turn, and without what follows it up to the user's next turn."""
    start = 1 if given[0]["role"] == "system" else 0
    for number in range(start + 1, len(given)):
        if given[number]["role"] == "user":
            return [*given[:start], *given[number:]]
    return None
