"""Train and generate of the family `tango` on the real configuration, shrunk: kills, prompts, and what does not fit together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import stages.generate
import stages.train
from soundmill import commands, hashing, manifest, params, shards
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.models import cost, generation
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.vocoder import DiffWave
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder
from soundmill.models.components.latents.store import read_about
from tests import clap_weights
from tests.imports import ROOT
from tests.models.components.test_diffwave import FAST, NOISE, TINY
from tests.models.components.test_hifigan import VOICE
from tests.models.components.test_mel_autoencoder import SPEC
from tests.stages import of_waves
from tests.stages.tango_inputs import CAPTIONS, MIXES, write, write_latents
from tests.training.killing import Killed, die_before

SHRUNK = [
    "model=tango",
    "text.tango.scratch.width=16",
    "tango.train.steps=4",
    "tango.train.real_items=2",
    "tango.train.accumulate=2",
    "tango.train.log_every_steps=1",
    "tango.train.validate_every_steps=2",
    "tango.train.validate_batches=2",
    "tango.train.checkpoint_seconds=0",
    "tango.train.hardware.accelerator=cpu",
    "tango.train.hardware.threads=1",
    "tango.train.network.widths=[8,16]",
    "tango.train.network.heads=[2,2]",
    "tango.train.network.text_levels=[1]",
    "tango.train.grid.columns=2",
    "tango.train.sampling.num_steps=2",
    "tango.train.sampling.griffin_lim_iterations=2",
    "tango.generate.codec_count=1",
]

GUIDED = ["num_steps=3", "guidance_scale=2"]


@pytest.fixture(scope="module")
def composed() -> dict:
    return params.compose(ROOT / "conf", SHRUNK)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("inputs"))


def train(home: Path, data: Path, composed: dict, tagger: Path | None = None, **changes) -> dict:
    document = json.loads(json.dumps(composed))
    document["tango"]["train"] |= changes
    params.write_yaml(document, home / "params.yaml")
    arguments = [
        "--family", "tango", "--inputs", f"{data}/tango", "--parts", f"{data}/tango", "--tagger", f"{tagger or data / 'tango'}",
        "--clips", f"{data}/clips", "--catalog", f"{data}/catalog.parquet",
        "--model", f"{home}/model", "--curves", f"{home}/curve.csv", "--grid", f"{home}/grid.png",
        "--metrics", f"{home}/train.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    stages.train.main(arguments)
    return json.loads((home / "train.json").read_text())


def generate(home: Path, data: Path, composed: dict) -> dict:
    params.write_yaml(composed, home / "params.yaml")
    arguments = [
        "--family", "tango", "--model", f"{home}/model", "--clips", f"{data}/clips", "--catalog", f"{data}/catalog.parquet",
        "--generated", f"{home}/generated", "--codec", f"{home}/codec",
        "--metrics", f"{home}/generate.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    stages.generate.main(arguments)
    return json.loads((home / "generate.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, composed) -> Path:
    home = tmp_path_factory.mktemp("whole")
    train(home, data, composed)
    return home


def test_trains_on_latents_and_states_alone(trained, data):
    metrics = json.loads((trained / "train.json").read_text())
    assert (metrics["clips"], metrics["mixes"], metrics["captions"], metrics["steps"]) == (4, 2, 7, 4)
    assert metrics["valid_loss"] > 0
    assert [line.split(",")[0] for line in (trained / "curve.csv").read_text().splitlines()] == ["step", "2", "4"]
    config = json.loads((trained / "model" / "config.json").read_text())
    assert (config["family"], config["frames"], config["text"]["name"]) == ("tango", 32, "byt5-scratch")
    within = {path.relative_to(trained / "model").as_posix() for path in (trained / "model").rglob("*") if path.is_file()}
    assert within == {
        "config.json",
        "unet.safetensors",
        "best.safetensors",
        "trained_on.parquet",
        "autoencoder/config.json",
        "autoencoder/model.safetensors",
    }
    told = shards.read_table(trained / "model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    assert [(row["mix"], row["clip_id"]) for row in told] == [
        *((None, f"clip-{number}") for number in range(4)),
        *(("mix-0", clip_id) for clip_id in ("clip-0", "clip-1")),
        *(("mix-1", clip_id) for clip_id in ("clip-3", "clip-1")),
    ]
    assert {(row["source"], row["start"], row["earlier"]) for row in told} == {("r.wav", 0.0, False)}
    assert (trained / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_training_with_accumulation_ends_like_an_unbroken_one(tmp_path, trained, data, composed, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        die_before(patch, 6)
        with pytest.raises(Killed):
            train(tmp_path, data, composed)
    train(tmp_path, data, composed)
    assert "resuming at step" in capfd.readouterr().out
    for name in ("model/unet.safetensors", "model/config.json", "curve.csv", "grid.png", "train.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_it_is_scored_by_the_captions_of_validation_clips_while_it_trains_killed_or_not(
    tmp_path, trained, data, composed, capfd, monkeypatch
):
    of_waves.write_tagger(tmp_path / "tagger")
    scored = {"tagger": tmp_path / "tagger", "score_every_steps": 2, "score_requests": 3, "score_share": None}
    metrics = train(tmp_path, data, composed, **scored)
    assert "every 2 steps the tagger scores 3 sounds for 1 validation clips, against 1 validation and 4 training clips" in (
        capfd.readouterr().out
    )
    assert 0 < metrics["best_fad"] <= metrics["score_fad_tagger"]
    assert metrics["score_kl_tagger_low"] <= metrics["score_kl_tagger"] <= metrics["score_kl_tagger_high"]
    for name in ("model/unet.safetensors", "curve.csv"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name

    killed = tmp_path / "killed"
    killed.mkdir()
    with monkeypatch.context() as patch:
        die_before(patch, 6)
        with pytest.raises(Killed):
            train(killed, data, composed, **scored)
    assert train(killed, data, composed, **scored) == metrics
    assert "resuming at step" in capfd.readouterr().out
    files = [path.relative_to(tmp_path) for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert Path("model/best_fad.safetensors") in files
    for name in [*files, Path("curve.csv"), Path("grid.png"), Path("train.json")]:
        assert (killed / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_generates_for_test_clips_by_their_captions(tmp_path, trained, data, composed, capfd):
    output = []
    for turn in ("one", "two"):
        home = tmp_path / turn
        home.mkdir()
        shutil.copytree(trained / "model", home / "model")
        document = json.loads(json.dumps(composed))
        document["tango"]["train"]["network"]["widths"] = [64, 128]  # today's; the checkpoint has its own
        metrics = generate(home, data, composed if turn == "one" else document)
        output.append({path.name: path.read_bytes() for path in sorted((home / "generated").glob("*.wav"))})
    assert output[0] == output[1]
    assert list(output[0]) == ["test-0.wav", "test-1.wav"]
    assert output[0]["test-0.wav"] != output[0]["test-1.wav"]
    assert (metrics["generated"], metrics["conditioned"], metrics["codec"]) == (2, 2, 1)
    for path in [*(tmp_path / "one" / "generated").glob("*.wav"), *(tmp_path / "one" / "codec").iterdir()]:
        assert soundfile.info(path).frames == 4000


def test_prompts_become_sounds_that_say_what_they_are(tmp_path, trained):
    prompts = ["A dog barks, then rain", "a bell"]
    paths = generation.generate_sounds(trained / "model", prompts, 2, 5, tmp_path / "a", tmp_path, GUIDED)
    assert [path.name for path in paths] == [
        "a-dog-barks-then-rain-5-001.wav", "a-dog-barks-then-rain-5-002.wav", "a-bell-5-003.wav", "a-bell-5-004.wav",
    ]  # fmt: skip
    with soundfile.SoundFile(paths[2]) as sound:
        said = json.loads(sound.comment)
    trained_sampling = json.loads((trained / "model" / "config.json").read_text())["params"]["sampling"]
    assert said.pop("weights").startswith("last weights (step 4, held-out loss ")
    assert said == {
        "family": "tango", "checkpoint": hashing.tree_digest(trained / "model"), "prompt": "a bell", "seed": 5, "number": 3,
        "sampling": {**trained_sampling, "num_steps": 3, "guidance_scale": 2.0},
    }  # fmt: skip
    assert (tmp_path / "a" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")
    assert len({path.read_bytes() for path in paths}) == 4
    alone = generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "b", tmp_path, GUIDED)
    one, other = (soundfile.read(path)[0] for path in (alone[0], paths[2]))
    np.testing.assert_allclose(one, other, atol=1e-2)  # an item's sound does not hang on the others', but for rounding
    assert np.abs(one).max() > 0.05
    with pytest.raises(UserError, match="give a prompt"):
        generation.generate_sounds(trained / "model", [], 1, 5, tmp_path / "c", tmp_path)


def test_nothing_is_made_that_cannot_be_written_or_heard(tmp_path, trained):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create this directory"):
        generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "file", tmp_path)
    with pytest.raises(UserError, match="log-mels are not finite"):
        generation.generate_sounds(
            trained / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path, ["num_steps=1", "guidance_scale=1e30"]
        )
    assert not list((tmp_path / "a").iterdir())
    arguments = ["generate", "a bell", "--family", "ddpm_mel", "--checkpoint", str(trained / "model")]
    done = CliRunner().invoke(commands.app, [*arguments, "--output", str(tmp_path / "a")])
    assert "a checkpoint of family 'tango', not 'ddpm_mel'" in done.output
    done = CliRunner().invoke(commands.app, ["generate", "a bell", "--family", "tagno"])
    assert "did you mean 'tango'" in done.output


def hifigan(spec: MelSpec) -> HifiGan:
    return HifiGan(VOICE, spec, build_vocoder(VOICE, spec.n_mels, spec.sample_rate).eval())


def diffwave(spec: MelSpec) -> DiffWave:
    return DiffWave(TINY, NOISE, FAST, spec, DiffWaveNet(TINY, spec).eval())


@pytest.mark.parametrize("build", [hifigan, diffwave])
def test_a_checkpoint_takes_its_vocoder_along(tmp_path, data, composed, build):
    """It must be there, and for these log-mels, before anything is trained."""
    document = json.loads(json.dumps(composed))
    document["tango"]["generate"]["sampling"]["vocoder"] = "trained"
    sampling = document["tango"]["train"]["sampling"] | {"vocoder": "trained"}
    shutil.copytree(data, tmp_path / "data")
    expected = {"sampling": sampling, "steps": 1, "accumulate": 1}
    with pytest.raises(SystemExit, match=r"no vocoder here .*choose one"):
        train(tmp_path, tmp_path / "data", composed, **expected)
    voice = build(SPEC.model_copy(update={"f_max": 7000.0}))
    save_vocoder(voice, tmp_path / "data" / "tango" / "vocoder", {"kind": "train"})
    with pytest.raises(SystemExit, match=r"for other spectrograms than these \(f_max 7000.0, not 8000.0\)"):
        train(tmp_path, tmp_path / "data", composed, **expected)
    shutil.rmtree(tmp_path / "data" / "tango" / "vocoder")
    voice.spec = SPEC
    save_vocoder(voice, tmp_path / "data" / "tango" / "vocoder", {"kind": "train"})
    train(tmp_path, tmp_path / "data", composed, **expected)
    shutil.rmtree(tmp_path / "data" / "tango")
    generate(tmp_path, tmp_path / "data", document)
    assert soundfile.info(tmp_path / "codec" / "held-0.wav").frames == 4000


def test_a_vocoder_that_the_checkpoint_lacks_is_not_replaced(tmp_path, trained, data, composed):
    document = json.loads(json.dumps(composed))
    document["tango"]["generate"]["sampling"]["vocoder"] = "trained"
    shutil.copytree(trained / "model", tmp_path / "model")
    with pytest.raises(SystemExit, match=r"this checkpoint has no vocoder: set sampling\.vocoder to `griffin_lim`"):
        generate(tmp_path, data, document)


def test_the_command_line_takes_a_prompt(tmp_path, trained):
    arguments = [
        "generate",
        "a dog barks, then rain",
        "--family",
        "tango",
        "--set",
        "num_steps=3",
        "--set",
        "guidance_scale=3",
        "-n",
        "2",
    ]
    arguments += ["--checkpoint", str(trained / "model"), "--output", str(tmp_path)]
    done = CliRunner().invoke(commands.app, arguments)
    assert done.exit_code == 0, done.output
    output = sorted(tmp_path.glob("*.wav"))
    assert [str(path) for path in output] == done.output.split()
    with soundfile.SoundFile(output[0]) as sound:
        assert json.loads(sound.comment)["prompt"] == "a dog barks, then rain"


def test_the_best_of_several_is_kept_by_clap(tmp_path, trained, monkeypatch):
    """Of 2 · 3 candidates two are kept, the very files that all six would have been; their names tell which."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    arguments = ["generate", "a bell", "--family", "tango", "--set", "num_steps=2", "--checkpoint", str(trained / "model")]
    best = [*arguments, "-n", "2", "--best-of", "3", "--output", str(tmp_path / "best")]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(commands.app, best)
    assert done.exit_code == 1
    assert f"model.safetensors, preprocessor_config.json and the tokenizer's files of {clap.NAME}" in done.output
    assert not (tmp_path / "best").exists()  # before any work

    clap_weights.write(tmp_path / clap.NAME)
    done = CliRunner().invoke(commands.app, best)
    assert done.exit_code == 0, done.output
    kept = sorted((tmp_path / "best").glob("*.wav"))
    assert [str(path) for path in kept] == done.output.split()
    assert [(int(path.stem[-3:]) - 1) // 3 for path in kept] == [0, 1]
    assert CliRunner().invoke(commands.app, [*arguments, "-n", "6", "--output", str(tmp_path / "all")]).exit_code == 0
    for path in kept:
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()
    done = CliRunner().invoke(commands.app, ["generate", "--best-of", "3", "--checkpoint", str(trained / "model")])
    assert "needs a prompt" in done.output


def test_the_text_encoder_must_be_the_one_it_was_trained_with(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text"]["scratch"]["seed"] = 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not the one this model was trained with"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 0, tmp_path / "sounds", tmp_path)


def test_a_checkpoint_of_another_architecture(tmp_path, trained, data, composed):
    shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["params"]["network"]["widths"] = [8, 8]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="do not fit the architecture"):
        generate(tmp_path, data, composed)
    (tmp_path / "model" / "unet.safetensors").write_bytes(b"torn")
    with pytest.raises(SystemExit, match="weights cannot be read"):
        generate(tmp_path, data, composed)


