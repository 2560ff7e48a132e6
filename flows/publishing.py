"""The results of many runs, as files beside each other and as artifacts in Prefect: of a sweep, and of a bake-off."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from soundmill import disk
from soundmill.errors import report_failure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIGURE = "figure.png"


def write(results: Path, contents: Mapping[str, str]) -> None:
    """Texts by the name of their file."""
    for name, content in contents.items():
        disk.write_atomically(results / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))


def write_figure(results: Path, draw: Callable[[], Figure]) -> None:
    """`figure.png`; where it cannot be drawn a line says so, and there is none."""
    path = results / FIGURE
    path.unlink(missing_ok=True)  # of other rows
    with report_failure(str(path)):
        picture = BytesIO()
        draw().savefig(picture, format="png", dpi=130, facecolor="white", metadata={"Software": None})
        disk.write_atomically(path, lambda temporary: temporary.write_bytes(picture.getvalue()))


def show_in_prefect(results: Path, key: str, title: str, table: pd.DataFrame, text: str, page: str | None) -> None:
    """The scores as a table, and a page with the figure and `text`, which has all; `page` is the runs' address in MLflow."""
    create_table_artifact(table=table.to_dict("records"), key=key, description=title)
    figure = results / FIGURE  # none where it could not be drawn
    picture = f"![{title}](data:image/png;base64,{b64encode(figure.read_bytes()).decode()})" if figure.exists() else ""
    link = f"\n[The runs in MLflow]({page})\n" if page else ""
    create_markdown_artifact(f"{text}\n{picture}\n{link}", key=f"{key}-figure", description=title)
