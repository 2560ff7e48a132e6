import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flows import locks
from soundmill import params
from soundmill.errors import UserError
from soundmill.models import cost
from tests.commands.running import refused, soundmill, soundmill_alone, works


def test_params_writes_or_prints_a_composition_that_stages_accept(root, tmp_path):
    done = soundmill_alone("params", "--print", "clips.default.clip_seconds=2.5", cwd=root)
    assert "clip_seconds: 2.5" in done.stdout
    (tmp_path / "conf").symlink_to(root / "conf")
    (tmp_path / "dvc.yaml").symlink_to(root / "dvc.yaml")
    (tmp_path / "params.yaml").touch()
    assert (
        works("params", "clips.default.clip_seconds=2.5", cwd=tmp_path).stdout
        == f"{tmp_path / 'params.yaml'}: `dvc repro` runs it\n"
    )
    assert (tmp_path / "params.yaml").read_text() == done.stdout
    twice = refused("params", "--print", "scale=laptop", "scale=gpu", cwd=root)
    assert twice == "scale is given twice; leave one of them out\n"
    wrong = "model=tango", "tango.generate.sampling.sampler=euler"
    assert "tango.generate.sampling.sampler: " in refused("params", "--print", *wrong, cwd=root)


def test_a_family_that_keeps_griffin_lim_is_told(root):
    done = soundmill("params", "--print", "model=[ddpm_mel,tango]", "latents=audioldm", "vocoder=audioldm", cwd=root)
    assert "note: ddpm_mel will use Griffin-Lim" in done.stderr