def test_starts_from_a_checkpoint_and_says_what_is_other(tmp_path, trained, data, composed, capfd):
    shutil.copytree(trained / "model", tmp_path / "before")
    for name, changed in (
        ("config.json", {"name": "theirs", "digest": "another"}),
        ("autoencoder/config.json", {"digest": "another"}),
    ):
        path = tmp_path / "before" / name
        config = json.loads(path.read_text())
        config.get("text", config).update(changed)
        path.write_text(json.dumps(config))
    train(tmp_path, data, composed, start_from="before", steps=1)
    said = capfd.readouterr().out
    assert "starts from last weights (step 4, held-out loss " in said
    assert "the text encoder changed from theirs to byt5-scratch: the network must adapt to it" in said
    assert "the autoencoder changed" in said
    network = {**composed["tango"]["train"]["network"], "blocks": 2}
    with pytest.raises(SystemExit, match=r"start_from: .*before: network\.blocks is 1 there and 2 here"):
        train(tmp_path, data, composed, start_from="before", network=network)


CONSTANT = {"learning_rate": 0.03, "decay": "none", "warmup_steps": 0}


def test_the_published_training_keeps_the_best_weights_and_sounds_are_made_by_them(tmp_path, data):
    """`scale=paper` with small nets: the best weights are the very ones of a training that ends there."""
    small = [change for change in SHRUNK if not change.startswith(("tango.train.steps", "tango.train.accumulate"))]
    smaller = ["text=byt5_scratch", "vocoder=griffin_lim", "tango.train.network.groups=8", "tango.train.network.blocks=1"]
    paper = params.compose(ROOT / "conf", ["scale=paper", *small, *smaller, "tango.train.accumulate=1"])
    optimiser = {**paper["tango"]["train"]["optimiser"], **CONSTANT}  # so fast that the last epoch is not the best
    (tmp_path / "best").mkdir()
    metrics = train(tmp_path / "best", data, paper, epochs=4, optimiser=optimiser)
    assert metrics["steps"] == 8
    best = metrics["best_step"]
    assert best % 2 == 0
    assert best < 8

    (tmp_path / "short").mkdir()
    short = train(tmp_path / "short", data, paper, epochs=None, steps=best, optimiser=optimiser)
    assert short["valid_loss"] == metrics["best_valid_loss"] < metrics["valid_loss"]
    kept = (tmp_path / "best/model/best.safetensors").read_bytes()
    assert kept == (tmp_path / "short/model/unet.safetensors").read_bytes()
    assert kept != (tmp_path / "best/model/unet.safetensors").read_bytes()
    paper["tango"]["generate"]["sampling"]["num_steps"] = 2
    generate(tmp_path / "best", data, paper)
    paper["tango"]["generate"]["use"] = "last"
    generate(tmp_path / "short", data, paper)
    output = [of_waves.sounds(tmp_path / name / "generated") for name in ("best", "short")]
    assert output[0] == output[1]
    assert len(output[0]) == 2


