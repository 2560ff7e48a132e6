"""Protocols, mistakes in which are named by key; two folders in, a result out; none of the mistakes of docs/evaluation.md."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill import params
from soundmill.audio.flac import write_wav
from soundmill.audio.resample import resample
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import cache, embedders, evaluator, features, folders, ladder, protocols
from soundmill.evaluation.cache import Facts
from soundmill.evaluation.protocols import ScoreSpec
from soundmill.metrics import scores
from tests import clap_weights, recorded
from tests.lost_bits import lose_a_bit

RATE = 16_000
TOOL_RATE = 44_100


def wave(seed: int, seconds: float = 1.6) -> np.ndarray:
    """A tone in noise, different for every seed."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * random.uniform(200, 2_000) * time) * np.exp(-3 * (time % 0.5))
    return (0.3 * tone + 0.01 * random.standard_normal(len(time))).astype(np.float32)


def put(root, names, first: int = 0):
    """Sounds of these names, in the formats of their suffixes."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = wave(first + index)
        if path.suffix == ".wav":
            write_wav(path, sound, RATE)
        else:
            soundfile.write(path, np.stack([sound, sound], axis=1) if path.suffix == ".ogg" else sound, RATE)
    return root


def protocol(*metrics: str, replicates: int = 20) -> protocols.Protocol:
    of = [ScoreSpec(metric=metric, embedder="yamnet") for metric in metrics or ("mmd", "kl")]
    return protocols.load("project").model_copy(update={"embedders": {"yamnet": {}}, "scores": of, "replicates": replicates})


@pytest.fixture
def setup(tmp_path, shared, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    return evaluator.Setup(protocol(), tmp_path / "cache", 1)


def test_folders_of_any_format_and_without_pairs(setup, tmp_path):
    put(tmp_path / "made", ["a.wav", "rain/b.flac", "rain/c.ogg", "x/y/d.mp3", "x/e.wav"])
    put(tmp_path / "real", [f"{index}.wav" for index in range(6)], 50)
    write_wav(tmp_path / "made" / "x" / "quiet.wav", np.zeros(20_000, np.float32), RATE)
    (tmp_path / "made" / "about.json").write_text("{}")
    setup = evaluator.Setup(protocol("fad", "mmd", "kl", "is"), setup.cache, 1)
    result = evaluator.evaluate(setup, tmp_path / "made", tmp_path / "real")
    metrics = result.metrics
    assert metrics["mmd_yamnet_low"] <= metrics["mmd_yamnet"] <= metrics["mmd_yamnet_high"]
    assert metrics["left_out"].keys() == {"fad_yamnet", "kl_yamnet"}
    assert metrics["left_out"]["kl_yamnet"] == "the folders have no ids in common"
    assert metrics["fad_yamnet"] is None
    assert "needs at least 50 reference sounds, not 6" in metrics["left_out"]["fad_yamnet"]
    assert not [key for key in metrics if key.startswith("kl_")]
    assert metrics["counts"] == {"generated": 6, "reference": 6, "pairs": 0, "silence": 6, "noise": 6}
    assert metrics["seconds"]["reference"] == pytest.approx(6 * 1.6)
    assert metrics["silent_share"] == pytest.approx(1 / 6, rel=1e-5)
    assert metrics["baselines"]["mmd_yamnet"].keys() == {"silence", "noise", "floor"}
    assert metrics["baselines"]["mmd_yamnet"]["noise"] > metrics["mmd_yamnet"]
    assert (metrics["protocol"], metrics["version"], metrics["resampler"]) == ("soundmill-3", 3, "soxr HQ")
    assert metrics["embedders"]["yamnet"]["weights"].startswith("10c95ea3eb9a")
    assert metrics["files"]["generated"] != metrics["files"]["reference"]
    message = "\n".join(metrics["warnings"])
    for text in ("16.7% of the generated sounds are silent", "kl_yamnet is left out", "1 .json"):
        assert text in message
    assert list(metrics["classes"]) == ["", "rain", "x"]
    assert metrics["classes"]["rain"]["generated"] == 2
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("kind", ["files", "nothing"])
def test_the_model_is_placed_among_degraded_real_sounds(setup, tmp_path, in_this_process, monkeypatch, kind):
    """Texture statistics of decaying tones: degraded ones are further away, and nothing is embedded twice."""
    few = kind == "nothing"
    output = put(tmp_path / "made", [f"a/{index}.wav" for index in range(5 if few else 10)])
    real = put(tmp_path / "real", [f"{'cat' if index % 3 else 'dog'}/{index}.wav" for index in range(24)], 50)
    of_texture = protocol("mmd").with_embedders(["texture"])
    setup = evaluator.Setup(of_texture, setup.cache, 1, ladder=["mmd", "coverage"])
    metrics = evaluator.evaluate(setup, output, real).metrics
    if few:
        assert "at least 8 generated" in metrics["left_out"]["ladder"]
        assert "ladder" not in metrics
        return
    found = metrics["ladder"]
    assert (found["clips"], found["missing_class"], list(found["scores"])) == (10, "cat", ["mmd_texture"])
    values = found["scores"]["mmd_texture"]
    assert values.keys() == {"generated", *ladder.RUNGS}
    assert values["real"] < values["pieces_50ms"] < values["noise_0db"]
    assert found["sentences"]["mmd_texture"].startswith(f"MMD (texture, 10 sounds) {values['generated']:.3g}: ")
    without = evaluator.evaluate(replace(setup, ladder=[]), output, real).metrics
    assert {key: metrics[key] for key in without} == without  # no score depends on it
    monkeypatch.setattr(features, "embed", None)
    assert evaluator.evaluate(setup, output, real).metrics == metrics


@pytest.mark.parametrize("metrics", [["fad"], ["coverage"]])
def test_nothing_is_degraded_for_metrics_that_are_not_measured(setup, tmp_path, in_this_process, monkeypatch, metrics):
    """A Fréchet distance from 24 reference sounds, and a metric that the protocol does not have."""
    output, real = (put(tmp_path / name, [f"{index}.wav" for index in range(24)], first) for name, first in (("a", 0), ("b", 50)))
    monkeypatch.setattr(features, "degraded", None)
    of_texture = protocol("mmd", "fad").with_embedders(["texture"])
    result = evaluator.evaluate(evaluator.Setup(of_texture, setup.cache, 1, ladder=metrics), output, real, unpaired=True).metrics
    assert f"none of its metrics ({metrics[0]}) can be measured" in result["left_out"]["ladder"]


def test_a_damaged_cache_changes_no_score_and_is_counted(setup, tmp_path, in_this_process):
    """tests/evaluation/test_features.py loses every bit."""
    output, real = put(tmp_path / "made", ["a.wav", "b.wav", "c.wav"]), put(tmp_path / "real", ["a.wav", "b.wav", "c.wav"], 20)
    setup = evaluator.Setup(protocol("mmd", "kl", replicates=2), setup.cache, 1)
    first = evaluator.evaluate(setup, output, real).metrics
    lose_a_bit(next(setup.cache.rglob("*.parquet")), 0.5)
    metrics = evaluator.evaluate(setup, output, real).metrics
    assert metrics["counts"].pop("damaged") == 1
    assert "cached embeddings were damaged" in metrics["warnings"].pop()
    assert metrics == first


def test_pairs_by_id_whatever_the_format(setup, tmp_path):
    output = put(tmp_path / "made", ["rain/a.wav", "rain/b.flac", "c.wav"])
    real = put(tmp_path / "real", ["c.flac", "rain/a.flac", "rain/b.wav"], 20)
    result = evaluator.evaluate(setup, output, real)
    assert result.metrics["counts"]["pairs"] == 3
    assert set(result.of["kl_yamnet"]) == {"rain/a", "rain/b", "c"}
    assert result.metrics["kl_yamnet"] == pytest.approx(np.mean(list(result.of["kl_yamnet"].values())), rel=1e-5)
    assert result.metrics["baselines"]["kl_yamnet"].keys() == {"silence", "noise"}
    alone = evaluator.evaluate(setup, output, real, unpaired=True)
    assert alone.metrics["left_out"] == {"kl_yamnet": "equal names are ignored (--unpaired)"}
    assert alone.metrics["mmd_yamnet"] == result.metrics["mmd_yamnet"]


def test_every_file_that_cannot_be_decoded_is_named_and_nothing_is_scored(setup, tmp_path):
    output = put(tmp_path / "made", ["a.wav", "b.wav", "c.wav"])
    real = put(tmp_path / "real", ["x.wav", "y.wav"], 9)
    (output / "b.wav").write_bytes((output / "b.wav").read_bytes()[:3000])
    (real / "list.mp3").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (real / "notes.m3u").write_text("#EXTM3U\nx.wav\n")  # by name and content no sound
    with pytest.raises(UserError) as error:
        evaluator.evaluate(setup, output, real)
    for path in (output / "b.wav", real / "list.mp3"):
        assert f"{path}: cannot be scored" in str(error.value)
    (output / "empty.wav").touch()  # which no decoder sees
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(UserError) as error:
        evaluator.evaluate(setup, output, real, training=tmp_path / "trained")
    for path in (output / "b.wav", real / "list.mp3", output / "empty.wav", tmp_path / "trained" / "gone.wav"):
        assert f"{path}: cannot be scored" in str(error.value)


def test_a_reference_of_one_sound_has_no_floor(tmp_path, setup):
    output = put(tmp_path / "made", [f"{index}.wav" for index in range(8)])
    real = put(tmp_path / "real", ["x.wav"], 9)
    pairwise = evaluator.Setup(protocol("kid", "mmd", "recall", "coverage"), setup.cache, 1)
    result = evaluator.evaluate(pairwise, output, real).metrics
    assert "mmd_yamnet" in result
    assert set(result["baselines"]["mmd_yamnet"]) == {"silence", "noise"}
    assert "1 clips are too few" in result["left_out"]["coverage_yamnet"]


def test_sounds_too_short_for_a_patch_are_counted_and_one_patch_poisons_nothing(setup, tmp_path):
    output = put(tmp_path / "made", [f"{index}.wav" for index in range(4)])
    real = put(tmp_path / "real", [f"r{index}.wav" for index in range(4)], 30)
    write_wav(output / "tiny.wav", wave(70, 0.3), RATE)
    write_wav(output / "one.wav", wave(71, 0.98), RATE)
    folder = folders.read(output, 1)
    (config,) = setup.configs
    (tiny,) = [sound for sound in folder.sounds if sound.clip_id == "tiny"]
    nothing = cache.Embedding(tiny.key, Facts(4_800, RATE, False, False, "t"), np.zeros((0, 1024)), np.zeros(521))
    cache.add(config.directory(setup.cache), [nothing])  # as an embedder that does not pad would say
    metrics = evaluator.evaluate(setup, output, real).metrics
    assert np.isfinite(metrics["mmd_yamnet"])
    assert metrics["counts"]["generated_too_short_yamnet"] == 1
    assert "1 of the generated sounds are too short for a patch of yamnet: tiny." in metrics["warnings"]
    assert metrics["embedders"]["yamnet"]["embeddings"]["generated"] == 4 * 2 + 1


def test_what_few_and_short_sounds_cannot_tell_is_left_out_and_said(setup, tmp_path):
    for folder, first in (("made", 0), ("real", 20)):
        for index in range(3):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_wav(tmp_path / folder / f"{folder}{index}.wav", wave(first + index, 1.0), RATE)  # of one patch each
    setup = evaluator.Setup(protocol("mmd", "kid"), setup.cache, 1)
    metrics = evaluator.evaluate(setup, tmp_path / "made", tmp_path / "real").metrics
    assert np.isfinite(metrics["mmd_yamnet"])
    assert "kid_yamnet" not in metrics
    assert "KID needs at least 4 embeddings" in metrics["left_out"]["kid_yamnet"]
    compared = evaluator.compare(setup, tmp_path / "made", tmp_path / "made", tmp_path / "real")
    assert compared["comparison"].keys() == {"mmd_yamnet"}
    assert compared["left_out"].keys() == {"kid_yamnet"}
    setup = evaluator.Setup(protocol("fad_per_clip", "kl"), setup.cache, 1)
    with pytest.raises(UserError, match="no score of protocol soundmill-3 can"):
        evaluator.evaluate(setup, tmp_path / "made", tmp_path / "real")


def test_one_of_two_sets_is_better(setup, tmp_path):
    names = [f"{index}.wav" for index in range(8)]
    good = put(tmp_path / "good", names, 100)
    real = put(tmp_path / "real", names, 200)
    for name in names:
        noise = np.random.default_rng(int(name[0])).uniform(-0.5, 0.5, 25_600).astype(np.float32)
        (tmp_path / "bad").mkdir(exist_ok=True)
        write_wav(tmp_path / "bad" / name, noise, RATE)
    setup = evaluator.Setup(protocol(replicates=200), setup.cache, 1)
    result = evaluator.compare(setup, good, tmp_path / "bad", real)
    assert result["comparison"]["mmd_yamnet"]["better"] == "a"
    assert result["comparison"]["kl_yamnet"]["difference"] < 0
    same = evaluator.compare(setup, good, good, real)
    assert same["comparison"]["mmd_yamnet"]["better"] == "neither"
    (tmp_path / "bad" / "about.json").write_text('{"family": "f", "made_by": "generate", "trained_against": ["yamnet"]}')
    compared = evaluator.compare(setup, good, tmp_path / "bad", real)
    assert {row["better"] for row in compared["comparison"].values()} == {"unranked"}
    assert compared["unranked"]["mmd_yamnet"] == "the model was trained against yamnet"
    assert evaluator.evaluate(setup, tmp_path / "bad", real).metrics["unranked"].keys() == {"mmd_yamnet", "kl_yamnet"}
    (tmp_path / "bad" / "3.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 8 in .*good have no partner in .*bad: 3\..*both models need the same names$"):
        evaluator.compare(setup, good, tmp_path / "bad", real)
    with pytest.raises(UserError, match="have no ids in common"):
        evaluator.compare(setup, good, put(tmp_path / "others", ["x.wav"]), real)
    with pytest.raises(UserError, match=r"no embedder of .* reads captions; add --embedder clap"):
        evaluator.evaluate(setup, good, real, captions=tmp_path / "captions.csv")


def test_reconstructions_are_at_a_distance_from_their_originals(setup, tmp_path):
    real = put(tmp_path / "real", ["a.wav", "b.wav", "c.wav"], 20)
    for path in real.iterdir():
        samples, rate = soundfile.read(path)
        louder = resample((0.5 * samples).astype(np.float32), rate, 24_000)
        (tmp_path / "made").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "made" / path.name, np.stack([louder, louder], axis=1), 24_000, subtype="FLOAT")
    setup = evaluator.Setup(protocol("kl"), setup.cache, 1)
    plain = evaluator.evaluate(setup, tmp_path / "made", real).metrics
    assert "lsd" not in plain
    result = evaluator.evaluate(setup, tmp_path / "made", real, reconstructions=True)
    metrics = result.metrics
    assert metrics["lsd"] == pytest.approx(20 * np.log10(2), rel=0.5)  # and the resampler took the highest bins
    assert metrics["lsd_low"] <= metrics["lsd"] <= metrics["lsd_high"]
    assert metrics["baselines"]["lsd"].keys() == metrics["baselines"]["mrstft"].keys() == {"silence", "noise"}
    assert metrics["lsd"] < min(metrics["baselines"]["lsd"].values())
    assert metrics["mrstft"] < min(metrics["baselines"]["mrstft"].values())
    assert result.of["lsd"].keys() == {"a", "b", "c"}
    # Sounds whose own record says that they are reconstructions need not be declared.
    (tmp_path / "made" / "about.json").write_text('{"family": "codec", "made_by": "reconstruct"}')
    assert evaluator.evaluate(setup, tmp_path / "made", real).metrics["lsd"] == metrics["lsd"]
    with pytest.raises(UserError, match="these are not reconstructions"):
        evaluator.evaluate(setup, put(tmp_path / "other", ["x.wav"]), real, reconstructions=True)


def test_metrics_that_silence_passes_rank_no_models(setup, shared, tmp_path):
    """Of real recordings: precision, density and the distance by clip find nothing wrong with silence."""
    recordings = sorted((shared / "data" / "esc10").rglob("*.ogg"))
    for index, path in enumerate(recordings[::3]):
        root = tmp_path / ("made" if index % 4 == 0 else "real")
        root.mkdir(exist_ok=True)
        shutil.copy(path, root / path.name)
    compared = protocol("fad", "fad_per_clip", "mmd", "precision", "recall", "density", "coverage", replicates=0)
    metrics = evaluator.evaluate(evaluator.Setup(compared, setup.cache, 1), tmp_path / "made", tmp_path / "real").metrics
    assert metrics["counts"]["reference"] >= 50
    assert metrics["baselines"]["precision_yamnet"]["silence"] == 1.0
    unfit = {"precision_yamnet", "density_yamnet", "fad_per_clip_yamnet"}
    assert {key for key, why in metrics["unranked"].items() if why.startswith("unfit for these sets: silence")} == unfit
    assert metrics["unranked"].keys() == unfit
    assert all(isinstance(metrics[key], float) for key in unfit)


@pytest.mark.slow
def test_sounds_and_prompts_belong_together_by_id(tmp_path, monkeypatch, in_this_process):
    clap_weights.write(tmp_path / "weights" / "laion/clap-htsat-unfused")
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path / "weights"))
    output = put(tmp_path / "made", ["a.wav", "b.wav", "c.wav"])
    real = put(tmp_path / "real", ["x.wav", "y.wav"], 9)
    prompts = {"c": "rain", "a": "a dog barks", "b": "rain, then thunder"}
    lines = [f'{name},"{text}"' for name, text in prompts.items()]  # in another order than the files
    (tmp_path / "captions.csv").write_text("\n".join(["id,caption", *lines]))
    score = [ScoreSpec(metric="clap_score", embedder="clap")]
    chosen = protocol().model_copy(update={"embedders": {"clap": {}}, "scores": score})
    setup = evaluator.Setup(chosen, tmp_path / "cache", 1)
    result = evaluator.evaluate(setup, output, real, captions=tmp_path / "captions.csv")
    network = embedders.load("clap", None)
    for name, text in prompts.items():
        sound = resample(decode.read_mono(output / f"{name}.wav", RATE, features.MAX_SECONDS), RATE, network.sample_rate)
        assert result.of["clap_score"][name] == pytest.approx(float(network.similarity([text], [sound])[0]), abs=1e-5)
    assert result.metrics["clap_score"] == pytest.approx(np.mean(list(result.of["clap_score"].values())), rel=1e-4)
    assert result.metrics["baselines"]["clap_score"].keys() == {"silence", "noise"}
    with pytest.raises(UserError, match=r"clap_score: no prompts are given \(--captions\)"):
        evaluator.evaluate(setup, output, real)


def waves_of(kind: str) -> dict[str, np.ndarray]:
    """Four stereo sounds, one of them short and one quiet."""
    lengths = {"a": (1.2, 1.0), "b": (0.4, 1.0), "c": (1.0, 0.03), "d": (1.4, 0.7)}
    heard = {name: (recorded.sound(kind, seconds, TOOL_RATE), level) for name, (seconds, level) in lengths.items()}
    return {name: np.outer(wave, [level, level / 2]) for name, (wave, level) in heard.items()}


def write_stereo(directory: Path, kind: str) -> Path:
    directory.mkdir()
    for name, wave in waves_of(kind).items():
        soundfile.write(directory / f"{name}.wav", wave, TOOL_RATE, subtype="FLOAT")
    return directory


@pytest.mark.slow(minutes=0.4)
def test_stable_audio_metrics(tmp_path, monkeypatch, in_this_process, capsys):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    for name in ("openl3_env", "passt"):
        recorded.publish(name, tmp_path, monkeypatch)
    chosen = protocols.load("stable-audio-metrics")
    without_texts = {
        "embedders": {name: options for name, options in chosen.embedders.items() if name != "clap_music_speech"},
        "scores": [score for score in chosen.scores if score.embedder != "clap_music_speech"],
        "replicates": 20,
    }
    setup = evaluator.Setup(chosen.model_copy(update=without_texts), tmp_path / "cache", 1)
    result = evaluator.evaluate(setup, write_stereo(tmp_path / "generated", "noise"), write_stereo(tmp_path / "real", "hum"))
    expected = dict(zip("abcd", recorded.said("stable_audio_metrics")["reverse_kl"], strict=True))
    assert result.of["reverse_kl_passt"] == pytest.approx(expected, rel=1e-3)
    assert result.metrics["fd_openl3_env"] is None
    assert "at least 50 reference sounds" in result.metrics["left_out"]["fd_openl3_env"]
    assert result.metrics["embedders"]["openl3_env"] | {"weights": ""} == {
        "weights": "",
        "hop": 0.5,
        "channels": 2,
        "embeddings": {"generated": 3 + 1 + 2 + 3, "reference": 9},
    }
    assert (result.metrics["protocol"], result.metrics["level"]) == ("stable-audio-metrics-1", "peak")
    evaluator.show(result.metrics)
    printed = capsys.readouterr().out
    assert "= fd_openl3_env: FD-OpenL3 of stable-audio-metrics" in printed
    assert "= reverse_kl_passt: KL-PaSST of stable-audio-metrics, not that of av-benchmark" in printed


@pytest.mark.parametrize("name", protocols.NAMES)
def test_every_protocol_can_be_read(name):
    result = protocols.load(name)
    assert result.name == name
    assert result.label.endswith(f"-{result.version}")
    assert result.parity
    assert len({score.key for score in result.scores}) == len(result.scores)
    fad, limit = ({score.embedder for score in result.scores if score.metric == metric} for metric in ("fad", "fad_inf"))
    assert fad == limit  # FAD stands beside its limit


def test_the_command_and_the_stage_score_by_the_same_metrics():
    project = protocols.load("project")
    assert project.label == "soundmill-3"
    assert protocols.PROJECT == project.name
    assert project.with_embedders(list(project.embedders)) == project  # as the stage chooses them


def changed(tmp_path: Path, **changes: object) -> str:
    document = params.read_yaml(protocols.DIRECTORY / "google-fad.yaml") | {"name": "mine"} | changes
    path = tmp_path / "mine.yaml"
    params.write_yaml({key: value for key, value in document.items() if value != "gone"}, path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"replicatse": 5}, "replicatse: unknown key; did you mean 'replicates'"),
        ({"seed": "gone"}, "seed: missing"),
        ({"version": 1.5}, "version: "),
        ({"label": "google-fad"}, "label: 'google-fad' does not end with the version, -1"),
        ({"scores": [{"metric": "fadd", "embedder": "vggish"}]}, "scores.0.metric: .*unknown metric 'fadd'; did you mean 'fad'"),
        ({"scores": [{"metric": "fad", "embedder": "vgish"}]}, "scores.0.embedder: .*unknown embedder 'vgish'"),
        ({"scores": [{"metric": "kl", "embedder": "vggish"}]}, "scores.0: .*kl needs a classifier, not vggish"),
        ({"scores": [{"metric": "fad_per_clip", "embedder": "clap"}]}, "fad_per_clip needs several embeddings per clip, not clap"),
        ({"scores": [{"metric": "fad", "embedder": "audiobox"}]}, "fad needs embeddings, not audiobox"),
        ({"scores": [{"metric": "production_quality", "embedder": "vggish"}]}, "production_quality needs a predictor of ratings"),
        ({"scores": [{"metric": "clap_score", "embedder": "vggish"}]}, "clap_score needs embeddings of texts"),
        ({"scores": [{"metric": "fad", "embedder": "vggish"}] * 2}, "scores: fad_vggish is listed twice"),
        ({"embedders": {"vggish": {}, "yamnet": {}}}, "embedders: yamnet must be listed here and in a score"),
        ({"embedders": {"vggsh": {}}}, "embedders.*: .*unknown embedder 'vggsh'; did you mean 'vggish'"),
        ({"resampler": "sox"}, "resampler: .*'soxr HQ'"),
        ({"parity": []}, "parity: "),
        ({"name": "other"}, "name: 'other' differs from the file's name, 'mine'"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(tmp_path, changes, named):
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{named}"):
        protocols.load(changed(tmp_path, **changes))


def test_an_own_file_is_a_protocol_too_and_what_is_none_is_named(tmp_path):
    result = protocols.load(changed(tmp_path, seed=7))
    assert (result.name, result.seed) == ("mine", 7)
    with pytest.raises(UserError, match="no protocol or file 'fadtk-vgish'; did you mean 'fadtk-vggish'"):
        protocols.load("fadtk-vgish")
    with pytest.raises(UserError, match=r"no protocol or file '.*absent\.yaml'; there are"):
        protocols.load(str(tmp_path / "absent.yaml"))


def test_other_embedders_score_by_the_metrics_they_support():
    result = protocols.load("project").with_embedders(["vggish", "clap", "panns_cnn14_16k"])
    keys = [score.key for score in result.scores]
    assert {"fad_vggish", "kl_panns_cnn14_16k", "is_panns_cnn14_16k", "clap_score", "coverage_clap"} < set(keys)
    assert not {"kl_vggish", "is_clap", "clap_score_vggish"} & set(keys)
    assert list(result.embedders) == ["vggish", "clap", "panns_cnn14_16k"]
    with pytest.raises(UserError, match="no embedder 'vgish'; did you mean 'vggish'"):
        result.with_embedders(["vgish"])


def test_ratings_are_all_that_a_predictor_of_ratings_gives():
    result = protocols.load("project").with_embedders(["audiobox", "vggish"])
    keys = [score.key for score in result.scores]
    assert keys[:4] == [f"{name}_audiobox" for name in scores.RATINGS]
    assert not any(key.endswith("_audiobox") for key in keys[4:])
    assert embedders.find("audiobox").ratings == list(scores.RATINGS)


def test_all_metrics_can_be_asked_for():
    requested = {score.metric for score in protocols.load("project").with_embedders([*embedders.NAMES]).scores}
    assert requested == set(scores.METRICS) - {"fd", "reverse_kl", "exact_kl", "kad"}  # variants, for other tools' protocols
