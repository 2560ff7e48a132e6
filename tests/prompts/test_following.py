"""Sets of prompts, what is heard and how it is counted: known answers, real clips, and a whole run with random weights."""

import json
import os
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from soundmill.corpora.folder import class_label
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation.sets import CATEGORIES
from soundmill.params import read_yaml
from soundmill.prompts import following
from soundmill.prompts.following import Ears, Heard, Kind, Prompt, count_events
from tests.commands.running import works
from tests.models.untrained_tango import write_prepared, write_untrained

KINDS = ["dog", "rain", "rooster"]
RATE = 16_000


@pytest.fixture(scope="module")
def ears(shared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
        return Ears(following.kinds())


def heard(*scores: float, windows=None, events: int = 1, silent: bool = False) -> Heard:
    values = np.array(scores)
    return Heard(values, np.array(windows) if windows else np.stack([values, values]), events, silent)


def scored(prompts, rows) -> dict:
    return {name: one["value"] for name, one in following._score(prompts, rows, KINDS, 0)["scores"].items()}


def test_as_asked_and_with_shuffled_prompts():
    """Known answer: of dog, rain and rooster four of six sounds are as asked; a silent one is nothing."""
    prompts = [Prompt(text=name, heard=[name]) for name in KINDS]
    rows = [
        [heard(0.9, 0.1, 0.0), heard(0.1, 0.9, 0.0)],
        [heard(0.1, 0.9, 0.0), heard(0.1, 0.9, 0.0)],
        [heard(0.0, 0.1, 0.9), heard(0.9, 0.1, 0.2, silent=True)],
    ]
    found = scored(prompts, rows)
    assert found["asked"] == pytest.approx(4 / 6, abs=1e-5)
    assert found["shuffled"] == pytest.approx((0.5 / 6), abs=1e-5)  # the one that sounds like rain, for one of two other prompts
    assert found["difference"] == pytest.approx(found["asked"] - found["shuffled"], abs=1e-4)
    assert found["silent"] == pytest.approx(1 / 6, abs=1e-5)
    part = following._score(prompts, rows, KINDS, 0)
    assert [line["recognised"] for line in part["prompts"]] == [{"dog": 1, "rain": 1}, {"rain": 2}, {"rooster": 1}]
    prompts = [Prompt(text="a", heard=["dog"]), Prompt(text="b", heard=["dog"]), Prompt(text="c", heard=["rain"])]
    dog = [heard(0.9, 0.1, 0.0)]
    assert scored(prompts, [dog, dog, dog])["shuffled"] == pytest.approx(1 / 3, abs=1e-5)
    assert "shuffled" not in scored(prompts[:2], [dog, dog])


def test_a_kind_heard_everywhere_is_above_no_other_sound():
    """Known answer: rooster is loudest in all, but alike; dog is heard a little more where it was asked for; rain in one of two."""
    rows = [
        [heard(0.2, 0.0, 0.9), heard(0.3, 0.1, 0.9)],
        [heard(0.1, 0.2, 0.9), heard(0.1, 0.0, 0.9)],
        [heard(0.1, 0.1, 0.9), heard(0.0, 0.1, 0.9)],
    ]
    prompts = [Prompt(text=name, heard=[name]) for name in KINDS]
    table = following._asked(prompts, rows, KINDS)["above_others"]
    np.testing.assert_allclose(table, [[1, 1], [1, 1 / 8], [0.5, 0.5]])


def test_two_kinds_in_an_order():
    prompts = [Prompt(text="dog, then rain", heard=["dog", "rain"]), Prompt(text="rain, then dog", heard=["rain", "dog"])]
    rising = heard(0.5, 0.6, 0.0, windows=[[1, 0, 0], [0.5, 0.1, 0], [0, 1, 0]])
    steady = heard(0.5, 0.0, 0.6)
    found = scored(prompts, [[rising, steady], [rising, steady]])
    assert found["ordered"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert found["asked"] == pytest.approx(0.75)  # of the steady sound's two highest kinds one was asked for
    assert "shuffled" not in found  # the other prompt asks for the same kinds


def test_what_must_be_absent_and_more_events_where_more_are_asked_for():
    prompts = [Prompt(text="rain, no dog", heard=["rain"], absent=["dog"]), Prompt(text="no dog", absent=["dog"])]
    rows = [[heard(0.9, 0.1, 0.0), heard(0.1, 0.2, 0.9)], [heard(0.1, 0.2, 0.0), heard(0.9, 0.2, 0.0, silent=True)]]
    assert scored(prompts, rows)["absent"] == 0.25
    prompts = [Prompt(text="once", heard=["dog"], count=1), Prompt(text="thrice", heard=["dog"], count=3)]
    rows = [[heard(1, 0, 0, events=1), heard(1, 0, 0, events=2)], [heard(1, 0, 0, events=4), heard(1, 0, 0, events=2)]]
    assert scored(prompts, rows)["counted"] == 0.75


def test_events_are_bursts():
    burst = np.random.default_rng(0).standard_normal(RATE // 10) * np.hanning(RATE // 10)
    for count in (0, 1, 3, 5):
        wave = np.zeros(2 * RATE)
        for number in range(count):
            wave[number * 6000 : number * 6000 + len(burst)] = (0.3 + 0.1 * number) * burst
        assert count_events(wave, RATE) == count
    assert count_events(np.random.default_rng(0).standard_normal(RATE), RATE) == 1
    assert count_events(np.zeros(0), RATE) == 0


def test_intervals_know_that_sounds_of_a_prompt_are_alike():
    random = np.random.default_rng(0)
    alike = np.repeat(random.integers(2, size=(10, 1)), 8, axis=1).astype(float)
    mixed = alike.ravel()[random.permutation(80)].reshape(10, 8)
    wide, narrow = (following.mean_over_prompts(values, 2000, 0) for values in (alike, mixed))
    assert wide["value"] == narrow["value"] == pytest.approx(alike.mean())
    assert wide["low"] <= wide["value"] <= wide["high"]
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])
    expected = 2 * 1.96 * (alike.mean() * (1 - alike.mean()) / 10) ** 0.5  # as if there were ten sounds
    assert wide["high"] - wide["low"] == pytest.approx(expected, rel=0.2)
    assert wide["low_these"] == wide["high_these"] == wide["value"]  # other seeds of these prompts would all say the same
    of_these = 2 * 1.96 * (mixed.var(axis=1).mean() / 80) ** 0.5
    assert narrow["high_these"] - narrow["low_these"] == pytest.approx(of_these, rel=0.2)
    assert json.dumps(wide) == json.dumps(following.mean_over_prompts(alike, 2000, 0))


def test_real_clips_are_heard_as_what_they_are(ears, shared):
    """Three clips of each of the ten classes; all classes of the kinds are YAMNet's."""
    kind_of = {label: name for name, kind in following.kinds().items() for label in kind.labels}
    rows = {}
    for folder in sorted(path for path in (shared / "data" / "esc10").iterdir() if path.is_dir()):
        waves = [read_mono(path, RATE, 60.0)[None] for path in sorted(folder.glob("*.ogg"))[:24:8]]
        rows[kind_of[class_label(os.fsencode(folder.name))]] = [ears.hear(wave, RATE) for wave in waves]
    assert set(rows) == set(ears.kinds)
    prompts = [Prompt(text=name, heard=[name]) for name in rows]
    found = {name: one["value"] for name, one in following._score(prompts, [*rows.values()], ears.kinds, 0)["scores"].items()}
    assert found["asked"] > 0.9
    assert found["shuffled"] == pytest.approx((1 - found["asked"]) / 9, abs=1e-4)
    assert found["above_others"] > 0.9


def test_what_is_heard_is_what_the_network_says_and_a_class_that_it_lacks_is_named(ears, monkeypatch, shared):
    wave = (0.1 * np.random.default_rng(0).standard_normal((2, 40_000))).astype(np.float32)
    one = ears.hear(wave, RATE)
    assert one.by_window.shape == (4, 10)
    assert (one.scores <= one.by_window.max(axis=0) + 1e-9).all()
    assert not one.silent
    assert ears.hear(0 * wave, RATE).silent
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    with pytest.raises(Exception, match="kind 'gong': AudioSet has no class 'Goong'"):
        Ears({"gong": Kind(classes=["Goong"])})


def test_the_command_tells_table_numbers_and_page(tmp_path, shared, monkeypatch):
    """A model of random weights follows no prompt, real clips do; the same every time."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    checkpoint = write_untrained(tmp_path)
    project = tmp_path / "project"
    write_prepared(project / "data", shared)
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / "params.yaml").write_text("clips: {default: {sample_rate: 16000}}\n")
    (project / "mine.yaml").write_text(f"about: x\nprompts: [{{text: {'x' * 500} the end}}]\n")
    arguments = ["plain", "order", "empty", "mine.yaml", "--checkpoint", checkpoint, "-n", "2", "--set", "num_steps=2"]
    done = works("prompts", *map(str, arguments), "--json", "a.json", "--page", "page.html", cwd=project)
    found = json.loads((project / "a.json").read_text())
    assert set(found["sets"]) == {"plain", "order", "empty", "mine"}
    assert (found["sampling"]["num_steps"], found["sounds_per_prompt"]) == (2, 2)
    plain = found["sets"]["plain"]["scores"]
    assert plain["asked"]["value"] <= 0.3
    assert set(plain) == {"asked", "shuffled", "difference", "above_others", "silent"}
    assert "ordered" in found["sets"]["order"]["scores"]
    assert set(found["sets"]["empty"]["scores"]) == {"silent"}
    assert set(found["baselines"]) == {following.REAL, following.CODEC}
    assert found["baselines"][following.REAL]["sounds"] == 6
    assert found["baselines"][following.REAL]["scores"]["asked"]["value"] > 0.6
    for shown in ("as asked", "shuffled", "real clips", "in order"):
        assert shown in done.stdout
    page = (project / "page.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 10 + 6 + 1 + 1
    assert "x the end" in page
    for shown in ("(no text)", "asks for: dog, rain", "one kind of sound, named as in ESC-50", following.MEANINGS["ordered"]):
        assert shown in page.replace("&#39;", "'")
    chosen = following.load_sets(["order"])
    silently = nullcontext(lambda _: None)
    again = following.follow(checkpoint, chosen, 2, 0, project, ["num_steps=2"], None, lambda *_: silently)
    assert again.document["sets"]["order"] == found["sets"]["order"]


def test_the_sets_of_the_package():
    loaded, kinds = following.load_sets(following.NAMES), following.kinds()
    assert list(loaded) == list(following.ORDER)
    assert len(kinds) == 10
    assert set(Counter(name for kind in kinds.values() for name in kind.classes).values()) == {1}  # no class of two kinds
    audioset = {name.strip() for listed in read_yaml(CATEGORIES)["classes"].values() for name in listed.split(";")}
    assert {name for one in loaded.values() for kind in one.kinds.values() for name in kind.classes} <= audioset
    assert [prompt.heard for prompt in loaded["plain"].prompts] == [[name] for name in kinds]
    assert all(prompt.absent for prompt in loaded["negation"].prompts)
    assert all(len(prompt.heard) == 2 for prompt in loaded["order"].prompts)
    assert [prompt.text for prompt in loaded["empty"].prompts] == [""]
    lengths = [len(prompt.text.split()) for prompt in loaded["long"].prompts]
    assert all(300 <= length <= 310 for length in lengths)
    assert {prompt.text.split(".")[0] for prompt in loaded["long"].prompts} >= {"A dog barks", "Rain falls", "A rooster crows"}
    texts = [prompt.text for one in loaded.values() for prompt in one.prompts]
    assert len(set(texts)) == len(texts)


def test_a_set_of_ones_own_with_a_kind_of_its_own(tmp_path):
    path = tmp_path / "strings.yaml"
    path.write_text(
        "about: strings\nkinds: {violin: {classes: ['Violin, fiddle']}}\nprompts:\n- {text: a violin, heard: [violin]}\n"
    )
    loaded = following.load_sets(["plain", str(path), "order"])
    assert list(loaded) == ["plain", "strings", "order"]
    assert loaded["strings"].kinds["violin"].classes == ["Violin, fiddle"]
    # The sounds of another set are not compared with it.
    assert loaded["plain"].kinds == loaded["order"].kinds == following.kinds()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\nprompts: []\n", r"own\.yaml: prompt set\.prompts: List should have at least 1 item"),
        ("about: x\nprompts: [{text: a, herd: [dog]}]\n", r"prompts\.0\.herd: unknown key"),
        ("about: x\nprompts: [{text: a, heard: [dgo]}]\n", r"own\.yaml: prompts\.0: no kind 'dgo'; did you mean 'dog'.*`kinds`"),
        ("about: x\nprompts: [{text: 7}]\n", r"prompts\.0\.text: Input should be a valid string"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        following.load_sets([str(path)])


def test_an_unknown_set_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match=r"no prompt set or file 'plane'; did you mean 'plain'\?; there are plain, paraphrases"):
        following.load_sets(["plane"])
    with pytest.raises(UserError, match="two prompt sets are called 'plain'"):
        (tmp_path / "plain.yaml").write_text("about: x\nprompts: [{text: a}]\n")
        following.load_sets(["plain", str(tmp_path / "plain.yaml")])
