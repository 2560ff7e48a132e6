"""ffmpeg decodes many files at once as it decodes one; it never hangs, outlives nobody and reads no other file."""

import os
import random
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from soundmill.decoding import containers, decode
from soundmill.decoding import ffmpeg as ffmpeg_module
from soundmill.decoding.containers.layout import Layout
from soundmill.decoding.decode import DecodeError
from soundmill.decoding.ffmpeg import Log
from soundmill.errors import UserError
from tests.decoding.files import MAX_SECONDS, ffmpeg, reason_of, whole
from tests.imports import ROOT
from tests.processes import assert_nothing_is_left, marked, new_mark, wait_for


def program(folder: Path, script: str) -> Path:
    """An ffmpeg that does something else."""
    (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    return folder / "ffmpeg"


def test_ffmpeg_that_hangs_is_killed(media, tmp_path, monkeypatch):
    fake = program(tmp_path, f"echo $$ > {tmp_path}/pid\nexec sleep 100")
    monkeypatch.setattr(ffmpeg_module, "ffmpeg_executable", lambda: fake)
    monkeypatch.setattr(ffmpeg_module, "STALL_SECONDS", 3.0)
    assert reason_of(media / "a.m4a") == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ffmpeg_that_is_stuck_ends_with_the_process_that_started_it(tmp_path):
    mark, sound = new_mark(), tmp_path / "long.m4a"  # more than a block and a pipe hold: ffmpeg waits for its reader
    ffmpeg("-f", "lavfi", "-i", "sine=duration=20", sound)
    code = "import sys; from soundmill.decoding import decode; _, b = decode.decode_blocks(sys.argv[1], 60.0); next(b); input()"
    command = [sys.executable, "-c", code, str(sound)]
    parent = subprocess.Popen(command, env={**os.environ, **mark, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE)
    child = wait_for(lambda: [pid for pid, command in marked(mark).items() if "-loglevel" in command])[0]
    os.kill(child, signal.SIGSTOP)
    assert child in marked(mark)
    parent.kill()
    parent.wait()
    assert_nothing_is_left(mark, set())


@pytest.mark.parametrize("tag", ["x)\n[Eval @ 0x1] [warning] zzz", "x\n[Eval @ 0x1] [warning] 5.000000\n"])
def test_a_tag_is_no_line_of_the_log(tmp_path, tag):
    for name in ("a.mkv", "a.ogg"):
        form = ("-f", "lavfi", "-i", "sine=d=1:r=16000", "-c:a", "libopus", "-metadata:s:a:0", f"language={tag}")
        ffmpeg(*form, tmp_path / name)
        assert decode.probe(tmp_path / name, MAX_SECONDS).num_frames


def test_ffmpeg_that_somebody_kills_says_nothing_of_the_file(media, tmp_path, monkeypatch):
    """As the kernel does where memory is short: the file must not be called damaged."""
    monkeypatch.setattr(ffmpeg_module, "ffmpeg_executable", lambda: program(tmp_path, "kill -9 $$"))
    with pytest.raises(UserError, match=r"ffmpeg was killed \(signal 9\).*Run it"):
        decode.probe(media / "a.m4a", MAX_SECONDS)


def test_ffmpeg_ends_when_its_reader_stops(media, monkeypatch):
    begun = []
    popen = subprocess.Popen
    monkeypatch.setattr(ffmpeg_module.subprocess, "Popen", lambda *args, **more: begun.append(popen(*args, **more)) or begun[-1])
    _, blocks = decode.decode_blocks(media / "surround.m4a", MAX_SECONDS)
    next(blocks)
    blocks.close()
    assert [child.poll() is not None for child in begun] == [True]


@pytest.mark.parametrize("named", ["/nowhere/ffmpeg", None])
def test_ffmpeg_that_does_not_run_is_not_blamed_on_the_files_and_the_remedy_named(media, tmp_path, monkeypatch, named):
    ffmpeg_module.ffmpeg_executable.cache_clear()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", named or str(program(tmp_path, "exit 127")))
    try:
        with pytest.raises(UserError, match=r"does not run: .*imageio-ffmpeg"):
            decode.probe(media / "a.m4a", MAX_SECONDS)
        assert decode.probe(media / "a.flac", MAX_SECONDS).backend == "libsndfile"
    finally:
        ffmpeg_module.ffmpeg_executable.cache_clear()


def test_which_ffmpeg_is_known_without_running_the_wheels(monkeypatch, tmp_path):
    named = program(tmp_path, "echo ffmpeg version 7.1-own Copyright")
    version = re.search(r"-v(\d+(\.\d+)*)", ffmpeg_module.installed_version())[1]
    assert version in ffmpeg_module.ffmpeg_version()
    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg_module.subprocess, "run", lambda *_, **__: pytest.fail("it was run"))
        ffmpeg_module.version_of.cache_clear()
        assert version in ffmpeg_module.installed_version()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(named))
    assert ffmpeg_module.installed_version() == "7.1-own"
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr(ffmpeg_module, "_of_wheel", lambda: None)  # built without: the one on PATH
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert ffmpeg_module.installed_version() == "7.1-own"
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert ffmpeg_module.installed_version() == "none"