def test_a_protocol_without_its_weights_is_told_before_a_training(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    done = works("params", "--print", "evaluate.protocols=[project,audioldm_eval-16k]", cwd=root)
    assert "soundmill weights fetch vggish" in done.stderr


@pytest.mark.slow
def test_doctor_names_the_remedy_for_what_is_missing(root, tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "profiles.toml").write_text('active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://127.0.0.1:10/api"\n')
    done = soundmill_alone("doctor", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"none in {tmp_path}" in done.stdout
    assert "`soundmill weights fetch NAME` others (yamnet, vggish, " in done.stdout
    assert "http://127.0.0.1:9 is unreachable" in done.stdout
    assert "no Prefect server at http://127.0.0.1:10/api" in done.stdout
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = soundmill_alone("doctor", cwd=root)
    assert lacking.returncode == 1
    assert "!!  ffmpeg" in lacking.stdout


def test_of_two_runs_in_a_workspace_neither_changes_the_others_parameters(checkout):
    place = checkout / "workspaces/tango"
    with locks.exclusive_lock(place / ".dvc/tmp/run.lock"):
        assert "already running" in refused("run", "--model", "tango", cwd=checkout)
    assert not (place / "params.yaml").exists()


def test_a_folder_beside_a_bake_off_is_that_where_the_person_stands(root, tmp_path, monkeypatch):
    """The flow runs in the checkout, which may be elsewhere."""
    from flows import bakeoff, pipeline

    asked = []
    monkeypatch.setattr(bakeoff, "bakeoff", lambda *options, return_state: asked.append((Path.cwd(), *options)) or 0)
    monkeypatch.setattr(pipeline, "run_to_end", lambda name, parts, flow: flow())
    chosen = ["--minutes", "2", "--families", "rave, tango", "--seeds", "0,3", "--extra", "mine=sounds/mine"]
    works("bakeoff", "corpus=loops", *chosen, "--project", str(root), cwd=tmp_path)
    assert asked == [(root, 2.0, ["corpus=loops"], ["rave", "tango"], [0, 3], {"mine": tmp_path / "sounds" / "mine"}, "")]
    for wrong in (["--seeds", "one"], ["--seeds", "²"], ["--extra", "mine"], ["--extra", "a=b", "--extra", "a=c"]):
        assert wrong[0] in refused("bakeoff", *wrong, "--project", str(root), cwd=tmp_path)
    assert len(asked) == 1
    chosen = [str(put_sounds(tmp_path / "hits", 0.5, ("kick", "snare"))), "--plan", "one_shots", "evaluate.embedders=[texture]"]
    assert "clips of 1.024 s" in works("bakeoff", *chosen, "--project", str(root), cwd=tmp_path).stdout


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """What `soundmill run` would run: the name of the workspace, and its parameters."""
    from flows import checkout

    begun = []
    monkeypatch.setattr(cost, "training_seconds", lambda *_: 1.0)
    monkeypatch.setattr(cost, "steps_in", lambda *_: (700, 60.0))
    monkeypatch.setattr(cost, "fastest_hardware", lambda *_: [])
    monkeypatch.setattr(checkout, "workspace", lambda _, name, document: begun.append((name, document)) or tmp_path / "workspace")
    monkeypatch.setattr(checkout, "run_pipeline", lambda workspace, push: 0)
    return begun


def test_run_takes_parameters_without_a_folder(root, runs):
    works("run", "audio_dit.train.steps=20", "evaluate.bootstrap=7", cwd=root)
    ((name, document),) = runs
    assert name == "audio_dit"
    assert document["audio_dit"]["train"]["steps"] == 20
    assert document["evaluate"]["bootstrap"] == 7
    assert document["corpus"]["format"] == "synthetic"


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(root, tmp_path, runs):
    recordings = put_sounds(tmp_path / "a=b", 1.0, ("dog", "rain"))
    works("run", "a=b", "--project", str(root), cwd=tmp_path)
    assert runs[0][1]["corpus"]["path"] == str(recordings)


def test_a_folder_of_silence_is_refused_before_a_stage_runs(root, tmp_path, runs):
    hiss = np.random.default_rng(0).uniform(-2e-5, 2e-5, 16_000)  # -94 dBFS
    for number, wave in enumerate((np.zeros(16_000), hiss, np.full(16_000, np.nan))):
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000, subtype="FLOAT")
    chosen = ["run", ".", "--project", str(root)]
    said = refused(*chosen, cwd=tmp_path)
    assert f"{tmp_path}: all recordings are silent: none rises above -90 dBFS (`clips.default.silence_dbfs`)" in said
    assert runs == []
    lower = "clips.default.silence_dbfs=-100.0"
    assert "about 3 clips; give enough for at least 4" in refused(*chosen, lower, cwd=tmp_path)
    soundfile.write(tmp_path / "3.wav", hiss, 16_000, subtype="FLOAT")
    works(*chosen, lower, "--dry-run", cwd=tmp_path)
    soundfile.write(tmp_path / "3.wav", 100 * hiss, 16_000)
    works(*chosen, cwd=tmp_path)


def test_an_experiment_runs_over_the_folder_that_is_named_by_its_own_format(root, tmp_path, runs):
    from soundmill.corpora import survey

    recordings = put_sounds(tmp_path / "hits", 1.0, ("kick", "snare"))
    chosen = "experiment=one_shots_waveform_unet"
    works("run", str(recordings), chosen, "waveform_unet.train.steps=7", "--project", str(root), cwd=tmp_path)
    ((name, document),) = runs
    assert name == f"{survey.slug(recordings)}-one_shots_waveform_unet"
    assert document["corpus"] | {"path": str(recordings), "format": "folder", "external": ["folder"]} == document["corpus"]
    assert document["waveform_unet"]["train"]["steps"] == 7
    assert document["experiment"]["name"] == "one_shots_waveform_unet"


def put_sounds(folder: Path, seconds: float, labels: tuple[str, ...]) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            time = np.arange(int(16_000 * seconds)) / 16_000
            soundfile.write(folder / label / f"{number}.wav", 0.1 * np.sin(2 * np.pi * (300 + 70 * number) * time), 16_000)
    return folder


@pytest.mark.parametrize(
    ("seconds", "labels", "minutes", "condition", "clip"),
    [(0.5, ("kick", "snare"), 15, "label", 1.04), (0.5, ("",), 16, "none", 1.04), (4.0, ("dog", "rain"), 15, "label", 5.0)],
)
def test_what_is_trained_follows_from_sounds_and_minutes(root, tmp_path, runs, seconds, labels, minutes, condition, clip):
    folder = str(put_sounds(tmp_path / "sounds", seconds, labels))
    done = works("run", folder, "evaluate.bootstrap=7", "--minutes", str(minutes), "--project", str(root), cwd=tmp_path)
    ((_, document),) = runs
    assert document["clips"]["default"]["clip_seconds"] == clip
    train = document["audio_dit"]["train"]
    assert (train["condition"], train["steps"], document["evaluate"]["bootstrap"]) == (condition, 700, 7)
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("choice")]
    assert re.match(rf"choice      audio_dit.* of {seconds:g} s", told)
    assert f"steps       700: what {minutes} minutes leave" in done.stdout


