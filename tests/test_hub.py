"""Finding models of others: what makes up one, by which it is told from another."""

from pathlib import Path

import pytest

from soundmill import hub
from soundmill.errors import UserError

FILES = ("net/config.json", "net/*.safetensors")


def write(directory: Path, content: str) -> Path:
    (directory / "net").mkdir(parents=True)
    (directory / "net" / "config.json").write_text("{}")
    (directory / "net" / "weights.safetensors").write_text(content)
    return directory


def test_a_model_is_told_by_names_and_contents_of_its_files(tmp_path):
    first, same, other = (write(tmp_path / name, text) for name, text in (("a", "1"), ("b", "1"), ("c", "2")))
    (same / "README.md").write_text("not one of its files")
    assert hub.digest(first, FILES) == hub.digest(same, FILES) != hub.digest(other, FILES)
    (same / "net" / "weights.safetensors").rename(same / "net" / "more.safetensors")
    assert hub.digest(first, FILES) != hub.digest(same, FILES)


def test_what_a_directory_lacks_is_said_with_the_remedy(tmp_path):
    write(tmp_path / "mine", "1")
    assert hub.find("mine", "0" * 40, tmp_path, FILES, lambda directory: None, "do this") == (tmp_path / "mine", None)
    with pytest.raises(UserError, match=r"mine: .*mine has no.*do this"):
        hub.find("mine", None, tmp_path, FILES, lambda directory: "weights", "do this")
    with pytest.raises(UserError, match=r"\./other: no such directory .*; do this"):
        hub.find("./other", None, tmp_path, FILES, lambda directory: None, "do this")
