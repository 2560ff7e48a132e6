"""HTML pages that stand alone: one shell and style for the evaluation's report and the quality report.

Markup is markupsafe's: text that is put into it is escaped, whoever wrote it. Pictures and sounds lie inside as data URIs. Scripts
are this package's own files, put in whole; a content security policy knows them by digest, and keeps a page from loading or running
anything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files

from markupsafe import Markup

from soundmill.page.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; script-src {scripts}"
SHELL = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} — Soundmill</title>
<style>
{style}</style>
</head>
<body><main>
<h1>{title}</h1>
<p class="soft">{summary}</p>
{body}
</main>{scripts}</body>
</html>
""")


def document(title: str, summary: str | Markup, parts: Iterable[Markup], scripts: Sequence[str] = ("players",)) -> str:
    """A whole page, with these of the package's scripts."""
    sources = [files(__name__).joinpath(f"{name}.js").read_text(encoding="utf-8") for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
    # The policy, the style and the scripts are the project's own: `'` and `>` stay as they are.
    return SHELL.format(
        policy=Markup(POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")),
        title=title,
        style=Markup(STYLE),
        summary=summary,
        body=Markup("\n").join(part for part in parts if part),
        scripts=Markup("").join(Markup("\n<script>{}</script>").format(Markup(source)) for source in sources),
    )


def heading(title: str, note: str | Markup = "", level: int = 2) -> Markup:
    small = Markup(" <small>{}</small>").format(note) if note else ""
    return Markup("<h{level}>{title}{small}</h{level}>").format(level=level, title=title, small=small)


def block(tag: str, kind: str, *content: str | Markup) -> Markup:
    """An element of a class with this content."""
    return Markup('<{tag} class="{kind}">{content}</{tag}>').format(tag=tag, kind=kind, content=Markup("").join(content))


def panel(*content: str | Markup, kind: str = "") -> Markup:
    return block("section", f"panel {kind}".strip(), *content)


def table(head: Sequence[str | Markup], rows: Iterable[Sequence[str | Markup]]) -> Markup:
    """A table that scrolls by itself where it is wider than the page; the first cell of a row is its name."""
    top = Markup("").join(Markup("<th>{}</th>").format(cell) for cell in head)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row)) for row in rows
    )
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(top, body)


def listing(lines: Iterable[str]) -> Markup:
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))


def definitions(terms: Iterable[tuple[str, str]]) -> Markup:
    return Markup("<dl>{}</dl>").format(
        Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(term, meaning) for term, meaning in terms)
    )


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(uri: str, alt: str) -> Markup:
    return Markup('<img alt="{}" src="{}">').format(alt, uri)


def player(flac: bytes, loops: bool = False) -> Markup:
    """What plays a sound; one that `loops` begins again at its end."""
    again = Markup(" loop") if loops else ""
    return Markup('<audio controls{} preload="none" src="{}"></audio>').format(again, data_uri("audio/flac", flac))


def figure(caption: str | Markup, *content: str | Markup, kind: str = "") -> Markup:
    named = Markup(' class="{}"').format(kind) if kind else ""
    return Markup("<figure{}><figcaption>{}</figcaption>{}</figure>").format(named, caption, Markup("").join(content))
