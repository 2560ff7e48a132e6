from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import disk, manifest, shards
from soundmill.errors import UserError
from soundmill.shards import dask, digests, file_cache
from soundmill.shards.jobs import ONE_THREAD
from tests.cluster import Cluster

SCHEMA = pa.schema([("name", pa.string()), ("data", pa.binary())])


def square(number: int, output: Path) -> shards.Report:
    """Writes `number` and counts its square; files in the scratch directory make it slow, or kill its process."""
    scratch = output.parents[1]
    if (scratch / f"die-once-{number}").exists() or (scratch / f"die-{number}").exists():
        output.write_bytes(b"half a sha")
        (scratch / f"die-once-{number}").unlink(missing_ok=True)
        with (scratch / "deaths").open("a") as deaths:
            deaths.write(f"{number}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if (scratch / "slow").exists():
        time.sleep(0.3)
    shards.write_rows([{"name": str(number), "data": bytes([number]) * number}], output, SCHEMA)
    report = shards.Report()
    report.count("total", number * number)
    report.reject(f"{number}.wav", "odd") if number % 2 else None
    report.details.append(number)
    return report


def jobs(count: int) -> list[shards.Job]:
    return [shards.Job(shards.shard_name(index), (index,)) for index in range(count)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


@given(st.binary(), st.integers(1, 1000))
def test_shard_of_is_stable_and_in_range(key, count):
    assert 0 <= shards.shard_of(key, count) < count
    assert shards.shard_of(key, count) == shards.shard_of(key, count)


def test_shard_of_known_answers():
    assert [shards.shard_of(f"clip-{n}", 8) for n in range(6)] == [shards.shard_of(f"clip-{n}".encode(), 8) for n in range(6)]
    counts = [0] * 8
    for n in range(8000):
        counts[shards.shard_of(str(n), 8)] += 1
    assert min(counts) > 850


def test_rows_round_trip_in_groups_and_bytes_are_stable(tmp_path):
    rows = [{"name": f"clip {n}", "data": bytes([n % 256]) * n} for n in range(200)]
    for name in ("a.parquet", "b.parquet"):
        assert shards.write_rows(iter(rows), tmp_path / name, SCHEMA) == 200
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert list(shards.read_rows(tmp_path / "a.parquet", SCHEMA)) == rows
    assert [row["name"] for row in shards.read_rows(tmp_path / "a.parquet", SCHEMA, ["name"])] == [r["name"] for r in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.parquet"
    shards.write_rows([{"name": "old", "data": b""}], path, SCHEMA)
    with pytest.raises(ZeroDivisionError), shards.ShardWriter(path, SCHEMA) as writer:
        writer.write({"name": "new", "data": b""})
        raise ZeroDivisionError
    assert [row["name"] for row in shards.read_rows(path, SCHEMA)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_wrong_schema_names_file_and_column(tmp_path):
    shards.write_rows([{"name": "x", "data": b""}], tmp_path / "a.parquet", SCHEMA)
    other = pa.schema([("name", pa.int64())])
    with pytest.raises(UserError, match=r"a\.parquet: column 'name' should be int64, found string"):
        list(shards.read_rows(tmp_path / "a.parquet", other))
    with pytest.raises(UserError, match="no shards"):
        shards.shard_paths(tmp_path / "absent")


def test_map_gives_the_same_bytes_and_report_with_any_number_of_workers(tmp_path):
    ticks: list[int] = []
    one = shards.map_shards(square, jobs(7), tmp_path / "one", workers=1, progress=ticks.append)
    two = shards.map_shards(square, jobs(7), tmp_path / "two", workers=2)
    assert one == two
    assert one.counts == {"total": sum(n * n for n in range(7))}
    assert one.details == list(range(7))
    assert [row["path"] for row in one.quarantine] == ["1.wav", "3.wav", "5.wav"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(ticks) == 7


def test_a_killed_worker_is_named_and_the_rest_resumes(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "die-once-5").touch()
    with pytest.raises(UserError, match="a worker process died"):
        shards.map_shards(square, jobs(7), tmp_path / "work", workers=1)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.parquet")}
    assert len(done) >= 3
    report = shards.map_shards(square, jobs(7), tmp_path / "work", workers=2)
    assert report.details == list(range(7))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


@contextmanager
def scheduler(directory):
    cluster = Cluster(directory)
    try:
        cluster.start_scheduler()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with scheduler(tmp_path_factory.mktemp("scheduler")) as cluster:
        cluster.start_two_workers()
        yield cluster.address


@pytest.mark.slow
def test_a_cluster_without_workers_or_without_scheduler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dask, "WORKERLESS_SECONDS", 0.5)
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 1.0)
    with (
        scheduler(tmp_path) as cluster,
        pytest.raises(UserError, match=r"the scheduler at tcp://127\.0\.0\.1:\d+ has no workers; start some"),
    ):
        shards.map_shards(square, jobs(3), tmp_path / "work", workers=1, cluster=cluster.address)
    with pytest.raises(UserError, match=r"execution\.dask: no Dask scheduler answers at tcp://127\.0\.0\.1:1 .* start one"):
        shards.map_shards(square, jobs(3), tmp_path / "work", workers=1, cluster="tcp://127.0.0.1:1")


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_also_when_a_worker_is_killed_in_a_shard(two_workers, tmp_path):
    here = shards.map_shards(square, jobs(9), tmp_path / "here", workers=2)
    there = tmp_path / "there"
    there.mkdir()
    (there / "die-once-4").touch()
    ticks: list[int] = []
    report = shards.map_shards(square, jobs(9), there, workers=1, cluster=two_workers, progress=ticks.append)
    assert (there / "deaths").read_text() == "4\n"
    assert report == here
    assert contents(there) == contents(tmp_path / "here")
    assert sum(ticks) == 9
    assert not list(there.glob("*.attempt-*"))


@pytest.mark.slow
def test_a_shard_that_kills_three_workers_is_named_and_the_rest_resumes(two_workers, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "die-2").touch()
    with pytest.raises(UserError, match=r"shard-00002\.parquet: 3 workers died while they worked on this shard"):
        shards.map_shards(square, jobs(5), work, workers=1, cluster=two_workers)
    assert (work / "deaths").read_text() == "2\n" * 3
    (work / "die-2").unlink()
    done = {path: path.stat().st_mtime_ns for path in work.glob("*.parquet")}
    assert shards.map_shards(square, jobs(5), work, workers=1, cluster=two_workers).details == list(range(5))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


@pytest.mark.slow
def test_a_scheduler_that_dies_is_named_and_finished_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 2.0)
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        cluster.start_two_workers()
        work = tmp_path / "work"
        work.mkdir()
        (work / "slow").touch()

        def kill_after_three(_: int) -> None:
            if len(list(work.glob("*.report.json"))) >= 3 and cluster.processes[0].poll() is None:
                os.killpg(cluster.processes[0].pid, signal.SIGKILL)

        with pytest.raises(UserError, match=r"the scheduler at tcp://127\.0\.0\.1:\d+ is gone; finished shards are kept"):
            shards.map_shards(square, jobs(20), work, workers=1, cluster=cluster.address, progress=kill_after_three)
    finally:
        cluster.stop()
    assert shards.map_shards(square, jobs(20), work, workers=2).details == list(range(20))


@pytest.mark.slow
def test_workers_with_other_code_are_refused(two_workers, tmp_path, monkeypatch):
    """Of what the function imports, and of what it finds by name."""
    codec, identity = "soundmill.models.components.mel_autoencoder", dask.code_identity
    for name, said in (("Python", r"3\.\d+\.\d+"), (codec.replace(".", "/"), r"\w+")):
        monkeypatch.setattr(dask, "code_identity", lambda *modules, name=name: identity(*modules) | {name: "2.7"})
        with pytest.raises(UserError, match=rf"worker tcp://.*: has other software \({name} {said}, not 2\.7\); restart it"):
            shards.map_shards(square, jobs(2), tmp_path / "work", workers=1, cluster=two_workers, code=[codec])


def test_workers_die_with_a_killed_parent(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "slow").touch()
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_shards as t\n"
        "from soundmill import shards\n"
        "if __name__ == '__main__':\n"
        "    shards.map_shards(t.square, t.jobs(50), Path(sys.argv[1]), workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, str(script), str(work), str(Path(__file__).parent)], env=env)
    deadline = time.monotonic() + 60
    while len(list(work.glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline, "no shard was written"
        assert parent.poll() is None, "the mapping process ended early"
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1.0)
    before = len(list(work.glob("*")))
    time.sleep(1.5)
    assert len(list(work.glob("*"))) == before, "orphaned workers went on writing"


def threads_of_worker(output: Path) -> shards.Report:
    import numpy as np

    np.ones((300, 300)) @ np.ones((300, 300))  # starts the threads of its library, where that has some
    output.touch()
    names = sorted(name for name in ONE_THREAD if os.environ.get(name) == "1")
    return shards.Report(details=[[names, len(os.listdir("/proc/self/task"))]])


def test_a_worker_has_one_thread_and_the_mapping_process_its_own_environment(tmp_path):
    code = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from soundmill import shards
import test_shards as t

if __name__ == "__main__":
    jobs = [shards.Job(f"job-{number}", ()) for number in range(4)]
    threads = shards.map_shards(t.threads_of_worker, jobs, Path(sys.argv[1]), workers=2).details
    print(json.dumps([threads, os.environ["OPENBLAS_NUM_THREADS"], os.environ.get("OMP_NUM_THREADS")]))
"""
    env = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "7"}
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work"), str(Path(__file__).parent)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    threads, openblas, openmp = json.loads(done.stdout)
    assert all(names == sorted(ONE_THREAD) for names, _ in threads)
    assert max(count for _, count in threads) <= 2  # Arrow has one from its import on
    assert (openblas, openmp) == ("7", None)


def value_of_worker(output: Path) -> shards.Report:
    output.touch()
    return shards.Report(details=[[os.environ.get("SOUNDMILL_WEIGHTS")]])


def test_workers_have_the_environment_of_now(tmp_path, monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("SOUNDMILL_WEIGHTS", value)
        report = shards.map_shards(value_of_worker, [shards.Job("job", ())], tmp_path / value, workers=1)
        assert report.details == [[value]]


def test_an_interrupt_is_told_by_the_mapping_process_alone(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "slow").touch()
    code = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from soundmill import shards
import test_shards as t

if __name__ == "__main__":
    os.setpgrp()
    try:
        shards.map_shards(t.square, t.jobs(9), Path(sys.argv[1]), workers=3, progress=lambda n: n and os.killpg(0, signal.SIGINT))
    except KeyboardInterrupt:
        print("interrupted")
"""
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work"), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


@st.composite
def changes(draw) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Items (name, number of rows) of two runs: some stay, some go, come, change or move."""
    names = st.lists(st.sampled_from([f"item {n}" for n in range(60)]), unique=True, max_size=40)
    before = [(name, draw(st.integers(0, 5))) for name in draw(names)]
    after = [(name, dict(before).get(name, draw(st.integers(0, 5)))) for name in draw(names)]
    return before, [(name, count + draw(st.sampled_from([0, 0, 0, 1]))) for name, count in after]


def write_items(items: list[tuple[str, int]], output: Path, previous: Path | None, made: list[str]) -> shards.Report:
    with shards.ItemWriter(output, manifest.MIXES, previous) as writer:
        for name, count in items:
            key = f"{name}/{count}"
            assert (key in writer) == (previous is not None and key in {item[0] for item in shards.read_items(previous)})
            if not writer.copy(key):
                made.append(name)
                with writer.item(key) as report:
                    report.count("rows", count)
                    report.details.append(name)
                    if count == 5:
                        report.reject(name, "bad")
                        continue
                    for number in range(count):
                        rng = random.Random(f"{key}/{number}")
                        audio = {"bytes": rng.randbytes(300), "path": f"{name}.flac"}
                        words = {
                            "clip_id": f"{name}_{number}",
                            "caption": None if number else "é",
                            "labels": ["a"] * number or None,
                        }
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
        made: list[str] = []
        report = write_items(after, new, old, made)
        assert report == write_items(after, fresh, None, [])
        assert new.read_bytes() == fresh.read_bytes()
        assert sorted(made) == sorted(name for name, count in after if (name, count) not in before or count == 5)
        if before == after and all(count < 5 for _, count in before):
            assert new.samefile(old)


def test_many_items_are_copied_over_row_groups(tmp_path):
    before = [(f"item {number}", 1 + number % 3) for number in range(300)]
    after = [*before[:100], ("new", 3), *before[101:250], *reversed(before[250:])]
    old, new, fresh = (tmp_path / name for name in ("old.parquet", "new.parquet", "fresh.parquet"))
    finished(old, write_items(before, old, None, []))
    made: list[str] = []
    assert write_items(after, new, old, made) == write_items(after, fresh, None, [])
    assert made == ["new"]
    assert new.read_bytes() == fresh.read_bytes()
    assert pq.read_metadata(new).num_row_groups > 8


def test_only_wanted_rows_are_read(tmp_path):
    shards.write_rows([{"name": str(n), "data": b"x"} for n in range(200)], tmp_path / "a.parquet", SCHEMA)
    rows = shards.read_rows(tmp_path / "a.parquet", SCHEMA, ["name"], wanted=[199, 3, 64, 3])
    assert [row["name"] for row in rows] == ["3", "64", "199"]
    assert list(shards.read_rows(tmp_path / "a.parquet", SCHEMA, wanted=[])) == []


def lines(words: list[str], output: Path, previous: Path | None = None) -> shards.Report:
    """Writes words; `bad` is rejected, and `deadly` kills its process where there is a file `poison` three floors up."""
    place = output.parents[2]
    with (place / "calls").open("a") as calls:
        calls.write(f"{output.name[8:11]}{' after' if previous else ''}\n")
    with shards.ItemWriter(output, SCHEMA, previous) as writer:
        for word in words:
            if not writer.copy(word):
                with writer.item(word) as report:
                    if word == "deadly" and (place / "poison").exists():
                        os.kill(os.getpid(), signal.SIGKILL)
                    report.reject(word, "odd") if word == "bad" else report.count("letters", len(word))
                    writer.write({"name": word, "data": random.Random(word).randbytes(50)})
    return writer.report


def keyed(words: list[list[str]]) -> list[shards.Job]:
    return [shards.Job(shards.shard_name(index), (some,), len(some), shards.digest(some)) for index, some in enumerate(words)]


def folder_of(words: list[str], output: Path, previous: Path | None = None) -> shards.Report:
    """A folder with a file for each word; those that were there are linked."""
    known = shards.read_items(previous) if previous else []
    output.mkdir()
    for word in words:
        os.link(previous / word, output / word) if word in known else (output / word).write_text(word * 99)
    return shards.Report(items=words)


def lose_a_bit(path: Path, place: float) -> None:
    """As a disk does: neither size nor time is another, and a link shows the same."""
    status, data = path.stat(), bytearray(path.read_bytes())
    bit = int(place * 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    mode = status.st_mode & 0o777
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(mode)


def remade(place: Path, *words: list[str], damaged: Sequence[str] = ()) -> list[str]:
    """Make one shard of each list in `place / "kept"`; which of them were made, having seen that no byte is another than afresh.

    `damaged`: what the report must name.
    """
    (place / "calls").unlink(missing_ok=True)
    ticks: list[int] = []
    report = shards.map_shards(lines, keyed(list(words)), place / "kept", workers=1, progress=ticks.append)
    assert report.damaged == list(damaged)
    made = (place / "calls").read_text().splitlines() if (place / "calls").exists() else []
    with tempfile.TemporaryDirectory(dir=place) as afresh:
        assert report == shards.map_shards(lines, keyed(list(words)), Path(afresh) / "kept", workers=1)
        assert contents(place / "kept") == contents(Path(afresh) / "kept")
        left = {path.name.removesuffix(".report.json") for path in (place / "kept").iterdir()} - {"reports.json"}
        assert left == {job.name for job in keyed(list(words))}
    assert sum(ticks) == sum(map(len, words))
    return sorted(made)


def test_only_shards_with_another_key_are_made_again(here, tmp_path):
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


def summary(shard: Path) -> Path:
    return shard.with_name("reports.json")


@pytest.mark.parametrize("summed", [True, False], ids=["reports together", "reports alone"])
@pytest.mark.parametrize(
    "harm",
    [
        os.utime,
        forged,
        lambda shard: shard.write_bytes(shard.read_bytes()[:-9]),
        lambda shard: shard.unlink(),
        lambda shard: os.replace(shard.with_name(shards.shard_name(1)), shard),  # another shard under its name
    ],
    ids=["touched", "forged", "cut short", "gone", "another's"],
)
def test_a_kept_shard_that_somebody_changed_is_made_from_nothing(here, tmp_path, harm, summed):
    remade(tmp_path, ["a", "b"], ["c"])
    shard = tmp_path / "kept" / shards.shard_name(0)
    if not summed:
        summary(shard).unlink()
    harm(shard)
    assert "000" in remade(tmp_path, ["a", "b"], ["c"])
    assert remade(tmp_path, ["a", "b"], ["c"]) == []


@pytest.mark.parametrize("words", [["a", "b"], ["a", "b", "d"]], ids=["whole shards", "rows"])
def test_kept_shards_with_a_lost_bit_are_made_from_nothing_and_named(here, tmp_path, words):
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


def test_a_folder_with_a_lost_bit_is_made_from_nothing_and_named(here, tmp_path):
    def make(*words: str) -> tuple[list[str], dict[str, bytes]]:
        job = shards.Job("names", (list(words),), key=shards.digest(words))
        damaged = shards.map_shards(folder_of, [job], tmp_path / "kept", workers=1).damaged
        return damaged, {path.name: path.read_bytes() for path in (tmp_path / "kept" / "names").iterdir()}

    first = make("a", "b")
    lose_a_bit(tmp_path / "kept" / "names" / "b", 0.5)
    assert make("a", "b") == (["names"], first[1])
    lose_a_bit(tmp_path / "kept" / "names" / "b", 0.5)
    assert make("a", "b", "c") == (["names"], {**first[1], "c": b"c" * 99})  # of which `b` would have been linked
    assert make("a", "b", "c")[0] == []


@pytest.mark.parametrize("summed", [True, False], ids=["all reports", "one report"])
def test_a_report_with_a_lost_bit_tells_nothing(here, tmp_path, summed):
    remade(tmp_path, ["a", "b"], ["c"])
    report = shards.report_path(tmp_path / "kept" / shards.shard_name(0))
    rng = random.Random(7)
    for _ in range(8):
        if summed:
            lose_a_bit(summary(report), rng.random())
            assert remade(tmp_path, ["a", "b"], ["c"]) == []  # each shard's own tells the same
        else:
            lose_a_bit(report, rng.random())
            assert remade(tmp_path, ["a", "b", "d"], ["c"], damaged=[shards.shard_name(0)]) == ["000"]
            assert remade(tmp_path, ["a", "b"], ["c"]) == ["000 after"]


def test_a_damaged_shard_is_distrusted_by_those_who_have_a_link_to_it(here, tmp_path):
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


@pytest.mark.parametrize(
    "harm",
    [
        lambda report: report.unlink(),
        lambda report: report.write_bytes(report.read_bytes()[:-9]),
        lambda report: report.write_text("[]"),
        lambda report: report.write_text("{}"),
    ],
    ids=["gone", "cut short", "no report", "empty"],
)
def test_without_any_report_a_kept_shard_is_made_from_nothing(tmp_path, harm):
    remade(tmp_path, ["a", "b"], ["c"])
    shard = tmp_path / "kept" / shards.shard_name(0)
    harm(summary(shard))
    assert remade(tmp_path, ["a", "b"], ["c"]) == []  # its own report tells the same
    harm(shards.report_path(shard))
    assert remade(tmp_path, ["a", "b"], ["c"]) == []  # and that of all
    told = [shard.name] if shards.report_path(shard).exists() else []
    assert remade(tmp_path, ["a", "b", "d"], ["c"], damaged=told) == ["000"]  # but not what it is made of
    harm(summary(shard))
    harm(shards.report_path(shard))
    assert remade(tmp_path, ["a", "b", "d"], ["c"], damaged=told) == ["000"]


def test_kept_shards_survive_a_kill_and_are_finished_by_the_next_run(tmp_path):
    remade(tmp_path, ["a"], ["b", "c"], ["d", "e", "f"])
    (tmp_path / "poison").touch()
    with pytest.raises(UserError, match="a worker process died"):
        remade(tmp_path, ["a", "deadly"], ["b", "c", "new"], ["d", "e", "f", "new"])
    (tmp_path / "poison").unlink()
    made = remade(tmp_path, ["a", "deadly"], ["b", "c", "new"], ["d", "e", "f", "new"])
    assert "000 after" in made
    assert "002 after" not in made  # the largest was first, and finished


def test_a_folder_is_known_by_its_files(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("b", "a"):
        (tmp_path / "folder" / name).write_text(name)
    before = shards.signature(tmp_path / "folder")
    assert [name for name, *_ in before] == ["a", "b"]
    os.utime(tmp_path / "folder" / "b", ns=(0, 0))
    assert shards.signature(tmp_path / "folder") != before


def test_a_table_is_known_by_its_rows():
    table = pa.table({"name": ["a", None, "c"] * 50, "shard": pa.array([0, 1, 2] * 50, pa.int32())})
    split = pa.concat_tables([table.slice(0, 70), table.slice(70)])
    assert shards.table_digest(split) == shards.table_digest(table)
    assert len({shards.table_digest(part) for part in shards.by_shard(split).values()}) == 3
    for column in ("name", "shard"):
        changed = table.set_column(table.schema.get_field_index(column), column, table[column].take(pa.array([1, *range(1, 150)])))
        assert shards.table_digest(changed) != shards.table_digest(table)


def test_digests_are_read_again_only_of_files_that_changed(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(1200)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
    read: list[bytes] = []
    real = shards.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: [real(path), read.append(path)][0])
    cache = tmp_path / "digests.sqlite"
    written = os.stat(files[0]).st_mtime_ns
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: written)
    fresh = list(shards.file_digests(files, cache, 2))
    assert fresh == [real(path) for path in files]
    assert len(read) == 1200
    read.clear()
    assert list(shards.file_digests(files[:3], cache)) == fresh[:3]
    assert len(read) == 3  # changed too short a time ago to be known by their times
    later = written + 10**11
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: later)
    assert list(shards.file_digests(files, cache)) == fresh
    read.clear()
    Path(os.fsdecode(files[7])).write_bytes(b"another size")
    stamp = os.stat(files[9])
    Path(os.fsdecode(files[9])).write_bytes(files[9][::-1])
    os.utime(files[9], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time, as a restored backup has
    os.unlink(files[11])
    found = list(shards.file_digests(files, cache, 2))
    assert sorted(read) == [files[7], files[9]]
    assert [found[7], found[9]] == [real(files[7]), real(files[9])]
    assert isinstance(found[11], FileNotFoundError)
    cache.write_bytes(b"no database" * 1000)
    assert list(shards.file_digests(files[:5], cache)) == found[:5]


def test_no_lost_bit_in_the_cache_of_digests_tells_another_digest(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(120)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
        os.utime(path, ns=(10**18, 10**18))
    cache, later = tmp_path / "digests.sqlite", time.time_ns() + 10**11
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: later)
    fresh = list(shards.file_digests(files, cache, linked=True))
    told = shards.cached_value(files[0], "what", lambda: "this", cache)
    rng = random.Random(13)
    for turn in range(200):
        lose_a_bit(cache, rng.random() if turn % 2 else 0.1 * rng.random())  # the first page says what it is
        assert list(shards.file_digests(files, cache, linked=True)) == fresh
        assert shards.cached_value(files[0], "what", lambda: "this", cache) == told
    for _ in range(2):  # the first may find the last damage
        list(shards.file_digests(files, cache, linked=True))
        shards.cached_value(files[0], "what", lambda: "this", cache)
    monkeypatch.setattr(digests, "file_digest", lambda path: "read again")
    assert list(shards.file_digests(files, cache, linked=True)) == fresh
    assert shards.cached_value(files[0], "what", lambda: "made again", cache) == told


def test_links_that_come_and_go_do_not_have_a_file_read_again(tmp_path, monkeypatch):
    path, cache = tmp_path / "shard", tmp_path / "digests.sqlite"
    path.write_bytes(b"sound")
    os.utime(path, ns=(10**18, 10**18))
    (digest,) = shards.file_digests([bytes(path)], cache, linked=True)
    monkeypatch.setattr(digests, "file_digest", lambda path: "read again")
    os.link(path, tmp_path / "link")
    assert list(shards.file_digests([bytes(path)], cache, linked=True)) == [digest]
    assert list(shards.file_digests([bytes(path)], cache)) == ["read again"]
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert list(shards.file_digests([bytes(path)], cache, linked=True)) == ["read again"]


def test_rows_of_a_shard_keep_their_order_and_weigh_no_more_than_they_are():
    table = pa.concat_tables(
        pa.table({"shard": pa.array([2, 0, 2, 5], pa.int32()), "name": [f"{part}{row}" for row in range(4)]})
        for part in "abc" * 500
    )
    found = shards.by_shard(table)
    assert list(found) == [0, 2, 5]
    assert found[2]["name"].to_pylist() == [f"{part}{row}" for part in "abc" * 500 for row in (0, 2)]
    assert len(pickle.dumps(found[0])) < len(pickle.dumps(table)) / 3
    assert shards.by_shard(table.slice(0, 0)) == {}


def test_a_write_that_fails_leaves_nothing_and_names_the_file(tmp_path):
    def fail(path):
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.json").write_text("old")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "x.json"))):
        disk.write_atomically(tmp_path / "x.json", fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.json": "old"}


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path, root):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    disk.write_atomically(fifo, lambda path: path.write_text("told"))
    assert reader.communicate()[0] == b"told"
    assert fifo.is_fifo()
    write = "disk.write_atomically(Path('/dev/stdout'), lambda path: path.write_text('told'))"
    code = f"from pathlib import Path; from soundmill import disk; {write}"
    with (tmp_path / "told.txt").open("wb") as file:
        subprocess.run([sys.executable, "-c", code], cwd=root, stdout=file, check=True)
    assert (tmp_path / "told.txt").read_text() == "told"
    assert Path("/dev/stdout").is_symlink()


def test_what_a_device_is(tmp_path):
    (tmp_path / "file").touch()
    assert not any(map(disk.is_device, (tmp_path, tmp_path / "file", tmp_path / "new", Path("/dev/shm/new/x.json"))))
    assert all(map(disk.is_device, (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/dev/null"), Path("/proc/self/fd/1"))))
