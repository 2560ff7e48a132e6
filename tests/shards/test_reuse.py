"""Kept shards are reused by their keys; a damaged one is made anew and named."""

import os
import random
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import hashing, manifest, shards
from soundmill.errors import UserError
from tests.lost_bits import lose_a_bit
from tests.shards.work import SCHEMA, contents


def lines(words: list[str], output: Path, previous: Path | None = None) -> shards.Report:
    """Writes words; `bad` is rejected, and `deadly` kills its process where there is a file `poison` three floors up."""
    place = output.parents[2]
    with (place / "calls").open("a") as calls:
        calls.write(f"{output.name[8:11]}{' after' if previous else ''}\n")
    with shards.ItemWriter(output, SCHEMA, previous) as writer:
        for word, _, report in writer.new((word, None) for word in words):
            if word == "deadly" and (place / "poison").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            report.reject(word, "odd") if word == "bad" else report.count("letters", len(word))
            writer.write({"name": word, "data": random.Random(word).randbytes(50)})
    return writer.report


def keyed(words: list[list[str]]) -> list[shards.Job]:
    return [shards.Job(shards.shard_name(index), (some,), len(some), hashing.digest(some)) for index, some in enumerate(words)]


def folder_of(words: list[str], output: Path, previous: Path | None = None) -> shards.Report:
    """A folder with a file for each word; those that were there are linked."""
    kept = shards.read_report(previous).report.items if previous else []
    output.mkdir()
    for word in words:
        os.link(previous / word, output / word) if word in kept else (output / word).write_text(word * 99)
    return shards.Report(items=words)


def remade(place: Path, *words: list[str], damaged: Sequence[str] = ()) -> list[str]:
    """Make one shard of each list in `place / "kept"`; which of them were made, having seen that no byte is another than afresh.

    `damaged`: what the report must name.
    """
    (place / "calls").unlink(missing_ok=True)
    ticks: list[int] = []
    report = shards.map_shards(lines, keyed(list(words)), place / "kept", workers=1, progress=ticks.append)
    assert report.damaged == list(damaged)
    output = (place / "calls").read_text().splitlines() if (place / "calls").exists() else []
    with tempfile.TemporaryDirectory(dir=place) as afresh:
        assert report == shards.map_shards(lines, keyed(list(words)), Path(afresh) / "kept", workers=1)
        assert contents(place / "kept") == contents(Path(afresh) / "kept")
        left = {path.name.removesuffix(".report.json") for path in (place / "kept").iterdir()}
        assert left == {job.name for job in keyed(list(words))}
    assert sum(ticks) == sum(map(len, words))
    return sorted(output)


def test_only_shards_with_another_key_are_made_again(tmp_path):
    assert remade(tmp_path, ["a", "b"], ["c"], []) == ["000", "001", "002"]
    before = (tmp_path / "kept" / shards.shard_name(0)).stat()
    assert remade(tmp_path, ["a", "b"], ["c"], []) == []
    assert remade(tmp_path, ["a", "b"], ["c", "d"], []) == ["001 after"]
    assert (tmp_path / "kept" / shards.shard_name(0)).stat() == before
    assert remade(tmp_path, ["a", "b", "e"]) == ["000 after"]
    assert remade(tmp_path, ["a", "b", "e"], ["c", "d"]) == ["001"]
    assert remade(tmp_path, ["a", "b", "e"], ["c", "bad"]) == ["001 after"]
    assert remade(tmp_path, ["a", "b", "e"], ["c", "bad"]) == ["001 after"]  # its file may be readable now


def forged(shard: Path) -> None:
    shards.write_rows([{"name": "evil", "data": b""}] * 4, shard.with_name("other"), SCHEMA)
    shard.write_bytes(shard.with_name("other").read_bytes())  # through a link