def test_there_is_no_best_without_held_out_clips(tmp_path, data, composed):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    about = read_about(tmp_path / "tango" / "latents" / "clips")
    write_latents(tmp_path / "tango" / "latents" / "clips", {k: v for k, v in CAPTIONS.items() if k != "held-0"}, about)
    with pytest.raises(SystemExit, match=r"train/tango: `use` is `best`, but the validation split has no clip"):
        train(tmp_path, tmp_path, composed, use="best")
    assert "valid_loss" not in train(tmp_path, tmp_path, composed)
    document = json.loads(json.dumps(composed))
    document["tango"]["generate"]["use"] = "best"
    with pytest.raises(SystemExit, match="has no best weights; set `use` to `last`"):
        generate(tmp_path, data, document)


@pytest.mark.slow
def test_two_devices_share_clips_and_mixes(tmp_path, data, composed):
    hardware = {**composed["tango"]["train"]["hardware"], "devices": 2}
    metrics = train(tmp_path, data, composed, hardware=hardware, steps=2, real_items=1)
    assert metrics["steps"] == 2
    assert json.loads((tmp_path / "model" / "config.json").read_text())["devices"] == 2


def test_its_cost_is_told_before_it_runs(composed):
    document = json.loads(json.dumps(composed))
    timing = cost.time_steps("tango", document, 0)
    key, few = cost.timing_key("tango", document, 0), cost.seconds(timing, "tango", document, 100)
    document["tango"]["train"]["steps"] = 4_000_000
    assert 0 < few < cost.seconds(timing, "tango", document, 100) / 1000
    assert cost.timing_key("tango", document, 0) == key
    document["tango"]["train"]["accumulate"] += 1
    assert cost.timing_key("tango", document, 0) != key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "one of steps and epochs"),
        ({"real_items": 0}, r"tango\.train\.real_items"),
        ({"mixed_itms": 1}, "did you mean 'mixed_items'"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, data, composed, changes, message):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path, data, composed, **changes)


