"""Shows the inspection of a prompt for images: as text, as JSON values and as one self-contained HTML page."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softprompt.cli._console import Report
from softprompt.cli._page import HINT, token_values
from softprompt.cli._results import few_rows_are, scores
from softprompt.inspection.virtual_tokens import summary_of
from softprompt.pages import data_url, render
from softprompt.studies.drawing import Plot, legend, panels_of, style
from softprompt.studies.statistics import wilson

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.inspection.images import ImagePromptReport, ImageReport

_MOST = 200  # images on the page
_TINY = 64  # pixels: smaller images are enlarged without smoothing
_WIDEST = 224  # pixels
_HUE = (224, 79, 0)
_HINT = (
    "The wrong ones come first, the surest of them before the others. Choose an image to see its likeliest labels and "
    "where the class token looks; that does not prove what the answer depends on."
)


def show_images(report: Report, found: ImagePromptReport, top: int) -> None:
    """Print facts, then a table of images with their likeliest labels and what the last layer attends to."""
    from rich.table import Table
    from rich.text import Text

    report.values.update(
        {
            "method": found.method,
            "backbone": found.backbone,
            "size": found.size,
            "learned": [{"name": t.name, "shape": t.shape, "norm": t.norm} for t in found.learned],
            "no_attention": found.no_attention,
            "metrics": dict(found.metrics),
            "images": [
                {
                    "image": image.source,
                    "label": image.prediction.label,
                    "right": image.right,
                    "probabilities": image.prediction.probabilities,
                    "attention": None if image.attention is None else image.attention.shares(),
                }
                for image in found.images
            ],
        }
    )
    for line in (f"{name}: {value}" for name, value in _facts(found).items()):
        report.human.print(line, highlight=False, markup=False, soft_wrap=True)
    if not found.images:
        report.human.print("give images to see how they are labelled", highlight=False)
        return
    table = Table("image", "right", "likeliest", "last layer's class token attends to")
    for image in found.images:
        cells = (
            image.source,
            image.right or "unknown",
            "  ".join(f"{label} {p:.3f}" for label, p in image.best(top)),
            _attended(image),
        )
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    report.human.print(table)


def image_page(found: ImagePromptReport, top: int) -> str:
    """The page as HTML, the wrong images first, those that the prompt is surest of before the others.

    Every text that comes from a model or a file is escaped.
    """
    words = found.words if found.words is not None and found.words.tokens else None
    images = sorted(found.images, key=_order)
    shares = _shares_by_layer(found)
    return render(
        "images.html",
        title=f"{found.method} on {found.backbone}",
        summary=_summary(found),
        warning=few_rows_are(int(found.metrics.get("rows", 0))),
        hint=_HINT + (f" {_MOST} of {len(images)} images are shown." if len(images) > _MOST else ""),
        images=[_values(image, top) for image in images[:_MOST]],
        known=any(image.right is not None for image in images),
        labels=sorted({image.right for image in images if image.right is not None}),
        given=sorted({image.prediction.label for image in images}),
        confusion=confusion_map(found.metrics["confusion"]) if found.metrics else None,
        shares=None
        if shares is None
        else {"title": shares.title, "told": shares.alternative, "svg": Markup(shares.svg())},
        tokens=None if words is None else token_values(words),
        tokens_summary="" if words is None else summary_of(words),
        words_hint=HINT,
        facts=_facts(found),
    )


def _facts(found: ImagePromptReport) -> dict[str, str]:
    facts = {"Method": found.method, "Backbone": found.backbone}
    if found.size is not None:
        facts["Images"] = f"{found.size[0]} x {found.size[1]} pixels"
    learned = [
        f"{t.name} {' x '.join(map(str, t.shape))}, mean norm of a row {t.norm:.3g}" for t in found.learned
    ]
    facts["Learned"] = "; ".join(learned) if learned else "nothing beside the head"
    if found.words is not None:
        facts["Virtual tokens"] = "; ".join([str(len(found.words.tokens)), *found.words.beside])
    if found.metrics:
        facts["Labelled images"] = scores("accuracy", found.metrics)
    if found.no_attention:
        facts["Attention"] = found.no_attention
    return facts


def _attended(image: ImageReport) -> str:
    if image.attention is None:
        return "not shown"
    return "  ".join(f"{name} {100 * values[-1]:.0f} %" for name, values in image.attention.shares().items())


def _order(image: ImageReport) -> tuple[int, float]:
    confidence = image.prediction.probabilities[image.prediction.label]
    return {"wrong": 0, "unknown": 1, "right": 2}[_verdict(image)], -confidence


def _verdict(image: ImageReport) -> str:
    if image.right is None:
        return "unknown"
    return "right" if image.right == image.prediction.label else "wrong"


def _summary(found: ImagePromptReport) -> str:
    if not found.images:
        return f"What {found.method} learned on {found.backbone}."
    count = f"{len(found.images)} image{'s' * (len(found.images) > 1)}"
    if not found.metrics:
        return f"{count}, of which no right label is known."
    low, high = wilson(found.metrics["accuracy"], found.metrics["rows"])
    wrong = sum(_verdict(image) == "wrong" for image in found.images)
    return (
        f"{wrong} of {found.metrics['rows']} images with a known label are labelled wrongly: accuracy "
        f"{100 * found.metrics['accuracy']:.1f}, 95 % interval {100 * low:.1f} to {100 * high:.1f}."
    )


def _values(image: ImageReport, top: int) -> dict[str, Any]:
    """What the template shows of an image."""
    given, name = image.prediction.label, Path(image.source).name
    share = f"{100 * image.prediction.probabilities[given]:.0f} %"
    verdict = _verdict(image)
    said = f"{image.right}, taken for {given}, {share}" if verdict == "wrong" else f"{given}, {share}"
    values: dict[str, Any] = {
        "verdict": verdict,
        "right": image.right,
        "given": given,
        "name": image.source,
        "said": said,
        "told": f"{name} as the backbone saw it: {said}",
        "src": data_url(*_picture(image.pixels)),
        "tiny": max(image.pixels.shape[1:]) < _TINY,
        "chances": image.best(top),
        "layers": [],
    }
    if image.attention is not None:
        shares = image.attention.shares()
        heat = image.attention.patches.float().mean(dim=1).cpu()  # (L, H, h, w) -> (L, h, w)
        values["layers"] = [
            {
                "src": data_url(_overlay(layer), "image/png"),
                "most": f"{100 * layer.max().item():.2g} %",
                "told": ", ".join(f"{100 * shares[part][i]:.0f} % to {part}" for part in shares),
            }
            for i, layer in enumerate(heat)
        ]
        values["attention_told"] = (
            f"attention of the class token to {name}, mean over heads; in the last layer {_attended(image)}"
        )
    return values


def _shares_by_layer(found: ImagePromptReport) -> Plot | None:
    """The share of the attention that goes to prompts, patches and the rest in each layer, mean over the images."""
    seen = [image.attention.shares() for image in found.images if image.attention is not None]
    if not seen:
        return None
    means = {
        part: [statistics.fmean(layer) for layer in zip(*(shares[part] for shares in seen), strict=True)]
        for part in seen[0]
    }

    def draw(ink: str) -> Figure:
        figure, [axes] = panels_of(1, ink)
        for i, (part, values) in enumerate(means.items()):
            colour, mark = style(i)
            axes.plot(range(1, len(values) + 1), values, f"{mark}-", color=colour, label=part)
        axes.set_ylim(0, 1)
        axes.set_xlabel("layer")
        axes.set_ylabel("share of attention")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, [axes], ink)
        return figure

    last = ", ".join(f"{100 * values[-1]:.0f} % to {part}" for part, values in means.items())
    return Plot(
        "attention-by-layer",
        "Where attention goes, layer by layer",
        f"What the class token attends to, mean over {len(seen)} images and over heads; in the last layer {last}.",
        draw,
    )


def confusion_map(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The counts as the template's heat map, without labels that no row has or was given."""
    rows = {gold: row for gold, row in counts.items() if sum(row.values())}
    given = {label for row in rows.values() for label, number in row.items() if number}
    columns = [label for label in dict.fromkeys([*counts, *given]) if label in given or label in rows]
    shares = {
        gold: [(str(row.get(label, 0)), row.get(label, 0) / sum(row.values())) for label in columns]
        for gold, row in sorted(rows.items(), key=lambda item: -sum(item[1].values()))
    }
    return {"name": "Rows by true and given label", "columns": columns, "rows": shares}


def _picture(pixels: Tensor) -> tuple[bytes, str]:
    """The pixels as a file, and its media type: small ones exactly, larger ones as WebP."""
    from PIL import Image

    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)
    content = io.BytesIO()
    if max(image.size) < _TINY:
        image.save(content, "png")
        return content.getvalue(), "image/png"
    image.thumbnail((_WIDEST, _WIDEST))
    image.save(content, "webp", quality=85)
    return content.getvalue(), "image/webp"


def _overlay(weights: Tensor) -> bytes:
    """A picture of one hue whose opacity is the weight (h, w), the largest at nine tenths; browsers enlarge it smoothly."""
    from PIL import Image

    alpha = (weights / weights.max().clamp(min=1e-12) * 230).round().to(torch.uint8)
    colour = torch.tensor(_HUE, dtype=torch.uint8).expand(*alpha.shape, 3)
    pixels = torch.cat([colour, alpha[..., None]], dim=-1)  # (h, w) -> (h, w, 4)
    content = io.BytesIO()
    Image.fromarray(pixels.numpy(), "RGBA").save(content, "png", optimize=True)
    return content.getvalue()