@pytest.mark.parametrize("words", [["a", "b"], ["a", "b", "d"]], ids=["whole shards", "rows"])
@pytest.mark.parametrize(
    ("harm", "damaged"),
    [
        (os.utime, False),
        (forged, False),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-9]), False),
        (lambda shard: shard.unlink(), False),
        (lambda shard: os.replace(shard.with_name(shards.shard_name(1)), shard), False),  # another shard under its name
        (lambda shard: shards.report_path(shard).unlink(), False),
        (lambda shard: shards.report_path(shard).write_bytes(shards.report_path(shard).read_bytes()[:-9]), True),
        (lambda shard: shards.report_path(shard).write_text("[]"), True),
        (lambda shard: shards.report_path(shard).write_text("{}"), True),
    ],
)
def test_a_kept_shard_that_somebody_changed_or_without_its_report_is_made_from_nothing(tmp_path, harm, damaged, words):
    remade(tmp_path, ["a", "b"], ["c"])
    shard = tmp_path / "kept" / shards.shard_name(0)
    harm(shard)
    assert "000" in remade(tmp_path, words, ["c"], damaged=[shard.name] * damaged)
    assert remade(tmp_path, words, ["c"]) == []


@pytest.mark.parametrize("words", [["a", "b"], ["a", "b", "d"]], ids=["whole shards", "rows"])
def test_kept_shards_with_a_lost_bit_are_made_from_nothing_and_named(tmp_path, words):
    """Their size and time are right; some of them, Arrow would read without a word."""
    rng = random.Random(7)
    remade(tmp_path, ["a", "b"], ["c"], [])
    kept = tmp_path / "kept"
    for turn in range(8):
        name = shards.shard_name(0)
        lose_a_bit(kept / name, rng.random() if turn else 0.999)  # the last bytes: the footer's length and the magic number
        assert remade(tmp_path, words, ["c"], [], damaged=[name]) == ["000"]
        assert remade(tmp_path, words, ["c"], []) == []
        assert remade(tmp_path, ["a", "b"], ["c"], []) == ([] if words == ["a", "b"] else ["000 after"])


def test_a_folder_with_a_lost_bit_is_made_from_nothing_and_named(tmp_path):
    def make(*words: str) -> tuple[list[str], dict[str, bytes]]:
        job = shards.Job("names", (list(words),), key=hashing.digest(words))
        damaged = shards.map_shards(folder_of, [job], tmp_path / "kept", workers=1).damaged
        return damaged, {path.name: path.read_bytes() for path in (tmp_path / "kept" / "names").iterdir()}

    first = make("a", "b")
    lose_a_bit(tmp_path / "kept" / "names" / "b", 0.5)
    assert make("a", "b") == (["names"], first[1])
    lose_a_bit(tmp_path / "kept" / "names" / "b", 0.5)
    assert make("a", "b", "c") == (["names"], {**first[1], "c": b"c" * 99})  # of which `b` would have been linked
    assert make("a", "b", "c")[0] == []


def test_a_report_with_a_lost_bit_tells_nothing(tmp_path):
    remade(tmp_path, ["a", "b"], ["c"])
    report = shards.report_path(tmp_path / "kept" / shards.shard_name(0))
    rng = random.Random(7)
    for _ in range(8):
        lose_a_bit(report, rng.random())
        assert remade(tmp_path, ["a", "b", "d"], ["c"], damaged=[shards.shard_name(0)]) == ["000"]
        assert remade(tmp_path, ["a", "b"], ["c"]) == ["000 after"]


def test_a_damaged_shard_is_distrusted_by_those_who_have_a_link_to_it(tmp_path):
    """As DVC's cache has, which takes what cannot be written to, or has the time it knows, for whole."""
    remade(tmp_path, ["a", "b"])
    shard, link = tmp_path / "kept" / shards.shard_name(0), tmp_path / "link"
    os.link(shard, link)
    link.chmod(0o444)
    lose_a_bit(shard, 0.5)
    before = link.stat()
    assert remade(tmp_path, ["a", "b"], damaged=[shard.name]) == ["000"]
    assert link.stat().st_mtime_ns > before.st_mtime_ns
    assert link.stat().st_mode & 0o200
    assert not link.samefile(shard)


