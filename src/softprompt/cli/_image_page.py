"""Shows the inspection of a prompt for images: as text, as JSON values and as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.cli._console import Report
from softprompt.cli._page import page, words_table
from softprompt.cli._results import scores

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.inspection.images import ImagePromptReport, ImageReport


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
    """The page as HTML. Every text that comes from a model or a file is escaped."""
    parts = []
    if found.words is not None and found.words.tokens:
        note = "Near words are a hint, not a translation: a virtual token may lie where no word lies."
        parts.append(f"<h2>Words near to the context</h2><p>{note}</p>{words_table(found.words)}")
    if found.metrics:
        parts.append(_confusion(found))
    if any(image.attention is not None for image in found.images):
        parts.append(
            "<p>Attention shows where the class token looks; it does not prove what the answer depends on. Each layer shows the"
            " mean over its heads.</p>"
        )
    parts += [_section(image, top) for image in found.images] or ["<p>No images were given.</p>"]
    return page(f"{found.method} on {found.backbone}", _facts(found), "\n".join(parts))


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


def _section(image: ImageReport, top: int) -> str:
    from softprompt.inspection.plots import as_png, attention_over_image

    name = escape(image.source)
    said = f"taken for {image.prediction.label}"
    if image.right is not None:
        said += ", rightly" if image.right == image.prediction.label else f", but it is {image.right}"
    label = escape(f"{Path(image.source).name} as the backbone saw it, {said}")
    rows = "".join(
        f'<tr><th scope="row"><bdi>{escape(kind)}</bdi></th><td><meter min="0" max="1" value="{p:.4f}"'
        f' aria-label="probability">{p:.3f}</meter> {p:.3f}</td></tr>'
        for kind, p in image.best(top)
    )
    picture = f'<img class="seen" alt="{label}" src="{_data(_png(image.pixels))}">'
    table = (
        f'<table><thead><tr><th scope="col">label</th><th scope="col">probability</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    figure = ""
    if image.attention is not None:
        drawn = attention_over_image(image.pixels, image.attention)
        drawing = f'<img alt="{escape(str(drawn.get_label()))}" src="{_data(as_png(drawn))}">'
        name_of = f"attention to {escape(Path(image.source).name)}"
        figure = f'<div class="wide" role="region" aria-label="{name_of}" tabindex="0">{drawing}</div>'
    heading = f"<h2><bdi>{name}</bdi></h2><p><bdi>{escape(said)}</bdi></p>"
    return f'<section>{heading}<div class="image">{picture}{table}</div>{figure}</section>'


def _confusion(found: ImagePromptReport) -> str:
    from softprompt.inspection.plots import as_png, confusion_matrix

    drawn = confusion_matrix(found.metrics["confusion"])
    alternative = escape(str(drawn.get_label()))
    return f'<h2>Which label is taken for which</h2><img alt="{alternative}" src="{_data(as_png(drawn))}">'


def _png(pixels: Tensor) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(content, "png")  # (3, H, W) -> (H, W, 3)
    return content.getvalue()


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