def test_parameters_of_the_family_that_is_chosen_change_the_choice(root, tmp_path, runs):
    folder, at = str(put_sounds(tmp_path / "sounds", 0.5, ("kick", "snare"))), ["--project", str(root)]
    works("run", folder, *at, cwd=tmp_path)
    changes = ["audio_dit.train.seed=5", "audio_dit.train.steps=9"]
    done = works("run", folder, *changes, *at, cwd=tmp_path)
    assert "choice      audio_dit by label" in done.stdout
    (_, chosen), (_, changed) = runs
    assert changed["audio_dit"]["train"] == chosen["audio_dit"]["train"] | {"seed": 5, "steps": 9}


def test_a_named_model_is_trained_as_it_says_and_for_the_minutes(root, tmp_path, runs, monkeypatch):
    monkeypatch.setattr(cost, "steps_in", lambda total, _, name, of, *__: (int(total), 7.5 * of[name]["generate"]["count"]))
    folder = str(put_sounds(tmp_path / "sounds", 4.0, ("dog", "rain")))
    at = ["--project", str(root)]
    for words in (["--model", "diffwave"], ["diffwave=captions", "model=diffwave"], ["scale=laptop"]):
        done = soundmill("run", folder, *words, *at, cwd=tmp_path)
        assert (done.returncode, "choice" in done.stdout) == (0, False), done.stderr
    assert soundmill("run", folder, "--model", "diffwave", "--minutes", "10", *at, cwd=tmp_path).returncode == 0
    (*before, (_, document)) = runs
    assert document["diffwave"]["train"]["steps"] == 429  # 600 s less 170.5 for the stages of 8 clips
    assert before[0][1]["diffwave"]["train"]["steps"] != 429
    done = soundmill("run", folder, "--minutes", "1", *at, cwd=tmp_path)
    assert (done.returncode, len(runs)) == (1, len(before) + 1)
    assert re.search(r"--minutes 1: everything but training takes about 3\.1 .* give at least 7", " ".join(done.stderr.split()))
    done = soundmill("run", folder, "--model", "diffwave", "--minutes", "4", *at, cwd=tmp_path)
    assert "sounds      4 instead of 8, to leave more time" in done.stdout  # 8 would take 60 of the 69.5 seconds left
    assert runs.pop()[1]["diffwave"]["generate"]["count"] == 4
    assert "compare several by" in soundmill("run", folder, "model=[ddpm_mel,rave]", "--minutes", "9", *at, cwd=tmp_path).stderr
    assert "above 0 and below a million" in soundmill("run", folder, "--minutes", "1e7", *at, cwd=tmp_path).stderr
    for words in (["--model", "rave"], ["--model", "diffwave", "diffwave.train.steps=9"], ["--minutes", "nan"]):
        assert soundmill("run", folder, "--minutes", "10", *words, *at, cwd=tmp_path).returncode == 1
    words = ["run", folder, "--model", "ddpm_mel", "scale=paper", "--minutes", "90", *at]
    assert "audioldm_eval-16k needs vggish" in soundmill(*words, cwd=tmp_path).stderr  # before the steps are timed
    assert soundmill(*words, "evaluate.protocols=[project]", cwd=tmp_path).returncode == 0
    train = runs[-1][1]["ddpm_mel"]["train"]
    assert (train["steps"], train["epochs"]) == (5229, None)
    assert "needs a folder" in soundmill("run", "--model", "rave", "--minutes", "9", cwd=root).stderr


@pytest.mark.slow
def test_the_steps_are_those_that_the_minutes_hold(root):
    from tests.bench.test_waveform import SMALL

    document = params.compose(root / "conf", ["model=waveform_unet", *SMALL])
    steps, least = cost.steps_in(60.0, root, "waveform_unet", document, 10, 0)
    document["waveform_unet"]["train"]["steps"] = steps
    taken = cost.training_seconds(root, document, {"waveform_unet": 10}, 0)
    assert steps > 0
    assert least < taken <= 60.0 < taken + 5.0