def test_complaints_are_told_the_same_way_every_time(media, tmp_path):
    """ffmpeg's threads complain in any order; the quarantine table must not show it."""
    for name in ("a.m4a", "a.webm", "a.wma", "a.ac3", "film.mp4"):
        data = bytearray((media / name).read_bytes())
        middle = len(data) // 2
        data[middle : middle + 600] = random.Random(0).randbytes(600)
        (tmp_path / "x").write_bytes(data)
        outcome = set()
        for _ in range(5):
            with pytest.raises(DecodeError) as refused:
                whole(tmp_path / "x")
            outcome.add(str(refused.value))
        assert len(outcome) == 1, outcome


def test_ffmpeg_may_read_one_file_and_nothing_else(media):
    def command(*kinds: containers.Kind, layout: Layout = Layout(sndfile=False)) -> list[str]:  # noqa: B008
        with (media / "a.m4a").open("rb") as file:
            inputs = [ffmpeg_module.Input(file, kind, layout) for kind in kinds]
            words = ffmpeg_module.compile_command(inputs, [1, 2, 3][: len(kinds)])
            return [word.replace(f"fd/{file.fileno()}", "fd/7") for word in words]

    mp4 = containers.Kind("mp4", "mov")
    one = command(mp4)
    assert one[one.index("-i") + 1] == "file:/proc/self/fd/7"
    before = one[: one.index("-i")]
    assert before[before.index("-f") + 1] == "mov"
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert "-nostdin" in one
    tagged = command(mp4, layout=Layout(sndfile=False, pieces=((20, 99),)))
    assert tagged[tagged.index("-i") + 1] == "subfile,,start,20,end,99,,:file:/proc/self/fd/7"
    several = command(mp4, containers.UNKNOWN, mp4)
    assert several.count("-protocol_whitelist") == 3
    assert [several[index + 1] for index, word in enumerate(several) if word == "-map"] == ["0:a:0", "1:a:0", "2:a:0"]
    free = command(containers.UNKNOWN)
    allowed = set(free[free.index("-format_whitelist") + 1].split(","))
    assert not allowed & set("hls concat dash sdp rtp rtsp image2 imf lavfi data tty webm_dash_manifest".split())


def outcome(recording: decode.Recording | DecodeError) -> tuple[object, ...]:
    """What one file came to: its samples, or the whole error."""
    try:
        if isinstance(recording, DecodeError):
            raise recording
        blocks = list(recording.blocks)
    except DecodeError as error:
        return error.reason, error.detail
    samples = np.concatenate(blocks)
    assert recording.num_frames in (None, len(samples))
    return recording.format, recording.sample_rate, recording.channels, recording.backend, samples.tobytes()


def outcomes(paths: list[Path]) -> list[tuple[object, ...]]:
    return [outcome(recording) for recording in decode.open_all((decode.open_regular(path) for path in paths), MAX_SECONDS)]


