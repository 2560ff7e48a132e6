"""Mel specs compared by the sounds that come back from them, with the real inversion, embedder and probe."""

import numpy as np
import pytest

from soundmill import clips, spectrograms
from soundmill.audio import mel
from soundmill.audio.flac import encode_flac
from soundmill.errors import UserError
from soundmill.evaluation import protocols
from soundmill.evaluation.library import Setup
from soundmill.models.components.contracts import GriffinLimParams
from tests.mels import spec_with
from tests.prepared import RATE, prepare

PLAIN = GriffinLimParams(griffin_lim_iterations=16, griffin_lim_momentum=0.9, griffin_lim_grain="none")
SPECKLE = PLAIN.model_copy(update={"griffin_lim_grain": "speckle"})
SPEC = spec_with(sample_rate=RATE, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=0.0, f_max=8000.0, peak=None)
LABELS = ("noise", "tone")
ROWS = [(f"clip{number:02d}_0", "valid" if number < 2 else "train", [], [LABELS[number % 2]]) for number in range(12)]


def wave(number: int) -> np.ndarray:
    """A second of noise, louder and softer four times a second, or of a steady tone."""
    time = np.arange(RATE) / RATE
    if number % 2:
        return (0.3 * np.sin(2 * np.pi * (300 + 70 * number) * time)).astype(np.float32)
    noise = np.random.default_rng(number).standard_normal(RATE)
    return (0.1 * noise * (1 + np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def setup(tmp_path, shared, monkeypatch, embedder="yamnet"):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    protocol = protocols.load("project").with_embedders([embedder]).model_copy(update={"replicates": 20})
    (tmp_path / "cache").mkdir()
    return Setup(protocol, tmp_path / "cache", 1)


@pytest.mark.parametrize("text", ["64x1024/160", "40x512:400/128", "64x1024/157"])
def test_a_spec_is_read_and_written_by_its_sizes(text):
    spec = spectrograms.parse_spec(text, SPEC)
    assert spectrograms.short(spec) == text
    sizes = {"n_mels", "n_fft", "win_length", "hop_length"}
    assert spec.model_dump(exclude=sizes) == SPEC.model_dump(exclude=sizes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64", "expected BANDSxN_FFT/HOP"),
        ("64x1024:0/256", "win_length: .*greater than or equal to 16"),
        ("64x1024/0", "hop_length: .*greater than or equal to 1"),
        ("64x512:600/128", "win_length 600 must not exceed n_fft 512"),
        ("64x128/32", "7 of 64 bands contain no FFT bin.* raise n_fft"),
        ("64x1024:400/201", "hop_length 201 must be at most half of win_length 400"),
    ],
)
def test_a_spec_that_cannot_be_inverted_is_refused_by_its_option(text, message):
    base = spec_with(**SPEC.model_dump() | {"mel_scale": "htk"})
    with pytest.raises(UserError, match=f"^--spec {text}.*{message}"):
        spectrograms.parse_spec(text, base)


def test_the_neighbours_of_a_spec_can_all_be_inverted():
    sizes = [spectrograms.short(spec) for spec in spectrograms.around(SPEC)]
    assert sizes == ["64x1024/160", "64x1024/320", "64x1024/80", "64x1024:512/160", "80x1024/160", "128x1024/160"]
    longest = SPEC.model_copy(update={"hop_length": 512})  # neither a longer hop nor a shorter window
    sizes = [spectrograms.short(spec) for spec in spectrograms.around(longest)]
    assert sizes == ["64x1024/512", "64x1024/256", "80x1024/512", "128x1024/512"]


@pytest.mark.parametrize("peak", [None, 0.5])
def test_a_tone_comes_back_at_its_pitch_and_level(peak):
    spec = SPEC.model_copy(update={"peak": peak})
    tone = wave(1)
    back = spectrograms.round_trip(tone, spec, SPECKLE)
    assert back.shape == tone.shape
    inner = slice(RATE // 4, 3 * RATE // 4)
    pitches = [2 * np.abs(np.fft.rfft(sound[inner])).argmax() for sound in (back, tone)]
    assert pitches == pytest.approx([370, 370], abs=20)  # Hz; its band is 90 Hz wide
    assert back[inner].std() == pytest.approx(tone[inner].std(), rel=0.2)
    assert np.array_equal(back, spectrograms.round_trip(tone, spec, SPECKLE))


def test_a_fine_spec_keeps_more_of_the_sounds_than_a_coarse_one(tmp_path, shared, monkeypatch):
    tables = prepare(tmp_path, ROWS, wave)
    specs = [spectrograms.parse_spec(text, SPEC) for text in ("64x1024:400/160", "6x1024/512")]
    ids = [row[0] for row in ROWS]
    compared = spectrograms.compare(setup(tmp_path, shared, monkeypatch), tables, ids, specs, PLAIN, 1000)
    fine, coarse = compared.lines[:2], compared.lines[2:]
    kinds = [(spec, grain) for spec in specs for grain in spectrograms.GRAINS]
    assert [(line.spec, line.grain) for line in compared.lines] == kinds
    assert max(line.fad["value"] for line in fine) < min(line.fad["value"] for line in coarse)
    assert all(line.fad["low"] <= line.fad["value"] <= line.fad["high"] for line in compared.lines)
    assert compared.real_accuracy == 1
    assert [line.accuracy for line in fine] == [1, 1]
    assert min(line.accuracy for line in coarse) <= 0.75  # its tones are wide bands
    assert [line.frames for line in compared.lines] == [101, 101, 32, 32]
    rows = compared.document()["spectrograms"]
    assert [row["numbers_per_second"] for row in rows] == [6400, 6400, 187.5, 187.5]
    assert rows[0]["fad"] == fine[0].fad["value"]
    assert max(line.mrstft for line in fine) < min(line.mrstft for line in coarse)


def test_without_classes_there_is_no_accuracy(tmp_path, shared, monkeypatch):
    tables = prepare(tmp_path, [(clip_id, split, [], []) for clip_id, split, _, _ in ROWS], wave)
    ids = [row[0] for row in ROWS]
    compared = spectrograms.compare(setup(tmp_path, shared, monkeypatch), tables, ids, [SPEC], PLAIN, 1000)
    assert compared.real_accuracy is None
    assert [line.accuracy for line in compared.lines] == [None, None]
    assert "No class accuracy" in compared.warnings[0]


def test_clips_are_chosen_by_the_seed_and_not_from_the_test_split(tmp_path, monkeypatch):
    monkeypatch.setattr(spectrograms.scorer, "FEWEST_REFERENCE", 3)
    rows = [(f"{number:02d}_0", ("train", "valid", "test")[number % 3], [], []) for number in range(30)]
    tables = prepare(tmp_path, rows)
    chosen = spectrograms.choose(tables, None, 8, 0)
    assert len(chosen) == 8
    assert not {row[0] for row in rows if row[1] == "test"} & set(chosen)
    assert chosen == spectrograms.choose(tables, None, 8, 0) != spectrograms.choose(tables, None, 8, 1)
    assert spectrograms.choose(tables, "test", 100, 0) == [row[0] for row in rows if row[1] == "test"]
    with pytest.raises(UserError, match="needs 3 clips, but split 'test'"):
        spectrograms.choose(tables, "test", 2, 0)


def test_a_clip_id_that_leads_elsewhere_is_no_path(tmp_path, monkeypatch):
    row = {"clip_id": "../x", "audio": {"bytes": encode_flac(np.zeros((1, RATE), np.float32), RATE)}}
    monkeypatch.setattr(clips, "with_audio", lambda *_: [row])
    with pytest.raises(UserError, match="x"):
        spectrograms.resynthesise(None, ["../x"], SPEC.model_dump_json(), PLAIN, tmp_path / "out")
    assert not (tmp_path / "x.wav").exists()


def test_silent_clips_are_refused_before_work(tmp_path, shared, monkeypatch):
    tables = prepare(tmp_path, ROWS, lambda number: np.zeros(RATE, np.float32))
    ids = [row[0] for row in ROWS]
    monkeypatch.setattr(mel, "log_mel", None)
    with pytest.raises(UserError, match=r"all 12 clips are silent.*check `corpus\.path`"):
        spectrograms.compare(setup(tmp_path, shared, monkeypatch), tables, ids, [SPEC], PLAIN, 1000)


def test_missing_weights_are_named_before_work(tmp_path, shared, monkeypatch):
    tables = clips.Tables(tmp_path / "clips", tmp_path / "catalog.parquet")
    with pytest.raises(UserError, match=r"vggish: .*soundmill weights fetch vggish"):
        spectrograms.compare(setup(tmp_path, shared, monkeypatch, "vggish"), tables, ["a"], [SPEC], PLAIN, 1000)