def test_kept_shards_survive_a_kill_and_are_finished_by_the_next_run(pool, tmp_path):
    remade(tmp_path, ["a"], ["b", "c"], ["d", "e", "f"])
    (tmp_path / "poison").touch()
    with pytest.raises(UserError, match="a worker process died"):
        remade(tmp_path, ["a", "deadly"], ["b", "c", "new"], ["d", "e", "f", "new"])
    (tmp_path / "poison").unlink()
    output = remade(tmp_path, ["a", "deadly"], ["b", "c", "new"], ["d", "e", "f", "new"])
    assert "000 after" in output
    assert "002 after" not in output  # the largest was first, and finished


@st.composite
def changes(draw) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Items (name, number of rows) of two runs: some stay, some go, come, change or move."""
    names = st.lists(st.sampled_from([f"item {n}" for n in range(60)]), unique=True, max_size=40)
    before = [(name, draw(st.integers(0, 5))) for name in draw(names)]
    after = [(name, dict(before).get(name, draw(st.integers(0, 5)))) for name in draw(names)]
    return before, [(name, count + draw(st.sampled_from([0, 0, 0, 1]))) for name, count in after]


def write_items(items: list[tuple[str, int]], output: Path, previous: Path | None, written: list[str]) -> shards.Report:
    with shards.ItemWriter(output, manifest.MIXES, previous) as writer:
        keyed = [(f"{name}/{count}", (name, count)) for name, count in items]
        for key, _ in keyed:
            assert (key in writer) == (
                previous is not None and key in {item[0] for item in shards.read_report(previous).report.items}
            )
        for key, (name, count), report in writer.new(keyed):
            written.append(name)
            report.count("rows", count)
            report.details.append(name)
            if count == 5:
                report.reject(name, "bad")
                continue
            for number in range(count):
                rng = random.Random(f"{key}/{number}")
                audio = {"bytes": rng.randbytes(300), "path": f"{name}.flac"}
                caption, labels = None if number else "é", ["a"] * number or None
                words = {"clip_id": f"{name}_{number}", "caption": caption, "labels": labels}
                writer.write({"audio": audio, "ratio": rng.random() if number % 2 else None, **words})
    return writer.report


def finished(output: Path, report: shards.Report) -> Path:
    shards.write_report(output, report)
    return output


@given(changes())
def test_reused_items_give_the_bytes_and_the_report_of_a_run_from_scratch(items):
    before, after = items
    with tempfile.TemporaryDirectory() as folder:
        old, new, fresh = (Path(folder) / name for name in ("old.parquet", "new.parquet", "fresh.parquet"))
        finished(old, write_items(before, old, None, []))
        output: list[str] = []
        report = write_items(after, new, old, output)
        assert report == write_items(after, fresh, None, [])
        assert new.read_bytes() == fresh.read_bytes()
        assert sorted(output) == sorted(name for name, count in after if (name, count) not in before or count == 5)
        if before == after and all(count < 5 for _, count in before):
            assert new.samefile(old)


def test_many_items_are_copied_over_row_groups(tmp_path):
    before = [(f"item {number}", 1 + number % 3) for number in range(300)]
    after = [*before[:100], ("new", 3), *before[101:250], *reversed(before[250:])]
    old, new, fresh = (tmp_path / name for name in ("old.parquet", "new.parquet", "fresh.parquet"))
    finished(old, write_items(before, old, None, []))
    output: list[str] = []
    assert write_items(after, new, old, output) == write_items(after, fresh, None, [])
    assert output == ["new"]
    assert new.read_bytes() == fresh.read_bytes()
    assert pq.read_metadata(new).num_row_groups > 8
