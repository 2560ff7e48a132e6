"""One identity of code: what a stage keeps is keyed on its rooms and on the versions of what they import, and on nothing else."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from soundmill.evaluation import embedders
from soundmill.shards import code
from soundmill.shards.code import ROOT

STAGES = ("segment", "spectrogram", "train", "evaluate")
FOUND_BY_NAME = {
    "train": ("soundmill.models.ddpm_mel", "soundmill.models.components.griffin_lim.vocoder"),
    "evaluate": tuple(embedders.code_by_name()),
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code, whose identity is asked for instead of this one's."""
    for name in ("soundmill", "stages"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path / "checkout")
    yield tmp_path / "checkout"
    forget()


def forget() -> None:
    """As in a new process."""
    for cached in (code.code_identity, code.module_path, code._imports):
        cached.cache_clear()


def identities() -> dict[str, dict[str, str]]:
    """Of a few stages."""
    forget()
    return {name: code.code_identity(f"stages.{name}", *FOUND_BY_NAME.get(name, ())) for name in STAGES}


def changed(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> set[str]:
    return {name for name in STAGES if before[name] != after[name]}


@pytest.mark.slow(minutes=0.3)
def test_an_edit_changes_the_stages_whose_rooms_it_is_in_and_no_other(checkout, monkeypatch):
    monkeypatch.setattr(code, "package_versions", lambda modules: {})  # the same each time, and slow to find
    before = identities()
    for room, stages in {
        "soundmill/exports/__init__.py": set(),
        "soundmill/commands/__init__.py": set(),
        "soundmill/tracking/runs.py": set(),
        "soundmill/models/registry.py": set(),
        "soundmill/models/components/registry.py": set(),
        "soundmill/models/tango/model.py": set(),
        "soundmill/evaluation/report.py": {"evaluate"},
        "soundmill/models/ddpm_mel/model.py": {"train"},
        "soundmill/decoding/decode.py": {"segment", "evaluate"},
        "stages/segment.py": {"segment"},
        "soundmill/stage.py": set(STAGES),
    }.items():
        file = checkout / room
        text = file.read_text()
        file.write_text(text + "# another\n")
        assert changed(before, identities()) == stages, room
        file.write_text(text)
    assert identities() == before


def test_files_of_editors_and_of_python_are_no_code(checkout):
    before = identities()
    audio = checkout / "soundmill" / "audio"
    for name in "mel.py~ .mel.py.swp #mel.py# .DS_Store __pycache__/mel.pyc .ipynb_checkpoints/mel.py .idea/x.xml".split():
        (audio / name).parent.mkdir(exist_ok=True)
        (audio / name).write_text("another")
    (audio / ".#mel.py").symlink_to("somebody@here.1")  # as Emacs locks a file: it names nothing
    assert identities() == before
    (audio / "table.json").write_text("{}")
    assert changed(before, identities()) == set(STAGES)


def installed(folder: Path, name: str, version: str, module: str) -> Path:
    """A distribution as pip leaves it."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (place / "RECORD").write_text(f"{module}/__init__.py,,\n{name}-{version}.dist-info/METADATA,,\n")
    return folder


def test_only_a_package_that_the_rooms_import_changes_a_stage(checkout, tmp_path, monkeypatch):
    before = identities()
    monkeypatch.syspath_prepend(installed(tmp_path / "a", "unrelated", "9.9", "unrelated"))
    assert identities() == before
    monkeypatch.syspath_prepend(installed(tmp_path / "b", "soxr", "99.0", "soxr"))
    with_soxr = identities()
    assert changed(before, with_soxr) >= {"segment", "evaluate"}
    monkeypatch.syspath_prepend(installed(tmp_path / "c", "transformers", "99.0", "transformers"))
    after = identities()
    assert "segment" not in changed(with_soxr, after)
    assert after["evaluate"]["transformers"] == "99.0"
    assert before["segment"]["Python"] == ".".join(map(str, sys.version_info[:3]))


def test_ffmpeg_counts_where_decoding_is_among_the_rooms():
    from soundmill.decoding.ffmpeg import installed_version

    assert code.code_identity("stages.segment")["ffmpeg"] == installed_version() not in ("", "none")
    assert "ffmpeg" not in code.code_identity("stages.spectrogram")


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom soundmill import errors\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def work():\n    import soxr\n"
    )
    assert code.imports(file, in_functions=False) == {"typing", "soundmill.errors"}
    assert code.imports(file) == {"typing", "soundmill.errors", "soxr"}
    relative = tmp_path / "relative.py"
    relative.write_text("from . import module\n")
    with pytest.raises(ValueError, match=r"relative\.py, line 1: a relative import"):
        code.imports(relative)
