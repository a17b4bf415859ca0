"""An inspection as one self-contained HTML page, without scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from softprompt.inspection.virtual_tokens import PromptReport, TokenReport, Word, drift_in_words

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --page: #ffffff; --line: #cccccc; --soft: #555555; --heat: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --page: #16181b; --line: #44484d; --soft: #b0b0b0; --heat: #7fc0ff; }
}
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--page); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
.told { color: var(--soft); }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left; vertical-align: top; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
@media (min-width: 50rem) { dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; } dd { margin: 0; } }
ol { margin: 0; padding-left: 1.3rem; } li span { color: var(--soft); font-size: .85em; }
code { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: break-word; }
svg { display: block; margin-top: .3rem; outline: 1px solid var(--line); } rect { fill: var(--heat); }
meter { width: 6rem; }
img { max-width: 100%; height: auto; background: #ffffff; } .wide img { min-width: 44rem; }
 img.seen { width: 10rem; image-rendering: pixelated; }
.image { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; } .image table { width: auto; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; }
"""

_COLUMNS = (
    "token",
    "norm",
    "nearest by cosine",
    "nearest by L2 distance",
    "nearest by dot product",
    "logit lens",
)


def inspection_page(report: PromptReport) -> str:
    """The page as HTML. Every text that comes from a model, a tokenizer or a file is escaped."""
    mean, deviation = report.vocabulary_norm
    lens = (
        f"the words that {report.lens} give for the vector itself, as if it stood behind the last layer"
        if report.lens
        else "none: the backbone has no output head of the prompt's width"
    )
    facts = {
        "Method": report.method,
        "Backbone": report.backbone,
        "Norm of a word": f"{mean:.4g}, standard deviation {deviation:.3g}",
        "Start": report.init,
        "Logit lens": lens,
        **({"Also learned": "; ".join(report.beside)} if report.beside else {}),
    }
    body = f"""<p>Near words are a hint, not a translation: a virtual token may lie where no word lies, and measures differ.
&#x2423; is a space, &#x21b5; a line end, &#x21e5; a tab.</p>
{words_table(report) if report.tokens else "<p>The method has no virtual tokens.</p>"}"""
    return page(f"{report.method} on {report.backbone}", facts, body)


def page(name: str, facts: Mapping[str, str], body: str) -> str:
    """An HTML page: a title and facts, which are escaped here, above a body, which already is HTML."""
    title = escape(name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>{"".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())}</dl>
{body}
</main>
</body>
</html>
"""


def words_table(report: PromptReport) -> str:
    """The virtual tokens with their nearest words, as HTML."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in (*_COLUMNS, "from its start"))
    rows = "".join(map(_row, report.tokens))
    return (
        f'<p class="told">{len(report.tokens)} virtual tokens. The strip shows the mean absolute value '
        "in equal slices of the vector, stronger where it is larger.</p>"
        '<div class="wide" role="region" aria-label="Virtual tokens" tabindex="0"><table aria-label="Virtual tokens">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(token: TokenReport) -> str:
    percentile = f"{token.norm_percentile:.0f}"
    norm = (
        f"{token.norm:.4g}<br>"
        f'<meter min="0" max="100" value="{percentile}" aria-label="percentile among the norms of words">'
        f"{percentile}</meter> {percentile}%"
    )
    cells = [norm, *(_words(token.nearest[m]) for m in ("cosine", "l2", "dot")), _words(token.lens or ())]
    cells.append(f"<bdi>{escape(drift_in_words(token))}</bdi>" if drift_in_words(token) else "unknown")
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row"><bdi>{escape(token.place)}</bdi>{_strip(token)}</th>{body}</tr>'


def _words(words: tuple[Word, ...]) -> str:
    items = "".join(
        f"<li><bdi><code>{escape(w.text)}</code></bdi> <span>{w.score:.3g}</span></li>" for w in words
    )
    return f"<ol>{items}</ol>" if items else "none"


def _strip(token: TokenReport) -> str:
    top = max(token.strip, default=0.0)
    label = f"token {escape(token.place)}: mean absolute values from {min(token.strip, default=0.0):.2g} to {top:.2g} "
    label += "standard deviations of the embedding table"
    cells = "".join(
        f'<rect x="{4 * i}" width="4" height="12" fill-opacity="{value / top if top else 0:.2f}"/>'
        for i, value in enumerate(token.strip)
    )
    width = 4 * len(token.strip)
    size = f'width="{width}" height="12" viewBox="0 0 {width} 12"'
    return f'<svg role="img" aria-label="{label}" {size}>{cells}</svg>'