def test_an_experiment_over_embedded_recordings_needs_no_folder_and_another_asks_for_one(root, runs):
    works("run", "experiment=loops_projected_gan", cwd=root)
    assert (runs[0][0], runs[0][1]["corpus"]["format"]) == ("loops_projected_gan", "loops")
    said = refused("run", "experiment=esc10_tango", cwd=root)
    assert "give the folder of recordings (corpus=esc): soundmill run DIR experiment=esc10_tango" in said
    assert "did you mean 'esc10_tango'?" in refused("run", "experiment=esc10_tangoo", cwd=root)
    assert "`--model tango`" in refused("run", cwd=root)
    assert "no such directory" in refused("run", "recordings", cwd=root)
    assert len(runs) == 1


# What training will take

TINY = ["model=ddpm_mel", "corpus=auto", "ddpm_mel.train.steps=1000", "ddpm_mel.train.batch_size=2"]
TINY += ["ddpm_mel.train.network.widths=[16,16,32]", "ddpm_mel.train.hardware.threads=1"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "soundmill" / "timings"


@pytest.mark.slow
def test_steps_are_timed_once_and_not_in_this_process(root, kept):
    said = f"""
import json, sys
from pathlib import Path
from soundmill import params
from soundmill.models import cost
document = params.compose(Path("conf"), {TINY!r})
print(json.dumps([cost.training_seconds(Path.cwd(), document, {{"ddpm_mel": 50}}, 3), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", said], cwd=root, capture_output=True, text=True, check=True)
    told, printed = done.stdout.splitlines()
    assert told == "timing      a few steps of ddpm_mel, threads=1 precision=bf16"
    seconds, torch_loaded = json.loads(printed)
    assert not torch_loaded
    (file,) = kept.iterdir()
    timing = cost.Timing(**json.loads(file.read_text()))
    document = params.compose(root / "conf", TINY)
    assert seconds == cost.seconds(timing, "ddpm_mel", document, 50) > 1000 * timing.seconds > 0
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 7.0}))
    assert cost.training_seconds(root, document, {"ddpm_mel": 50}, 3) > 7_000
    file.write_text("{")  # cut off: timed again
    assert cost.training_seconds(root, document, {"ddpm_mel": 50}, 3) < 7_000


@pytest.mark.parametrize(
    ("device", "cores", "given", "chosen"),
    [
        ("cpu", 8, [], ["threads=4", "precision=bf16"]),  # eight threads are no faster than four
        ("cpu", 2, [], ["threads=2", "precision=bf16"]),
        ("cuda", 8, [], ["precision=bf16"]),
        ("cpu", 8, ["precision=bf16"], ["threads=4"]),
    ],
)
def test_the_fastest_hardware_is_taken(root, monkeypatch, device, cores, given, chosen):
    def timing(root, family, document, num_labels):
        hardware = document["ddpm_mel"]["train"]["hardware"]
        faster = {32: 1.0, "bf16": 0.8}[hardware["precision"]]
        return cost.Timing(faster / min(hardware["threads"], 4), 8, 1, 50, device)

    key = "ddpm_mel.train.hardware"
    given = [f"{key}.{one}" for one in ("precision=32", *given)]
    monkeypatch.setattr(cost, "_timing", timing)
    monkeypatch.setattr(cost.os, "sched_getaffinity", lambda _: range(cores))
    found = cost.fastest_hardware(root, "ddpm_mel", lambda more: params.compose(root / "conf", [*TINY, *given, *more]), 3)
    assert found == [f"{key}.{one}" for one in chosen]


def test_named_hardware_is_kept(root, tmp_path, runs, monkeypatch):
    monkeypatch.setattr(cost, "fastest_hardware", lambda *_: pytest.fail("was measured"))
    folder = str(put_sounds(tmp_path / "sounds", 4.0, ("dog", "rain")))
    for named in ("model=audio_dit audio_dit.train.hardware.precision=32", "experiment=esc10_ddpm_mel corpus=folder"):
        works("run", folder, *named.split(), "--minutes", "30", "--project", str(root), cwd=tmp_path)
    assert runs[0][1]["audio_dit"]["train"]["hardware"]["precision"] == 32  # an override's number is taken as well


def test_what_cannot_be_timed_is_told(root, kept):
    document = params.compose(root / "conf", TINY)
    document["ddpm_mel"]["train"]["picture"]["patch"] = [7, 7]
    with pytest.raises(UserError, match=r"ddpm_mel: its training steps could not be timed: .*patch"):
        cost.training_seconds(root, document, {"ddpm_mel": 50}, 3)
    assert not kept.exists()
