"""Train and generate of the family `audio_dit` on the real configuration, shrunk: kills, lengths, conditions, what does not fit."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import soundfile
import torch

from soundmill import manifest, params, shards
from soundmill.errors import UserError
from soundmill.models import adapted, generation, merging, registry
from soundmill.models.audio_dit import windows
from soundmill.models.audio_dit.network import Conditions
from soundmill.models.family import Request
from soundmill.training import checkpoint
from tests.imports import ROOT
from tests.stages import of_waves, tango_inputs
from tests.training.killing import Killed, die_before

SHRUNK = [
    "model=audio_dit",
    "text.audio_dit.scratch.width=16",
    "text.audio_dit.max_tokens=8",
    "audio_dit.train.steps=4",
    "audio_dit.train.batch_size=2",
    "audio_dit.train.log_every_steps=1",
    "audio_dit.train.validate_every_steps=2",
    "audio_dit.train.validate_batches=2",
    "audio_dit.train.checkpoint_seconds=0",
    "audio_dit.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "audio_dit.train.network.layers=1",
    "audio_dit.train.network.heads=2",
    "audio_dit.train.network.head_width=8",
    "audio_dit.train.network.key_heads=1",
    "audio_dit.train.network.condition_width=8",
    "audio_dit.train.grid.columns=2",
    "audio_dit.train.sampling.num_steps=2",
    "audio_dit.train.sampling.griffin_lim_iterations=2",
    "audio_dit.generate.codec_count=1",
]
SHORT = 3000  # samples of the sound in test-0's clip of 4,000


def composed(*changes: str) -> dict:
    return params.compose(ROOT / "conf", [*SHRUNK, *(f"audio_dit.train.{change}" for change in changes)])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    home = tango_inputs.write(tmp_path_factory.mktemp("inputs"))
    path = home / "catalog.parquet"
    rows = shards.read_table(path, manifest.CATALOG).to_pylist()
    for number, row in enumerate(rows):
        row.update(seconds=(SHORT if row["clip_id"] == "test-0" else 4000) / 16_000, labels=[of_waves.LABELS[number % 2]])
    path.unlink()
    shards.write_rows(rows, path, manifest.CATALOG)
    return home


def train(home: Path, data: Path, document: dict) -> dict:
    return of_waves.train("audio_dit", home, data, document, parts="tango", inputs="tango")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    home = tmp_path_factory.mktemp("whole")
    train(home, data, composed())
    return home


def test_trains_on_latents_and_states_alone(trained):
    metrics = json.loads((trained / "train.json").read_text())
    assert (metrics["clips"], metrics["captions"], metrics["steps"]) == (4, 5, 4)
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    config = json.loads((trained / "model/config.json").read_text())
    assert (config["family"], config["frames"], config["seconds"], config["labels"]) == ("audio_dit", 32, 0.25, [])
    assert config["text"]["name"] == "byt5-scratch"
    files = {path.relative_to(trained / "model").as_posix() for path in (trained / "model").rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "transformer.safetensors", "best.safetensors", "trained_on.parquet"),
        *("autoencoder/config.json", "autoencoder/model.safetensors"),
    }
    model = registry.family("audio_dit").load(trained / "model")
    # The clips' latents are 0, 1, 2 and 3, with a posterior's variance of exp(−4), times the codec's 0.5.
    torch.testing.assert_close(model.layout.mean, torch.full((32,), 0.75))
    torch.testing.assert_close(model.layout.deviation, torch.full((32,), 0.5 * (1.25 + 0.0183156) ** 0.5))


@pytest.mark.parametrize(
    "changes", [[], ["condition=label", "flow.objective=v", "flow.times=uniform", "accumulate=2"]], ids=["caption", "label"]
)
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, data, monkeypatch, capfd, changes):
    where = {"parts": "tango", "inputs": "tango"}
    of_waves.check_resuming("audio_dit", tmp_path, data, composed(*changes), monkeypatch, **where)
    assert "resuming at step" in capfd.readouterr().out


def test_generates_for_test_clips_as_long_as_they_are(tmp_path, trained, data):
    shutil.copytree(trained / "model", tmp_path / "model")
    document = composed("network.layers=3")  # today's; the checkpoint has its own
    output = of_waves.generate("audio_dit", tmp_path, data, document)
    assert list(output) == ["test-0.wav", "test-1.wav"]
    waves = {name: soundfile.read(tmp_path / "generated" / name)[0] for name in output}
    assert {len(wave) for wave in waves.values()} == {4000}
    assert not waves["test-0.wav"][SHORT:].any()  # as the clip is padded
    assert waves["test-0.wav"][SHORT - 200 : SHORT].any()
    assert waves["test-1.wav"][SHORT:].any()
    assert soundfile.info(next((tmp_path / "codec").glob("*.wav"))).frames == 4000
    assert of_waves.generate("audio_dit", tmp_path, data, document) == output


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.32, 0.7, 1.0])
def test_sounds_have_the_length_asked_for(tmp_path, trained, seconds):
    """The longest training clip's is 0.25 s, that of the latents 0.32 s; longer ones are made of windows."""
    settings = [f"seconds={seconds}", "num_steps=2"]
    (path,) = generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path, settings)
    assert soundfile.info(path).duration == pytest.approx(seconds, abs=1e-4)