@pytest.fixture(scope="module")
def mixed(media, tmp_path_factory) -> dict[Path, tuple[object, ...]]:
    """Good and damaged files of many kinds, each with what it comes to when it is decoded alone."""
    directory = tmp_path_factory.mktemp("mixed")
    names = ["a.m4a", "fast.m4a", "fragments.mp4", "alac.m4a", "surround.m4a", "a.webm", "a.wma", "a.aac", "a.avi", "film.mp4"]
    for name in [*names, "film.mkv", "a.ts", "a.ac3", "a.amr", "a.flv", "yamaha.wav", "pcm16.wav", "a.ogg"]:
        data = (media / name).read_bytes()
        (directory / name).write_bytes(data)
        if name in ("a.m4a", "a.webm", "film.mp4", "a.aac", "a.wma", "a.ogg"):
            (directory / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
            middle = len(data) // 2
            noise = random.Random(0).randbytes(600)
            (directory / f"noisy-{name}").write_bytes(data[:middle] + noise + data[middle + 600 :])
    (directory / "mute.mp4").write_bytes((media / "mute-film.mp4").read_bytes())
    (directory / "junk").write_bytes(random.Random(1).randbytes(5000))
    (directory / "page.m4a").write_text("<html>not found</html>")
    return {path: outcomes([path])[0] for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("seed", range(3))
def test_files_decoded_together_come_to_what_they_do_alone(mixed, seed):
    paths = list(mixed)
    random.Random(seed).shuffle(paths)
    paths = paths[: len(paths) - 5 * seed]
    assert outcomes(paths) == [mixed[path] for path in paths]


def test_a_log_that_two_threads_wrote_at_once_is_read_again(media, monkeypatch):
    """ffmpeg prints `Stream #0:0` and the rest apart: what another thread says between them bears no level."""
    line = "[info]   Stream #0:0: Audio: pcm_f32be ([6][0][0][0] / 0x0006), 8000 Hz, 5.1, flt, 256 kb/s"
    broken = [f"{line}Invalid data found", "[info]   Stream #0:0PES packet size mismatch", "[info]   Stream #0:00.4"]
    for text, is_whole in [(line, True), (f"{line} (default) (non-diegetic)", True), *((text, False) for text in broken)]:
        log = Log([False])
        log.add(f"{text}\n".encode())
        assert (log.whole, log.complained) == (is_whole, False), text
    logs = []

    def first_is_broken(streamed: list[bool]) -> Log:
        logs.append(Log(streamed))
        logs[-1].whole = len(logs) > 1
        return logs[-1]

    film, other = media / "film.mkv", media / "a.m4a"
    alone = outcomes([film])
    monkeypatch.setattr(ffmpeg_module, "Log", first_is_broken)
    assert (outcomes([film]), len(logs)) == (alone, 2)
    logs.clear()
    assert (outcomes([film, other])[0], len(logs)) == (alone[0], 3)  # both together, then each alone


def test_good_files_share_one_process(mixed, monkeypatch):
    started = []
    compile_command = ffmpeg_module.compile_command
    monkeypatch.setattr(
        ffmpeg_module, "compile_command", lambda inputs, outputs: started.append(len(inputs)) or compile_command(inputs, outputs)
    )
    good = [path for path, result in mixed.items() if result[-2] == "ffmpeg"]
    assert len(good) >= 12
    assert outcomes(good) == [mixed[path] for path in good]
    assert started == [len(good)]


def test_a_file_that_lies_about_its_length_bursts_its_batch_and_no_other_file(media, mixed, tmp_path, monkeypatch):
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "90", tmp_path / "long.m4a")
    data = (tmp_path / "long.m4a").read_bytes()
    at = data.index(b"mvhd") + 16
    scale = int.from_bytes(data[at : at + 4], "big")
    (tmp_path / "bomb.m4a").write_bytes(data[: at + 4] + struct.pack(">I", scale) + data[at + 8 :])
    monkeypatch.setattr(ffmpeg_module, "BATCH_BYTES", 2 << 20)  # 65 s of it
    others = [path for path in mixed if path.name in ("a.m4a", "a.webm", "fast.m4a")]
    result = outcomes([others[0], tmp_path / "bomb.m4a", *others[1:]])
    assert result[1][0] == "too long"
    assert [result[0], *result[2:]] == [mixed[path] for path in others]


def test_what_was_opened_is_closed(mixed):
    before = set(os.listdir("/proc/self/fd"))
    outcomes(list(mixed))
    some = decode.open_all((decode.open_regular(path) for path in mixed), MAX_SECONDS)
    next(some)
    some.close()
    assert set(os.listdir("/proc/self/fd")) <= before  # fewer, where Python collected what other tests left open
