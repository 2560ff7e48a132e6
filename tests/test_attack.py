"""Attacks that the pipeline must stand: random kills, and corpora of hostile names, files, links and manifests.

`make attack` runs 200 kills and 1,000 hostile things; `make test-all` 50 of these, and tests/test_graph.py kills three stages. All
is bounded in time and size, and below a temporary directory.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import dvc as flows_dvc
from soundmill import dvc_recovery, params
from tests.checkouts import BIN, dvc
from tests.corpora.tiny import sound

KILLS = 200
BATCH = 50  # hostile things in one corpus
IN_ONE_PASS = 20  # kills, after which it runs to its end
LONGEST_SECONDS = 6.0  # until a kill
PATIENCE_SECONDS = 900

TARGETS = ["mixup", "tagger", "train@ddpm_mel"]


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(directory / ".work") and not is_link_probe(path)
    }


def is_link_probe(path: Path) -> bool:
    """Whether DVC made the file to try links beside an output; a kill leaves it."""
    return path.name.startswith(".") and path.suffix == ".tmp" and path.read_bytes() == b"test"


def start_over(checkout: Path) -> None:
    """Forget all results: outputs, scratch, DVC's cache and lock."""
    for name in ("data", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
        path = checkout / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.attack
def test_random_kills_leave_the_same_bytes(graph_copy):
    """`kill -9` of dvc, or of it and all that it started, at any moment; run until it ends, all is as if it had not been broken."""
    checkout, built = graph_copy, digests(graph_copy / "data")
    remedied = truncated = 0
    rng, kills, give_up = random.Random(0), 0, time.monotonic() + PATIENCE_SECONDS * 11
    while kills < KILLS:
        start_over(checkout)
        refused, enough = 0, min(kills + IN_ONE_PASS, KILLS)
        while True:
            assert time.monotonic() < give_up, f"only {kills} kills in this time"
            command = [BIN / "dvc", "repro", *TARGETS]
            process = subprocess.Popen(
                command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                process.wait(rng.uniform(0.1, LONGEST_SECONDS) if kills < enough else PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                kills += 1
                os.killpg(process.pid, signal.SIGKILL) if rng.random() < 0.5 else process.kill()
                process.wait()
                continue
            if process.returncode == 0:
                break
            for path in dvc_recovery.unreadable_locks(checkout):  # the remedies of docs/orchestration.md
                path.unlink()
                remedied += 1
            if flows_dvc.keep_lock_intact(checkout):
                truncated += 1
            refused += 1  # for a moment, DVC may take the one that was killed for alive
            assert refused < 20, dvc(checkout, "repro", *TARGETS).stderr[-3000:]
            time.sleep(0.5)
        stages = params.read_yaml(checkout / "dvc.lock")["stages"].values()
        output = tuple(out["path"].removeprefix("data/") for entry in stages for out in entry["outs"])
        whole = {name: digest for name, digest in built.items() if name.startswith(output)}
        assert digests(checkout / "data") == whole, f"after {kills} kills"
    print(f"{kills} kills; left truncated: DVC's rwlock {remedied} times, dvc.lock {truncated} times")


SECRET = "the-secret-of-another-directory"
AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aiff", ".webm", ".wma", ".opus", "")
NAMES = (
    *("-i", "-", "--version", ".hidden", " lead", "trail ", "a:b", "file:x", "concat:a|b", "pipe:0", "http:", "..", "...", "~"),
    *("$x^$", r"$\frac{$", "_^{}%#&", "%n%s%d", "a\nb", "a\tb", "'", '"', "`id`", "$(id)", ";ls", "[a]", "{a}", "&amp;", "<b>"),
    *("😀" * 20, "e\u0301", "é", "\u202etxt", "\u200b", "ﬁ", "İ", "x" * 200, "\\", "a\\..\\b", "=1+1", "+1", "@SUM(A1)"),
    *("CON", "null", "nan", "1e5", "0", "*", "?", "\x7f"),
)
KEYS = (
    *("audio", "file_name", "location", "captions", "caption", "id", "path", "wav", "start_time", "youtube_id", "audiocap_id"),
    *("split", "label", "fold"),
)
NO_SOUND = (b"", b"\0", b"{", b"[" * 100_000, b"PK\3\4" + bytes(100), b"<html>", "Ünïcödé text\n".encode() * 50, b"\xff\xfe")


def name_of(rng: random.Random) -> bytes:
    """A file's name that some program would stumble over."""
    kind = rng.randrange(4)
    if kind == 0:
        stem = rng.choice(NAMES).encode()
    elif kind == 1:
        stem = bytes(rng.choice([byte for byte in range(1, 256) if byte != ord("/")]) for _ in range(rng.randrange(1, 60)))
    elif kind == 2:
        stem = (rng.choice(NAMES) + rng.choice(NAMES)).encode()
    else:
        stem = "".join(rng.choices(string.printable.replace("/", ""), k=rng.randrange(1, 80))).encode()
    return stem[:200] + rng.choice(AUDIO).encode()


def content_of(rng: random.Random) -> bytes:
    """What a file may hold: good sound, damaged sound, or what is none."""
    good = sound(rng.randrange(200), rng.uniform(0.01, 1.5), rng.choice([8000, 16_000, 44_100]), rng.choice(["WAV", "FLAC", "OGG"]))
    kind = rng.randrange(12)
    if kind < 3:
        return good
    if kind == 3:
        return good[: rng.randrange(len(good))]
    if kind == 4:
        flipped = bytearray(good)
        for _ in range(rng.randrange(1, 20)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 5:
        return good + bytes(rng.randrange(1, 100_000))
    if kind == 6:
        return f"#EXTM3U\n#EXTINF:1,\nfile:{os.environ['SOUNDMILL_ATTACK_CANARY']}\n".encode()
    if kind == 7:
        return f"ffconcat version 1.0\nfile '{os.environ['SOUNDMILL_ATTACK_CANARY']}'\n".encode()
    if kind == 8:
        return rng.randbytes(rng.randrange(5000))
    if kind == 9:
        lying = bytearray(sound(1))
        lying[rng.randrange(4, 44) :][:4] = rng.randbytes(4)
        return bytes(lying)
    return rng.choice(NO_SOUND)


def manifest_of(rng: random.Random, names: list[str], canary: Path) -> tuple[str, bytes]:
    """A manifest's name and content: rows of files that are there, that are not, and that lie elsewhere."""
    elsewhere = [str(canary), f"../{canary.parent.name}/{canary.name}", "gone.wav", "", "..", "/", "\0"]
    plain = [None, True, -1, 10**400, 1e308, "", "$x^$", "a" * 5000, "\ud83d", [], {}]

    def file() -> str:
        odd = name_of(rng).decode("utf-8", "replace").replace("\0", "")
        return rng.choice([rng.choice(names), rng.choice(elsewhere), odd])

    def value(depth: int = 0) -> object:
        simple = rng.choice([*plain, file()])
        if depth > 3:
            return simple
        return rng.choice([simple, [value(depth + 1)], {"caption": value(depth + 1), "audio": value(depth + 1)}])

    kind = rng.randrange(5)
    if kind == 0:
        rows = [",".join(rng.choices(KEYS, k=4))]
        rows += [",".join(f'"{file()}"' for _ in range(rng.randrange(1, 6))) for _ in range(rng.randrange(10))]
        return f"{rng.choice(['metadata', 'train', 'test', 'clotho_captions_x'])}.csv", "\n".join(rows).encode("utf-8", "replace")
    if kind == 1:
        rows = [{rng.choice(KEYS): value() for _ in range(4)} | {"file_name": file()} for _ in range(rng.randrange(10))]
        return "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode()
    if kind == 2:
        return f"{rng.choice(['data', 'train', 'test_subset', 'x'])}.json", json.dumps(value()).encode()
    if kind == 3:
        return rng.choice([("deep.json", b"[" * 100_000), ("deep.jsonl", b'{"a":' * 50_000), ("deep.csv", b'"' * 99_999)])
    return rng.choice(["a.json", "b.csv", "c.jsonl", "d.txt"]), rng.randbytes(rng.randrange(2000))


def fill(root: Path, canary: Path, rng: random.Random, count: int) -> None:
    """A corpus of `count` hostile things, and two good recordings."""
    (root / "good").mkdir(parents=True)
    for number in range(2):
        (root / "good" / f"tone {number}.wav").write_bytes(sound(number, 1.2))
    folders = [b"good", b"rain", b"$x^$", b"-x", b"a b", "é😀".encode(), b"\xff"]
    top = os.fsencode(root)
    for folder in folders:
        os.makedirs(os.path.join(top, folder), exist_ok=True)
    names = ["good/tone 0.wav", "good/tone 1.wav"]
    for _ in range(count):
        path = os.path.join(top, rng.choice(folders), name_of(rng).replace(b"\0", b"").replace(b"/", b"") or b"x")
        kind = rng.randrange(10)
        if os.path.lexists(path):
            continue
        if kind == 0:
            name, data = manifest_of(rng, names, canary)
            (root / name).write_bytes(data)
        elif kind == 1:
            target = rng.choice([canary, canary.parent, root / "good" / "tone 0.wav", root, "gone", "/dev/zero", "/proc/self/mem"])
            os.symlink(target, path)
        elif kind == 2:
            rng.choice([os.mkfifo, lambda place: os.mkdir(place)])(path)
        else:
            with open(path, "wb") as file:
                file.write(content_of(rng))
            names.append(os.fsdecode(os.path.relpath(path, top)).encode("utf-8", "replace").decode())


def texts(directory: Path) -> Iterator[str]:
    """All that was written below a directory, as text."""
    for path in directory.rglob("*"):
        if path.is_file():
            table = path.suffix == ".parquet"
            yield str(pq.read_table(path).to_pylist()) if table else path.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize(
    "batches", [pytest.param(1, marks=pytest.mark.slow(minutes=0.5)), pytest.param(20, marks=pytest.mark.attack)]
)
def test_hostile_names_files_links_and_manifests(batches, tmp_path, root, monkeypatch):
    """Each is a clip, told in quarantine or passed over: never a traceback, a hang, a word from outside, or a file elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    canary = outside / "canary.txt"
    canary.write_text(SECRET)
    (outside / "canary.wav").write_bytes(sound(1, 1.0))
    monkeypatch.setenv("SOUNDMILL_ATTACK_CANARY", str(canary))
    before = digests(outside)
    good = rejected = 0
    for batch in range(batches):
        project = tmp_path / f"project {batch}"
        fill(project / "corpus here", canary, random.Random(batch), BATCH)
        document = params.compose(root / "conf", ["corpus=auto", "model=ddpm_mel"])
        document["corpus"] |= {"path": str(project / "corpus here"), "shards": 2}
        document["clips"]["default"] |= {"max_seconds": 60.0}
        params.write_yaml(document, project / "params.yaml")
        held = digests(project / "corpus here")
        for stage in ("scan", "segment", "resample"):
            done = run_stage(root, project, stage)
            said = done.stdout + done.stderr
            assert "Traceback" not in said, (batch, stage, said[-3000:])
            assert "fault of Soundmill" not in said, (batch, stage, said[-3000:])
            if done.returncode:  # it says which file or manifest cannot be used, and what to do
                assert len(said) > 40, (batch, stage, said)
                break
        else:
            sources = pq.read_table(project / "data/clips", columns=["source"])["source"].to_pylist()
            assert sum("tone " in source for source in sources) >= 2, batch
            good += 1
            for path in (project / "data/quarantine").glob("*.parquet"):
                rejected += pq.read_metadata(path).num_rows
        written = [text for text in texts(project / "data") if SECRET in text]
        assert written == [], batch
        assert digests(project / "corpus here") == held, batch
        assert sorted(path.name for path in project.iterdir()) == ["corpus here", "data", "params.yaml"], batch
    assert digests(outside) == before
    assert good > batches // 2
    assert rejected > batches * BATCH // 10


def run_stage(root: Path, project: Path, stage: str) -> subprocess.CompletedProcess[str]:
    planned = ["--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet"]
    ports = {"scan": ["--corpus", "data/corpus"], "segment": planned, "resample": [*planned, "--clips", "data/clips"]}[stage]
    kept = ["--metrics", f"data/metrics/{stage}.json", "--quarantine", f"data/quarantine/{stage}.parquet"]
    command = [sys.executable, "-m", f"stages.{stage}", *ports, *kept]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace", "timeout": 300}
    return subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(root)}, **options)