def test_a_longer_sound_goes_on_from_the_shorter_one(tmp_path, trained):
    """Window by window: the first is the sound of the trained length, and no later one changes what is there."""
    model = registry.family("audio_dit").load(trained / "model")
    with generation.running(model, tmp_path) as run:
        longest = model.generate([Request(caption="a bell", seed=3, seconds=0.8)], run)
        beside = model.generate([Request(caption="rain falls", seed=4), Request(caption="a bell", seed=3, seconds=0.8)], run)
        lengths = [4000, 6400, 12_800]
        x0 = [windows.sample(model, [Request(caption="a bell", seed=3)], [length], run)[0] for length in lengths]
    assert longest.shape == (1, 1, 12_800)
    assert beside.shape == (2, 1, 12_800)
    assert beside[0, 0, 3800:4000].any()
    assert not beside[0, 0, 4000:].any()
    # Latents are 320 samples and windows 16 of them, of which 12 lie within 4,000 samples.
    assert [windows.window_starts(length, model, 0.25) for length in lengths] == [[0], [0, 8], [0, 9, 18, 27, 28]]
    assert [latents.shape[1] for latents in x0] == [16, 24, 44]
    assert torch.equal(x0[1][:, :12], x0[0][:, :12])
    assert torch.equal(x0[2][:, :12], x0[0][:, :12])


class Trained(torch.nn.Module):
    """What a net learns whose clips last up to 4,000 samples: latents of 1, and after the clip's end, which is told, of 0."""

    def __init__(self, objective: str):
        super().__init__()
        self.objective, self.ends = objective, []

    def forward(self, xt: torch.Tensor, t: torch.Tensor, *told: torch.Tensor) -> torch.Tensor:
        seconds = Conditions(*told).seconds
        assert not seconds[:, 0].any()
        self.ends += seconds[:, 1].tolist()
        latents = (16_000 * seconds[:, 1:].double()).clamp(max=4000) / 320
        x0 = (torch.arange(1, xt.shape[2] + 1) <= latents + 1e-3).float()[:, None]
        if self.objective == "rectified_flow":
            return (xt - x0) / t[:, None, None]
        alpha, sigma = (function(t * torch.pi / 2)[:, None, None] for function in (torch.cos, torch.sin))
        return (alpha * xt - x0) / sigma


