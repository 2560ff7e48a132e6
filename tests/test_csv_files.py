"""Cells that a spreadsheet would evaluate are texts; numbers and ids stay."""

import csv
import io
import re

import pytest

from soundmill import csv_files
from tests.imports import ROOT


@pytest.mark.parametrize(
    "text", ["'=1+1", " =1+1", "@A(1)", "+1+1", "-1+cmd|' /C calc'!A0", "\t=1", "\r=1", "\n=1", "＝1+1", "-drip, drip", "+ noise"]
)
def test_formulas_are_written_as_texts(text: str) -> None:
    written = csv_files.text(["id", text], [[1, text]])
    cells = [row[1] for row in csv.reader(io.StringIO(written, newline=""))]
    assert {cell[0] for cell in cells} == {"'"}
    assert {csv_files.value(cell) for cell in cells} == {text.replace("\r", "\n")}


@pytest.mark.parametrize("text", ["-1.5", "+3", "1e-05", "-2e-05", "-0abcdefg_hi", "a=b", "'tis", "", "a dog", -2, 0.5, None, True])
def test_numbers_and_ids_stay(text: object) -> None:
    assert csv_files.cell(text) == text


def test_every_csv_is_written_here() -> None:
    for path in [path for room in ("soundmill", "stages", "flows") for path in (ROOT / room).rglob("*.py")]:
        if path.name != "csv_files.py":
            assert not re.search(r"csv\.(writer|DictWriter)\(|\.to_csv\(", path.read_text()), path
