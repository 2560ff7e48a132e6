"""The result as a table in the terminal and as a page with a sound of each prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soundmill import disk, page, terminal
from soundmill.audio.tags import GENERATED
from soundmill.evaluation.folder_report import open_console
from soundmill.models.family import made_by
from soundmill.page.sounds import Card, Chip, Section, Sound, draw_section
from soundmill.prompts.following import Following

COLUMNS = {
    "asked": "as asked",
    "shuffled": "shuffled",
    "difference": "difference",
    "above_others": "above others",
    "absent": "absent heard",
    "ordered": "in order",
    "counted": "more events",
    "silent": "silent",
}
MEANINGS = {
    "asked": "share of the kinds asked for among as many with YAMNet's highest scores; of one kind: of sounds classified as it",
    "shuffled": "the same share if each sound had another prompt of its set that asks for other kinds",
    "difference": "as asked − shuffled: above zero, prompts steer",
    "above_others": "share of the set's sounds for other kinds in which the kind scores lower; chance: 50 %",
    "absent": "share of sounds in which a kind that must be absent scores higher than what was asked for",
    "ordered": "share of sounds in which the first kind's scores are centred before the second's; chance: 50 %",
    "counted": "share of pairs in which the sound for the larger count has more events; chance: 50 %",
    "silent": "share of sounds below −60 dBFS",
}
LONGEST = 120  # characters of a prompt on the page


def rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, in %: a row for each baseline and set, a column for each share that any of them has."""
    parts = {**document["baselines"], **document["sets"]}
    found = [part["scores"] for part in parts.values()]
    keys = [key for key in COLUMNS if any(key in scores and (key != "silent" or scores[key]["value"]) for scores in found)]
    head = ["%", *(COLUMNS[key] for key in keys)]
    return head, [[name, *(_share(part["scores"].get(key)) for key in keys)] for name, part in parts.items()]


def _share(score: Mapping[str, float] | None) -> str:
    if not score:
        return "–"
    return "{:.0f} ({:.0f}–{:.0f})".format(*(100 * score[key] for key in ("value", "low", "high"))).replace("-", "−")


def show(document: Mapping[str, Any]) -> None:
    """Print the table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    head, lines = rows(document)
    console = open_console()
    console.print(
        f"[bold]{escape(document['family'])}[/bold]  {escape(document['weights'])}; 95 % intervals over prompts and seeds"
    )
    table = Table(head[0], box=box.SIMPLE, pad_edge=False)
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def write(found: Following, path: Path) -> None:
    """Write the page: one file with the table and a sound of each prompt."""
    document, faults = found.document, []
    sections = [draw_section(_section(found, name), faults) for name in document["sets"]]
    head, lines = rows(document)
    used = [key for key, title in COLUMNS.items() if title in head]
    text = page.render(
        "soundmill.prompts",
        "prompts.html",
        title=f"What {document['family']} does with prompts",
        document=document,
        head=head,
        rows=lines,
        terms=[(COLUMNS[key], MEANINGS[key]) for key in used],
        sections=sections,
        faults=faults,
    )
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for fault in faults:
        terminal.say(f"{path}: {fault}", error=True)


def _section(found: Following, name: str) -> Section:
    part, count = found.document["sets"][name], found.document["sounds_per_prompt"]
    cards, maker = [], made_by(found.document, GENERATED)
    for number, (line, (wave, rate)) in enumerate(zip(part["prompts"], found.examples[name], strict=True), 1):
        asked, absent = line["heard"], line["absent"]
        wanted = [*asked, *(f"no {kind}" for kind in absent)]
        good = dict.fromkeys(asked, True) | dict.fromkeys(absent, False)
        chips = [Chip(f"{kind} {times} of {count}", good.get(kind)) for kind, times in line["recognised"].items()]
        if line["count"] is not None:
            chips.append(Chip(f"{line['events']:.2g} events instead of {line['count']}"))
        title = (
            line["text"] if len(line["text"]) <= LONGEST else f"{line['text'][: LONGEST // 2]} … {line['text'][-LONGEST // 2 :]}"
        )
        note = f"asks for: {', '.join(wanted)}" if wanted else "asks for no kind in particular"
        sound = Sound(f"1 of {count}", wave, rate, made_by=maker)
        cards.append(Card(f"{name} {number}", title or "(no text)", note, (sound,), tuple(chips)))
    return Section(name, part["about"], tuple(cards))
