"""The embedded corpus: what its plan promises, that captions tell the truth, and that its bytes never change."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.corpora import synthetic
from soundmill.corpora.synthetic import LABELS, Event, Recording
from soundmill.errors import UserError

WINDOW, SHORTEST, SEED = 5.0, 1.0, 0
KEYWORDS = {label: label.split()[0].rstrip("s") for label in LABELS}  # "kick drum" → kick, "footsteps" → footstep


def overlap(event: Event, start: float, end: float) -> float:
    return min(event.offset, end) - max(event.onset, start)


@pytest.fixture(scope="module")
def planned() -> list[Recording]:
    return synthetic.plan(60, 0.2, 0.2, WINDOW, SHORTEST, SEED)


def test_the_plan_has_what_was_asked_for(planned):
    assert len(planned) == 60
    assert all(2.0 <= recording.seconds <= 35.0 for recording in planned)
    assert max(recording.seconds for recording in planned) == 35.0
    assert min(recording.seconds for recording in planned) < 3.0
    assert {(r.extension, r.rate, r.channels) for r in planned} == set(synthetic.CONTAINERS)
    assert min(Counter(recording.extension for recording in planned).values()) >= 10
    assert len(LABELS) >= 12


def test_names_are_audiocaps_names_with_everything_that_trips_parsers(planned):
    names = [recording.name for recording in planned]
    assert len(set(names)) == 60
    for recording in planned:
        assert re.fullmatch(r"[A-Za-z0-9_-]{11}", recording.video)
        assert recording.name in (f"{p}{recording.video}_{recording.start}.{recording.extension}" for p in ("", "Y"))
    videos = [recording.video for recording in planned]
    assert any(video.startswith("-") for video in videos)
    assert any(re.search(r"_\d+$", video) for video in videos)
    assert any(video.endswith("_") for video in videos)
    assert any(video.startswith("Y") and recording.name.startswith("YY") for video, recording in zip(videos, planned, strict=True))
    assert any(
        video.startswith("Y") and not recording.name.startswith("YY") for video, recording in zip(videos, planned, strict=True)
    )
    twice = [video for video, count in Counter(videos).items() if count > 1]
    assert len(twice) == 1
    assert {recording.split for recording in planned if recording.video in twice} == {"train"}


def test_every_event_has_clips_of_its_own_in_every_split(planned):
    alone: dict[str, Counter] = defaultdict(Counter)
    for recording in planned:
        for start, end in synthetic.windows_of(recording.seconds, WINDOW, SHORTEST):
            labels = synthetic.describe(recording.events, start, end, np.random.default_rng(0))[1]
            if len(labels) == 1:
                alone[recording.split][labels[0]] += 1
    assert set(alone["train"]) == set(alone["val"]) == set(alone["test"]) == set(LABELS)
    assert min(alone["train"].values()) >= 4
    assert max(alone["train"].values()) <= 4 * min(alone["train"].values())


@given(
    st.integers(synthetic.MIN_RECORDINGS, 80),
    st.floats(1.0, 30.0).map(lambda x: round(x, 2)),
    st.floats(0.0, 1.0).map(lambda x: round(x, 2)),
    st.integers(0, 10**9),
)
def test_no_event_merely_touches_a_window(count, window, shortest, seed):
    planned = synthetic.plan(count, 0.2, 0.25, window, shortest, seed)
    assert len(planned) == count
    edge = min(synthetic.EDGE_SECONDS, window / 2)
    for split in ("val", "test", "train"):
        assert {event.label for recording in planned if recording.split == split for event in recording.events} == set(LABELS)
    for recording in planned:
        assert recording.seconds > 0
        for event in recording.events:
            assert 0 <= event.onset < event.offset <= recording.seconds + 1e-9
        for start, end in synthetic.windows_of(recording.seconds, window, shortest):
            for event in recording.events:
                shared = overlap(event, start, end)
                assert shared <= 2e-3 or shared >= min(edge, end - start) - 2e-3, (recording, event, start)


def test_windows_are_the_segment_stages_clips():
    assert synthetic.windows_of(12.0, 5.0, 1.0) == [(0, 5.0), (5.0, 10.0), (10.0, 12.0)]
    assert synthetic.windows_of(10.0, 5.0, 1.0) == [(0, 5.0), (5.0, 10.0)]
    assert synthetic.windows_of(10.5, 5.0, 1.0) == [(0, 5.0), (5.0, 10.0)]
    assert synthetic.windows_of(2.4, 5.0, 1.0) == [(0, 2.4)]
    assert synthetic.windows_of(0.9, 5.0, 1.0) == []


def events(*parts: tuple[str, float, float]) -> list[Event]:
    return [Event(label, onset, offset, 0.0, 0.0) for label, onset, offset in parts]


@pytest.mark.parametrize(
    ("parts", "caption", "labels"),
    [
        ([("dog", 0, 5)], "DOG", ("dog",)),
        ([("dog", 0, 2), ("bell", 2.3, 5)], "DOG, then BELL", ("bell", "dog")),
        ([("rain", 0, 5), ("dog", 1, 3)], "DOG while RAIN", ("rain", "dog")),
        ([("rain", 0, 3), ("siren", 0.4, 2.9), ("bell", 3.2, 5)], "SIREN while RAIN, then BELL", ("rain", "siren", "bell")),
        ([("rain", 0, 5), ("siren", 0.4, 2), ("bell", 2.2, 5)], "RAIN while SIREN and then BELL", ("rain", "bell", "siren")),
        ([("dog", 6, 9)], synthetic.SILENT_CAPTION, ()),
        ([("dog", 0, 1), ("bell", 1.2, 3), ("dog", 3.3, 5)], "DOG, then BELL, then DOG", ("bell", "dog")),
    ],
)
def test_captions_known_answers(monkeypatch, parts, caption, labels):
    monkeypatch.setattr(synthetic, "PHRASES", {label: (label.upper(),) for label in LABELS})
    assert synthetic.describe(events(*parts), 0.0, 5.0, np.random.default_rng(0)) == (caption, list(labels))


def test_every_phrase_names_its_event_and_no_other():
    for label, phrases in synthetic.PHRASES.items():
        for phrase in phrases:
            assert [other for other in LABELS if re.search(rf"\b{KEYWORDS[other]}s?\b", phrase)] == [label]


@pytest.mark.slow
def test_captions_name_exactly_what_is_heard(planned):
    """Of every window: an event that is named stands out in some 50 ms, one that is not adds nothing at all."""
    for recording in planned[::2]:
        wave, stems = synthetic.render(recording, SEED)
        assert wave.shape == (round(recording.seconds * recording.rate), recording.channels)
        assert 0.2 < np.abs(wave).max() <= 1
        mono, frame = wave.mean(1), recording.rate // 20
        for start, end in synthetic.windows_of(recording.seconds, WINDOW, SHORTEST):
            text, labels = synthetic.describe(recording.events, start, end, np.random.default_rng(0))
            part = slice(round(start * recording.rate), round(end * recording.rate))
            sound = set()
            for event, stem in zip(recording.events, stems, strict=True):
                if overlap(event, start, end) <= 1e-6:
                    assert not stem[part].any()
                    continue
                power = [frames(signal[part], frame) for signal in (stem, mono - stem)]
                assert 10 * np.log10((power[0] / power[1]).max()) > -6, (recording.name, start, event)
                sound.add(event.label)
            assert set(labels) == sound
            assert {label for label in LABELS if re.search(rf"\b{KEYWORDS[label]}s?\b", text)} == sound


def frames(wave: np.ndarray, size: int) -> np.ndarray:
    return np.mean(wave[: len(wave) // size * size].reshape(-1, size) ** 2, 1)


@pytest.mark.parametrize(("extension", "rate", "channels"), synthetic.CONTAINERS)
def test_every_container_has_the_same_bytes_each_time_and_the_whole_sound(tmp_path, extension, rate, channels):
    from soundmill.decoding import decode

    time = np.arange(rate * 2) / rate
    wave = np.repeat(0.5 * np.sin(2 * np.pi * 440 * time)[:, None], channels, 1)
    samples = np.round(wave * 32767).astype("<i2")
    paths = [tmp_path / f"-{number} ü.{extension}" for number in (1, 2)]
    for path in paths:
        synthetic.encode(samples, rate, extension, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not re.search(rb"Lav[cf]\d|libsndfile|LAME ?3", paths[0].read_bytes())  # no version stamps
    mono = decode.read_mono(paths[0], 16_000, 60.0)
    assert abs(len(mono) - 32_000) <= 0.05 * 16_000
    middle = mono[8_000:24_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    assert np.std(middle) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_too_few_recordings_is_an_error_that_names_the_key():
    with pytest.raises(UserError, match=r"corpus\.recordings"):
        synthetic.plan(40, 0.1, 0.75, WINDOW, SHORTEST, SEED)
