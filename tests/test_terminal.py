"""Nothing that others wrote reaches the terminal as a command to it."""

import ast
import io

import pytest

from soundmill import terminal
from tests.imports import ROOT

ATTACKS = {
    "\x1b[2Jgone": r"\x1b[2Jgone",
    "\x9b31m": r"\x9b31m",
    "a\rb": r"a\rb",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "exe.\u202ecod": r"exe.\u202ecod",
    "\u2066\u200b\ufeff": r"\u2066\u200b\ufeff",
    "a\u2028b\U000e0041": r"a\u2028b\U000e0041",
    "bad \udcff byte": r"bad \udcff byte",
    "Zoë – naïve 雨 😀\u00a0\u3000\n\t": "Zoë – naïve 雨 😀\u00a0\u3000\n\t",
}


@pytest.mark.parametrize("text", ATTACKS)
def test_texts_are_shown_as_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(text, error=True)
    assert capsys.readouterr().err == f"{ATTACKS[text]}\n"
    console = terminal.console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    console.print(text, markup=False, highlight=False)
    assert "\x1b" not in console.file.getvalue()
    assert "\u202e" not in console.file.getvalue()


def test_all_that_is_printed_passes_here() -> None:
    """No module but this one prints, or opens a console."""
    for path in [path for room in ("soundmill", "stages", "flows") for path in (ROOT / room).rglob("*.py")]:
        if path.name in ("terminal.py", "serving.py"):
            continue
        called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not called & {"print", "typer.echo", "typer.secho", "Console"}, path
