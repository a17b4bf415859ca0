"""An inspection of virtual tokens as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softprompt.inspection.virtual_tokens import (
    PromptReport,
    TokenReport,
    Word,
    drift_in_words,
    moved,
    summary_of,
)
from softprompt.pages import render

HINT = (
    "Near words are a hint, not a translation: a virtual token may lie where no word lies, and measures differ. "
    "␣ is a space, ↵ a line end, ⇥ a tab; … before a piece says that it continues a word."
)
_OTHERS = {"cosine": "cosine", "l2": "L2 distance, the smallest first", "dot": "dot product"}


def inspection_page(report: PromptReport) -> str:
    """The page as HTML. Every text that comes from a model, a tokenizer or a file is escaped."""
    mean, deviation = report.vocabulary_norm
    facts = {
        "Method": report.method,
        "Backbone": report.backbone,
        "Norm of a word": f"{mean:.4g}, standard deviation {deviation:.3g}",
        "Start": report.init,
        "Logit lens": f"the words that {report.lens} give for the vector itself, as if it stood behind the last layer"
        if report.lens
        else "none: the backbone has no output head of the prompt's width",
        **({"Also learned": "; ".join(report.beside)} if report.beside else {}),
    }
    return render(
        "inspect.html",
        title=f"{report.method} on {report.backbone}",
        summary=summary_of(report),
        hint=HINT,
        tokens=token_values(report) if report.tokens else None,
        facts=facts,
    )


def token_values(report: PromptReport) -> dict[str, Any]:
    """What the templates show of virtual tokens: the heat map's measures, and for each token its heats and near words."""
    measures: list[tuple[str, str, Callable[[TokenReport], float | None], str]] = [
        ("moved", "distance from its start, in norms of a word", lambda token: moved(report, token), ".2f"),
        ("norm", "percentile of its norm among words", lambda token: token.norm_percentile, ".0f"),
        ("near", "similarity to the nearest word", _best, ".2f"),
    ]
    shown = []
    for key, name, value, form in measures:
        found = [number for token in report.tokens if (number := value(token)) is not None]
        if len(found) == len(report.tokens):
            low, high = (0.0, 100.0) if key == "norm" else (min(found), max(found))
            shares = [(number - low) / (high - low) if high > low else 1.0 for number in found]
            heats = [
                {"key": key, "share": share, "text": f"{number:{form}}"}
                for share, number in zip(shares, found, strict=True)
            ]
            about = {"key": key, "name": name, "low": f"{low:{form}}", "high": f"{high:{form}}"}
            shown.append((about, heats))
    return {
        "measures": [about for about, _ in shown],
        "tokens": [
            {"heats": [heats[i] for _, heats in shown], **_token(token)}
            for i, token in enumerate(report.tokens)
        ],
        "told": "Each cell is a virtual token with its nearest word: by cosine, without what nearly all words share. "
        "Choose one to see more words.",
    }


def _token(token: TokenReport) -> dict[str, Any]:
    first = _nearest(token)
    about = [f"norm {token.norm:.3g}, larger than that of {token.norm_percentile:.0f} % of the words"]
    about.append(f"start: {drift}" if (drift := drift_in_words(token)) else "its start is unknown")
    about.append("the strip shows mean absolute values along the vector")
    top = max(token.strip, default=0.0)
    others = [
        {"name": name, "words": _words(token.nearest[measure], measure == "l2")}  # type: ignore[index]
        for measure, name in _OTHERS.items()
        if measure in token.nearest
    ]
    if token.lens is not None:
        others.append({"name": "logit lens", "words": _words(token.lens)})
    return {
        "place": token.place,
        "word": first[0].text if first else "",
        "nearest": _words(first),
        "about": "; ".join(about),
        "others": others,
        "strip": [value / top if top else 0.0 for value in token.strip],
        "strip_told": f"token {token.place}: mean absolute values from {min(token.strip, default=0.0):.2g} to {top:.2g} "
        "standard deviations of the embedding table",
    }


def _nearest(token: TokenReport) -> Sequence[Word]:
    return token.nearest.get("centred") or token.nearest["cosine"]


def _best(token: TokenReport) -> float | None:
    return max((word.score for word in _nearest(token)), default=None)


def _words(words: Sequence[Word], smallest: bool = False) -> list[Mapping[str, Any]]:
    """Words with their score, and how long its bar is."""
    if not words:
        return []
    best = words[0].score
    shares = [
        (best / word.score if smallest else word.score / best)
        if word.score * best > 0
        else float(word.score == best)
        for word in words
    ]
    return [
        {"text": word.text, "score": f"{word.score:.3g}", "share": min(1.0, max(0.0, share))}
        for word, share in zip(words, shares, strict=True)
    ]