def test_inputs_that_do_not_belong_together_are_refused(tmp_path, data, composed):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    mixes = tmp_path / "tango" / "latents" / "mixes"
    about = read_about(mixes)
    write_latents(mixes, MIXES, about.model_copy(update={"autoencoder": "another"}))
    with pytest.raises(SystemExit, match="latents of another autoencoder"):
        train(tmp_path, tmp_path, composed)
    write_latents(mixes, {}, about)
    with pytest.raises(SystemExit, match=r"no mixes, but train\.mixed_items is 1; set it to 0, or `mixup\.pairing`"):
        train(tmp_path, tmp_path, composed)
    write_latents(tmp_path / "tango" / "latents" / "clips", {**CAPTIONS, "clip-0": ["never encoded"]}, about)
    with pytest.raises(SystemExit, match="the state of caption 'never encoded' is missing"):
        train(tmp_path, tmp_path, composed, mixed_items=0)
    network = {**composed["tango"]["train"]["network"], "text_width": 8}
    with pytest.raises(SystemExit, match=r"16 wide; set train\.network\.text_width to that"):
        train(tmp_path, data, composed, network=network)
    network = {**composed["tango"]["train"]["network"], "widths": [8] * 5, "heads": [2] * 5}
    with pytest.raises(SystemExit, match="cannot be halved 4 times"):
        train(tmp_path, data, composed, network=network)


def test_without_mixes_it_trains_on_clips_alone(tmp_path, data, composed):
    metrics = train(tmp_path, data, composed, mixed_items=0, steps=None, epochs=3, accumulate=1, null_text="zeros")
    assert (metrics["mixes"], metrics["steps"]) == (0, 6)


def test_clips_without_any_caption_are_trained_on_without_mixes(tmp_path, data, composed):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    about = read_about(tmp_path / "tango" / "latents" / "clips")
    write_latents(tmp_path / "tango" / "latents" / "clips", {clip_id: [] for clip_id in CAPTIONS}, about)
    write_latents(tmp_path / "tango" / "latents" / "mixes", {}, about)
    metrics = train(tmp_path, tmp_path, composed)
    assert (metrics["mixes"], metrics["captions"]) == (0, 0)
