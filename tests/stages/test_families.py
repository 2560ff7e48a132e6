"""What every family keeps, one row for each way to train it: killed or not a training ends the same, its checkpoint alone makes the
same sounds, it starts from another, and what does not fit is refused before a step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
import torch

from soundmill import hashing, manifest, shards
from soundmill.evaluation import folders
from soundmill.models import adapted, generation, registry
from soundmill.models.family import Capability, Request, can
from soundmill.training import checkpoint
from tests.commands.running import soundmill, works
from tests.stages import of_waves
from tests.stages.components import REFUSALS, VOCODERS
from tests.stages.families import ROWS, STEPS, Trainings, mel_latents
from tests.stages.handling import tree
from tests.stages.of_waves import LABELS, config_of
from tests.training.doubling import Killed, die_before

SCORES = (".score_every_steps=2", ".score_requests=3", ".score_share=null")
VOICED = ("ddpm_mel", "diffwave"), ("tango", "diffwave"), ("audio_dit", "melgan")
BASIC = ("config.json", "best.safetensors", manifest.TRAINED_ON_FILE)


def rows(*names: str) -> list:
    """`make test` runs the first row of each family, `make test-all` all."""
    firsts = {ROWS[name].family: name for name in reversed(names)}.values()
    return [name if name in firsts else pytest.param(name, marks=pytest.mark.slow(minutes=0.1)) for name in names]


def load(home: Path, name: str):
    return registry.family(ROWS[name].family).load(home / "model")


def samples(content: bytes) -> np.ndarray:
    return np.frombuffer(content, "<i2").astype(int)


def test_every_family_has_a_row():
    assert {row.family for row in ROWS.values()} == set(registry.FAMILIES)


@pytest.mark.parametrize("name", rows(*ROWS))
def test_it_trains_on_what_the_stages_made(trainings: Trainings, name):
    row, home = ROWS[name], trainings.trained(name)
    metrics, config = trainings.metrics[name], config_of(home / "model")
    assert metrics.items() >= {"steps": STEPS, **row.told}.items()
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    curve = (home / "curve.csv").read_text().splitlines()
    assert curve[0].startswith("step,loss/train,loss/valid,learning_rate")
    assert [line.split(",")[0] for line in curve[1:]] == ["2", "4"]
    assert (home / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert config["family"] == row.family
    assert config["weights"]["last"] == {"step": STEPS, "valid_loss": metrics["valid_loss"]}
    assert config["weights"]["best"] == {"step": metrics["best_step"], "valid_loss": metrics["best_valid_loss"]}
    kept = {"step-2.safetensors"} if "keep_every_steps=2" in row.sizes else set()
    of_net = {adapted.CONFIG, adapted.WEIGHTS} if row.base else {registry.family(row.family).weights, *row.parts}
    assert set(tree(home / "model")) == {*BASIC, *of_net, *kept}
    told = shards.read_table(home / "model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    assert {row["source"] for row in told} == {"r.wav"}
    assert len({one["clip_id"] for one in told}) == metrics["clips"]


@pytest.mark.parametrize("name", rows(*(name for name, row in ROWS.items() if row.killed_before)))
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, trainings: Trainings, name, monkeypatch, capfd):
    """It is scored on the way, which changes no weight: the last are those of a training without scores."""
    row, unscored = ROWS[name], trainings.trained(name)
    whole = trainings.train(tmp_path / "whole", name, *SCORES)
    said = capfd.readouterr().out
    held_out = 2 if row.catalog == "two_held_out" else 1
    scored = 3 if "generate" in row.can else held_out  # a reconstruction for each clip
    assert f"every 2 steps the tagger scores {scored} sounds for {held_out} validation clips" in said
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_before(patch, row.killed_before)
        trainings.train(tmp_path / "killed", name, *SCORES)
    if row.base:  # states lack the weights of the base
        size = (trainings.trained(row.base) / "model" / registry.family(row.family).weights).stat().st_size
        assert 0 < max(path.stat().st_size for path in (tmp_path / "killed").rglob("last.ckpt")) < size
    assert trainings.train(tmp_path / "killed", name, *SCORES) == whole
    assert f"resuming at step 2 of {STEPS}" in capfd.readouterr().out
    assert whole.items() > trainings.metrics[name].items()
    assert whole["best_fad_step"] in (2, 4)
    assert 0 < whole["best_fad"] <= whole["score_fad_tagger"]
    assert whole["score_kl_tagger_low"] <= whole["score_kl_tagger"] <= whole["score_kl_tagger_high"]
    files, before = tree(tmp_path / "whole/model"), tree(unscored / "model")
    assert files.keys() - before.keys() == {"best_fad.safetensors"}
    assert {one for one in before if files[one] != before[one]} <= {"config.json"}
    for part in ("curve.csv", "grid.png"):
        assert (tmp_path / "whole" / part).read_bytes() == (unscored / part).read_bytes()
        assert (tmp_path / "killed" / part).read_bytes() == (unscored / part).read_bytes()
    assert tree(tmp_path / "killed/model") == files


@pytest.mark.parametrize("name", rows(*ROWS))
def test_the_checkpoint_alone_makes_the_sounds(tmp_path, trainings: Trainings, name):
    """Whatever `train` says today: the same sounds two and one at a time."""
    row, home, data = ROWS[name], trainings.copy(name, tmp_path), trainings.data(name)
    document = row.composed()
    del document[row.family]["train"]
    output = of_waves.generate(row.family, home, data, document)
    assert tuple(output) == row.test_clips
    rate, channels, length = row.model
    for clip in row.test_clips:
        info = soundfile.info(home / "generated" / clip)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (rate, channels, row.frames or length, "PCM_16")
        assert np.abs(samples(output[clip])).max() > 0
    assert output[row.test_clips[0]] != output[row.test_clips[1]]
    metrics = json.loads((home / "generate.json").read_text())
    by_itself, codec = "generate" in row.can, {"generate", "reconstruct"} <= row.can
    assert (metrics["generated"], metrics["conditioned"], metrics["codec"]) == (2, 2 * bool(row.prompt), int(codec))
    assert len(list((home / "codec").glob("*.wav"))) == codec
    about = json.loads((home / "generated" / manifest.ABOUT_SOUNDS).read_text())
    assert about["made_by"] == ("generate" if by_itself else "reconstruct")
    assert about["weights"].startswith(f"last weights (step {STEPS}, held-out loss ")
    made_by, kinds = about["checkpoint"], [b"/compositeWithTrainedAlgorithmicMedia", b"/trainedAlgorithmicMedia"]
    for path in [*(home / "generated").glob("*.wav"), *(home / "codec").glob("*.wav")]:
        assert soundfile.SoundFile(path).software == f"Soundmill, {row.family} checkpoint {made_by} (libsndfile)"
        assert kinds[by_itself and path.parent.name == "generated"] in path.read_bytes()
    assert folders.about(home / "generated").weights == about["weights"]
    if row.base:  # whose sounds are made beside these each time
        return
    for clip, alone in of_waves.generate(row.family, home, data, row.composed(f"{row.family}.generate.batch_size=1")).items():
        assert np.abs(samples(alone) - samples(output[clip])).max() <= row.rounding


@pytest.mark.parametrize("name", rows(*ROWS))
def test_a_checkpoint_is_a_model_that_can_what_it_says(tmp_path, trainings: Trainings, name):
    row, home = ROWS[name], trainings.trained(name)
    model, again = load(home, name), load(home, name)
    assert (model.sample_rate, model.channels, model.num_samples) == row.model
    assert {what for what in get_args(Capability) if can(model, what)} == row.can
    assert tuple(model.labels) == row.labels
    assert model.condition == ("labels" if row.labels else "caption" if row.prompt else "none")
    place, rate = ["--checkpoint", str(home / "model")], row.model[0]
    if "generate" in row.can:
        asked = Request((row.prompt,) if row.labels else (), "" if row.labels else row.prompt, seed=3)
        with generation.running(model, tmp_path) as run:
            waves, same = (one.generate([asked], run) for one in (model, again))
            other = model.generate([replace(asked, seed=4)], run)
        assert torch.equal(waves, same)
        assert not torch.equal(waves, other)
        done = works("generate", *([row.prompt] if row.prompt else []), "-n", "2", *place, "--output", "made", cwd=tmp_path)
        assert {soundfile.info(tmp_path / path).frames for path in done.stdout.split()} == {waves.shape[2]}
    sound = 0.1 * np.random.default_rng(0).standard_normal((3000, row.model[1]))
    soundfile.write(tmp_path / "some.wav", sound, rate)
    done = soundmill("reconstruct", "some.wav", *place, "--output", "back", cwd=tmp_path)
    if "reconstruct" in row.can:
        assert done.returncode == 0, done.stderr
        info = soundfile.info(tmp_path / "back/some.wav")
        assert (info.samplerate, info.channels, info.frames) == (rate, row.model[1], 3000)
    else:
        assert f"the family '{row.family}' cannot reconstruct; it can generate" in done.stderr.replace("\n", " ")


OF_ENCODINGS = rows(*(name for name, row in ROWS.items() if row.family in ("audio_dit", "ddpm_mel", "tango")))


@pytest.mark.parametrize("name", OF_ENCODINGS)
def test_inpainting_keeps_samples_and_hears_nothing_of_the_rest(tmp_path, trainings: Trainings, name):
    model = load(trainings.trained(name), name)
    waves = 0.1 * torch.randn(1, model.channels, 1500, generator=torch.Generator().manual_seed(0))
    other, kept = waves.clone(), torch.arange(1500) < 700
    other[..., 700:] = 0.5

    def inpainted(of: torch.Tensor, seed: int = 1) -> torch.Tensor:
        with generation.running(model, tmp_path, ["keep=[[0,700]]"]) as run:
            return model.transform(of, [Request(seed=seed)], run)

    found = inpainted(waves)
    assert torch.equal(found[..., kept], waves[..., kept])
    assert torch.equal(found, inpainted(other))
    assert not torch.equal(found[..., ~kept], inpainted(waves, seed=2)[..., ~kept])
    torch.testing.assert_close(found[..., 700], waves[..., 699], rtol=0.1, atol=2e-3)  # no click


@pytest.mark.parametrize("name", [*OF_ENCODINGS, "waveform_unet"])
def test_interpolation_ends_with_what_seeds_make_and_with_recordings(tmp_path, trainings: Trainings, name):
    model, ends = load(trainings.trained(name), name), (Request(seed=1), Request(seed=2))
    waves = 0.1 * torch.randn(2, model.channels, 1500, generator=torch.Generator().manual_seed(0))
    with generation.running(model, tmp_path, ["amount=0"]) as run:
        made = model.generate(ends, run)
        way = model.interpolate(ends, None, [0, 0.5, 1], run)
        torch.testing.assert_close(way[[0, 2]], made[..., : way.shape[2]])
        assert not any(torch.equal(way[1], end) for end in way[[0, 2]])
        mixed = model.interpolate(ends, waves, [0, 0.5, 1], run)
        torch.testing.assert_close(mixed[[0, 2]], model.transform(waves, ends, run))
    with generation.running(model, tmp_path, ["amount=0.5"]) as run:
        assert not torch.equal(model.interpolate(ends, waves, [0, 0.5, 1], run), mixed)


@pytest.mark.parametrize("name", OF_ENCODINGS)
def test_restyling_starts_from_the_recording(tmp_path, trainings: Trainings, name):
    model = load(trainings.trained(name), name)
    waves = 0.1 * torch.randn(2, model.channels, 1500, generator=torch.Generator().manual_seed(0))

    def restyled(amount: float, of: torch.Tensor = waves, **window: int) -> torch.Tensor:
        with generation.running(model, tmp_path, [f"amount={amount}"]) as run:
            return model.transform(of, [Request(seed=1, **window), Request(seed=2)], run)

    if ROWS[name].write is mel_latents:  # of log-mels whose peak is set
        torch.testing.assert_close(100 * restyled(0.0, of=waves / 100), restyled(0.0), rtol=0, atol=1e-3)
    else:
        with generation.running(model, tmp_path, ["amount=0"]) as run:
            torch.testing.assert_close(
                model.transform(waves, [Request()] * 2, run), model.reconstruct(waves, run), rtol=0, atol=1e-3
            )
    first, second = restyled(0.5), restyled(0.5, start=1000)
    assert not torch.equal(first, restyled(0.5, of=waves.flip(2)))
    assert not torch.equal(first[0], second[0])  # another window of the sound: other noise
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", rows(*(name for name, row in ROWS.items() if not row.base and row.killed_before)))
def test_it_starts_from_a_checkpoint(tmp_path, trainings: Trainings, name, capfd):
    """At a rate of nearly zero its weights stay; labels that are new get rows of their own."""
    row, first = ROWS[name], trainings.trained(name)
    still = [f".optimiser.{setting}" for setting in ("learning_rate=1e-12", "weight_decay=0.0")]
    still += [".steps=1", f".start_from={first}/model"]
    metrics = trainings.train(tmp_path, name, *still, catalog="more")
    said = capfd.readouterr().out
    assert f"starts from last weights (step {STEPS}, held-out loss " in said
    config = config_of(tmp_path / "model")
    assert config["started_from"]["checkpoint"] == hashing.tree_digest(first / "model")
    if row.labels:
        assert "new labels: kick" in said
        assert (metrics["labels"], config["labels"]) == (3, [*LABELS, "kick"])
    file = registry.family(row.family).weights
    before, after = (checkpoint.read_weights(home / "model" / file) for home in (first, tmp_path))
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key in ("levels", "level_labels"):  # which are measured of the clips
            continue
        of_labels = value.shape != after[key].shape
        assert not of_labels or after[key].shape[0] == value.shape[0] + 1
        if value.is_floating_point():
            torch.testing.assert_close(after[key][: len(value)] if of_labels else after[key], value)
    told = shards.read_table(tmp_path / "model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    assert {one["earlier"] for one in told} == {True, False}


@pytest.mark.parametrize(("name", "changes", "message"), REFUSALS["other"])
def test_a_start_that_does_not_fit_is_refused(tmp_path, trainings: Trainings, name, changes, message):
    row, start = ROWS[name], f".start_from={trainings.trained(name)}/model"
    data = trainings.data(name)
    if changes in (["mono"], ["rate"]):
        rate = 22_050 if changes == ["rate"] else row.model[0]
        of_waves.write(data := tmp_path / "data", rate)
        changes = []
    with pytest.raises(SystemExit, match=message):
        trainings.train(tmp_path / "home", name, start, *changes, data=data)
    assert not (tmp_path / "home/model").exists()
    for wrong, said in (("nowhere", r"no such directory"), ("foreign", f"a checkpoint of family 'other', not '{row.family}'")):
        if wrong == "foreign":
            shutil.copytree(trainings.trained(name) / "model", tmp_path / "foreign")
            (tmp_path / "foreign/config.json").write_text('{"family": "other"}')
        with pytest.raises(SystemExit, match=said):
            trainings.train(tmp_path / "home", name, f".start_from={tmp_path}/{wrong}")


@pytest.mark.parametrize(("name", "changes", "where", "message"), REFUSALS["families"])
def test_what_does_not_fit_is_refused_before_a_step(tmp_path, trainings: Trainings, name, changes, where, message):
    data = trainings.data(name)
    if where == "silent":
        of_waves.write(data := tmp_path / "data", *ROWS[name].model[:2], level=0.0)
    catalog = {"catalog": where} if where == "unlabelled" else {}
    with pytest.raises(SystemExit, match=message):
        trainings.train(tmp_path / "home", name, *changes, data=data, **catalog)
    assert not (tmp_path / "home/model").exists()


@pytest.mark.parametrize(
    "name", ["ddpm_mel", "tango", "audio_dit", "diffwave", "rave", "waveform_unet", "projected_gan", "upsampler"]
)
def test_weights_of_another_architecture_or_torn_are_refused(tmp_path, trainings: Trainings, name):
    row = ROWS[name]
    file = trainings.copy(name, tmp_path) / "model" / registry.family(row.family).weights
    weights = checkpoint.read_weights(file)
    key = max(weights, key=lambda one: weights[one].numel())
    checkpoint.write_weights({**weights, key: weights[key].flatten()[1:]}, file)
    with pytest.raises(SystemExit, match="do not fit the architecture"):
        of_waves.generate(row.family, tmp_path, trainings.data(name), row.composed())
    file.write_bytes(b"torn")
    with pytest.raises(SystemExit, match="weights cannot be read"):
        of_waves.generate(row.family, tmp_path, trainings.data(name), row.composed())


@pytest.mark.parametrize(
    ("name", "voice"), [("tango", "hifigan"), *(pytest.param(*one, marks=pytest.mark.slow(minutes=0.1)) for one in VOICED)]
)
def test_a_checkpoint_takes_its_vocoder_along(tmp_path, trainings: Trainings, name, voice):
    """It must be there, and for these log-mels, before anything is trained; then it makes the sounds, without its directory."""
    row, data = ROWS[name], tmp_path / "data"
    shutil.copytree(trainings.data(name), data)
    place = data / ("parts" if name == "ddpm_mel" else "inputs") / "vocoder"  # no part lies among log-mels
    named = [f"{row.family}.{part}.sampling.vocoder=trained" for part in ("train", "generate")]
    with pytest.raises(SystemExit, match=r"no vocoder here .*choose one"):
        trainings.train(tmp_path, name, ".steps=1", *named, data=data)
    with pytest.raises(SystemExit, match=r"this checkpoint has no vocoder: set sampling\.vocoder to `griffin_lim`"):
        of_waves.generate(row.family, trainings.copy(name, tmp_path / "without"), data, row.composed(*named))
    source = data if name == "ddpm_mel" else trainings.components.data(voice)
    mels = tmp_path / "mels"
    (mels / "inputs").mkdir(parents=True)
    shutil.copytree(data / "inputs" if name == "ddpm_mel" else source / "mels", mels / "mels")
    for one in ("clips", "catalog.parquet"):
        (mels / one).symlink_to(source / one)
    VOCODERS[voice].make(mels, mels, VOCODERS[voice].composed(".weights.steps=1"))
    shutil.copytree(mels / "inputs/vocoder", place)
    config = config_of(place)
    other = {**config, "mel_spec": {**config["mel_spec"], "f_max": 7000.0}}
    (place / "config.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"for other spectrograms than these \(f_max 7000\.0, not 8000\.0\)"):
        trainings.train(tmp_path, name, ".steps=1", *named, data=data)
    (place / "config.json").write_text(json.dumps(config))
    trainings.train(tmp_path, name, ".steps=1", *named, data=data)
    shutil.rmtree(place)
    assert (tmp_path / "model/vocoder/model.safetensors").read_bytes() == (mels / "inputs/vocoder/model.safetensors").read_bytes()
    output = of_waves.generate(row.family, tmp_path, data, row.composed(*named))
    shutil.rmtree(tmp_path / "generated"), shutil.rmtree(tmp_path / "codec")
    plain = of_waves.generate(row.family, tmp_path, data, row.composed(f"{row.family}.generate.sampling.vocoder=griffin_lim"))
    assert all(np.abs(samples(plain[clip]) - samples(output[clip])).max() > 100 for clip in output)