@pytest.mark.parametrize(
    ("objective", "solver"),
    [
        ("rectified_flow", "euler"),
        ("rectified_flow", "midpoint"),
        ("rectified_flow", "pingpong"),
        ("v", "euler"),
        ("v", "dpm++_sde"),
    ],
)
def test_no_sound_has_a_gap_or_a_silent_end(tmp_path, trained, objective, solver):
    """The net is told no length that no training clip had, and each window ends within what it is told."""
    model = registry.family("audio_dit").load(trained / "model")
    model.net = Trained(objective)
    flow = model.params.flow.model_copy(update={"objective": objective})
    model.params = model.params.model_copy(update={"flow": flow})
    lengths = [4000, 3000, 4100, 6400, 12_800, 16_000]
    assert model.num_samples == lengths[0]  # of sounds that name no length
    with generation.running(model, tmp_path, [f"solver={solver}", "num_steps=12"]) as run:
        x0 = windows.sample(model, [Request(seed=number) for number, _ in enumerate(lengths)], lengths, run)
    for latents, length in zip(x0, lengths, strict=True):
        torch.testing.assert_close(latents[:, : length // 320], torch.ones(32, length // 320), atol=1e-2, rtol=0)
    assert max(model.net.ends) == 0.25
    assert sorted({round(16_000 * end) for end in model.net.ends}) == [3000, 4000]


def test_by_label_or_by_nothing(tmp_path, data):
    train(tmp_path / "label", data, composed("condition=label", "steps=1"))
    model = registry.family("audio_dit").load(tmp_path / "label/model")
    assert (model.condition, list(model.labels), model.text) == ("labels", ["bell", "rain"], None)
    paths = generation.generate_sounds(tmp_path / "label/model", ["rain"], 2, 5, tmp_path / "a", tmp_path)
    assert len(paths) == 2
    train(tmp_path / "none", data, composed("condition=none", "steps=1"))
    assert len(generation.generate_sounds(tmp_path / "none/model", [], 1, 5, tmp_path / "b", tmp_path)) == 1
    train(tmp_path / "both", data, composed("condition=caption_and_label", "dropout.condition=0.5", "steps=1"))
    both = registry.family("audio_dit").load(tmp_path / "both/model")
    assert (both.condition, list(both.labels), both.text is None) == ("caption", ["bell", "rain"], False)
    asked = [("a bell", ()), ("a bell", ("rain",)), ("", ("rain",))]
    for weight in both.net.parameters():  # those that start at zero would hide the conditions
        torch.nn.init.normal_(weight, std=0.3)
    with generation.running(both, tmp_path, ["guidance_scale=1"]) as run:
        waves = both.generate([Request(labels, caption, seed=0) for caption, labels in asked], run)
    assert not any(torch.equal(one, other) for one, other in combinations(waves, 2))
    (path,) = generation.generate_sounds(tmp_path / "both/model", ["a bell"], 1, 5, tmp_path / "c", tmp_path, labels=["rain"])
    assert path.name == "a-bell-rain-5-001.wav"
    shown = json.loads((tmp_path / "both/model/config.json").read_text())["prompts"]
    assert all(one["caption"] and one["labels"] for one in shown)
    begun = composed("condition=label", "steps=1", f"start_from={tmp_path}/label/model")
    assert train(tmp_path / "more", data, begun)["steps"] == 1
    other = composed("condition=caption", "steps=1", f"start_from={tmp_path}/label/model")
    with pytest.raises(SystemExit, match="condition"):
        train(tmp_path / "other", data, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["network.key_heads=2", "network.heads=3"], "key_heads 2 must divide the 3 heads"),
        (["dropout.all=0.0"], r"guidance_scale needs a network trained without conditions too: raise dropout\.all"),
        (["condition=caption_and_label"], r"caption_and_label needs dropout\.condition above 0"),
        (["flow.objective=v", "sampling.solver=pingpong"], "solver pingpong is for flow.objective rectified_flow"),
        (["flow.objective=v", "flow.base_frames=16"], "base_frames is for objective rectified_flow"),
        (["hardware.devices=3"], r"batch_size 2 must be a multiple of hardware\.devices"),
        (["network.text_width=20"], r"text states are 16 wide; set train\.network\.text_width to that, it is 20"),
        (["sampling.vocoder=trained"], "no vocoder here"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step(tmp_path, data, changes, message):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path, data, composed(*changes))
    assert not (tmp_path / "model").exists()


def test_latents_of_another_codec_and_clips_without_captions_are_refused(tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    shards.write_rows([{**row, "captions": []} for row in rows], tmp_path / "data/plain.parquet", manifest.CATALOG)
    with pytest.raises(SystemExit, match=r"no clip has a caption; set audio_dit\.train\.condition to `none` or `label`"):
        of_waves.train("audio_dit", tmp_path / "a", tmp_path / "data", composed(), "plain.parquet", parts="tango", inputs="tango")
    path = tmp_path / "data/tango/autoencoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "another"}))
    with pytest.raises(SystemExit, match="latents of another autoencoder than in"):
        train(tmp_path / "b", tmp_path / "data", composed())


def test_a_checkpoint_whose_latents_do_not_fit_is_refused(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.0]}))
    with pytest.raises(UserError, match="mean and deviation must have 32 values, one a channel"):
        registry.family("audio_dit").load(tmp_path / "model")


def test_adapters_of_the_transformer_train_killed_or_not_and_merge(tmp_path, trained, data, capfd, monkeypatch):
    lora = {"rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": ["to_q", "to_k", "to_v", "to_out.0"], "dora": False}
    quick = ["optimiser.learning_rate=0.1", "optimiser.warmup_steps=0"]  # to be heard after four steps
    document = composed(f"start_from={trained / 'model'}", *quick)
    document["audio_dit"]["train"]["lora"] = lora
    homes = [tmp_path / name for name in ("unbroken", "killed")]
    whole = train(homes[0], data, document)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_before(patch, 3)
        train(homes[1], data, document)
    assert train(homes[1], data, document) == whole
    assert "resuming at step" in capfd.readouterr().out
    own, merged = homes[0] / "model", tmp_path / "merged"
    files = {path.name for path in own.iterdir()}
    assert files == {"config.json", adapted.CONFIG, adapted.WEIGHTS, "best.safetensors", "trained_on.parquet"}
    for name in files:
        assert (own / name).read_bytes() == (homes[1] / "model" / name).read_bytes(), name
    assert whole["trained_parameters"] == sum(value.numel() for value in checkpoint.read_weights(own / adapted.WEIGHTS).values())

    merging.write_whole(own, merged)
    sounds = []
    for directory in (trained / "model", own, merged):
        model = registry.family("audio_dit").load(directory)
        with generation.running(model, tmp_path) as run:
            sounds.append(model.generate([Request(caption="rain", seed=3)], run))
    torch.testing.assert_close(sounds[2], sounds[1], atol=1e-4, rtol=0)
    assert (sounds[1] - sounds[0]).abs().max() > 1e-3

    shutil.copytree(trained / "model", tmp_path / "base")
    path = tmp_path / "base/autoencoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))
    document["audio_dit"]["train"]["start_from"] = str(tmp_path / "base")
    text = path.read_text()
    path.write_text(text.replace('"scaling_factor": 0.5', '"scaling_factor": 0.25'))
    assert path.read_text() != text
    train(tmp_path / "all", data, composed(f"start_from={tmp_path / 'base'}", "steps=1"))
    assert registry.family("audio_dit").load(tmp_path / "all/model").layout.scaling_factor == 0.5  # of the codec it is with
    with pytest.raises(SystemExit, match=r"lora: the autoencoder is not that of .*weights\.steps to 0"):
        train(tmp_path / "other", data, document)
