"""A map over shards gives the same bytes with any number of workers, and ends with its parent."""

import json
import os
import subprocess
import sys
from pathlib import Path

from soundmill import shards
from soundmill.shards.run import ONE_THREAD
from tests.shards.work import contents, gpu_of_worker, jobs, square, value_of_worker


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


def test_a_worker_has_one_thread_and_the_mapping_process_its_own_environment(tmp_path):
    code = """
import json, os, sys
from pathlib import Path
from soundmill import shards
from tests.shards import work as t

if __name__ == "__main__":
    jobs = [shards.Job(f"job-{number}", ()) for number in range(4)]
    threads = shards.map_shards(t.threads_of_worker, jobs, Path(sys.argv[1]), workers=2).details
    print(json.dumps([threads, os.environ["OPENBLAS_NUM_THREADS"], os.environ.get("OMP_NUM_THREADS")]))
"""
    env = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "7"}
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    threads, openblas, openmp = json.loads(done.stdout)
    assert all(names == sorted(ONE_THREAD) for names, _ in threads)
    assert max(count for _, count in threads) <= 2  # Arrow has one from its import on
    assert (openblas, openmp) == ("7", None)


def test_workers_have_the_environment_of_now(tmp_path, monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("SOUNDMILL_WEIGHTS", value)
        report = shards.map_shards(value_of_worker, [shards.Job("job", ())], tmp_path / value, workers=2)
        assert report.details == [[value]]


def test_each_worker_sees_one_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert shards.visible_gpus() == ["4", "7"]
    two = [shards.Job(str(number), (tmp_path, 2)) for number in range(2)]
    assert sorted(shards.map_shards(gpu_of_worker, two, tmp_path / "seen", workers=2).details) == ["4", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shards.visible_gpus() == []


def test_an_interrupt_is_told_by_the_mapping_process_alone(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "slow").touch()
    code = """
import os, signal, sys
from pathlib import Path
from soundmill import shards
from tests.shards import work as t

if __name__ == "__main__":
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        shards.map_shards(t.square, t.jobs(9), Path(sys.argv[1]), workers=3, progress=lambda n: n and os.killpg(0, signal.SIGINT))
    except KeyboardInterrupt:
        print("interrupted")
"""
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
