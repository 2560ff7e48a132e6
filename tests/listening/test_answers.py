"""The order of trials, balanced over raters; files of answers, held to the key; and a test in Chromium, to its score."""

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.listening import answers
from soundmill.listening.answers import Key, Stimulus, orders
from tests import chromium
from tests.chromium import until
from tests.commands.running import soundmill, works
from tests.listening.test_material import HERTZ, tone


def make_key(
    models: Sequence[str],
    requests: int,
    questions: Sequence[str] = ("quality",),
    scale: int = 5,
    compare: bool = False,
    **facts: Any,
) -> Key:
    """The key of a test of requests `q0`, `q1` …; `facts`: by model, its `scores` and those of single sounds, `of`."""
    treatments = [(name,) for name in (*models, "real")]
    if compare:
        treatments = [(a, b) for index, a in enumerate(models) for b in models[index + 1 :]]
    ordered = orders(treatments, ("real", "bad") if compare else ("bad",), requests, seed=0)
    heard = sorted({one for trials in ordered for trial in trials for one in trial}, key=lambda one: (one.system, one.request))
    names = {one: f"s{number:03d}" for number, one in enumerate(heard)}
    return Key.model_validate(
        {
            "format": 1,
            "test": "0123456789ab",
            "questions": list(questions),
            "scale": scale,
            "compare": compare,
            "seed": 0,
            "sounds": {names[one]: {"system": one.system, "request": f"q{one.request}"} for one in heard},
            "orders": [[[names[one] for one in trial] for trial in trials] for trials in ordered],
            "models": {name: {"family": "", "weights": "", "scores": {}, "of": {}, **facts.get(name, {})} for name in models},
        }
    )


def answered(key: Key, rater: int, rate: Callable[..., int | str]) -> dict[str, Any]:
    """A rater's file: `rate(question, systems, request, again)` answers each trial; `again` is whether it was heard before."""
    answers, seen = [], set()
    for names in key.order_of(rater):
        sounds = [key.sounds[name] for name in names]
        again = frozenset(names) in seen
        seen.add(frozenset(names))
        given = {
            one: rate(one, [sound.system for sound in sounds], key.request_numbers[sounds[0].request], again)
            for one in key.questions
        }
        answers.append({"sounds": names, **given})
    return {"format": 1, "test": key.test, "rater": rater, "answers": answers}


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


KEY = make_key(["a", "b"], 3, ("quality", "relevance"))
WHOLE = answered(KEY, 2, lambda *_: 3)
FIRST = WHOLE["answers"][0]
OTHER = next(name for name in KEY.sounds if [name] != FIRST["sounds"])


def test_whole_answers(tmp_path):
    read = answers.read(write(tmp_path / "a.json", WHOLE), KEY)
    assert read.rater == 2
    assert len(read.given) == len(KEY.order_of(2))
    assert set(read.given[0]) == {"quality", "relevance"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("test"), ".test: missing"),
        (lambda d: d.update(test="ffffffffffff"), ".test: 'ffffffffffff': answers to another test; the key is for 0123456789ab"),
        (lambda d: d.update(format=2), ".format: "),
        (lambda d: d.update(extra=1), ".extra: unknown key"),
        (lambda d: d.update(rater="2"), ".rater: "),
        (lambda d: d.update(rater=True), ".rater: "),
        (lambda d: d.update(rater=0), ".rater: "),
        (lambda d: d.update(rater=10**30), ".rater: "),
        (lambda d: d.update(rater=3), ".answers.0.sounds: "),  # another order
        (lambda d: d.update(answers={}), ".answers: "),
        (lambda d: d["answers"].__setitem__(0, None), ".answers.0: "),
        (lambda d: d["answers"][1].pop("relevance"), ".answers.1.relevance: missing"),
        (lambda d: d["answers"][1].update(qualty=3), ".answers.1.qualty: unknown key; did you mean 'quality'?"),
        *((lambda d, v=v: d["answers"][1].update(quality=v), ".answers.1.quality: ") for v in ("3", 3.5, True, 0, 6, [3])),
        (lambda d: d["answers"][1].update(quality=float("nan")), ".answers.1.quality: "),
        (lambda d: d["answers"][0].update(sounds=["s999"]), f".answers.0.sounds: s999: expected {FIRST['sounds'][0]} as trial 1"),
        (lambda d: d["answers"][0].update(sounds=[["s001"]]), ".answers.0.sounds.0: "),
        (lambda d: d["answers"][0].update(sounds="s001"), ".answers.0.sounds: "),
        (lambda d: d["answers"][0].update(sounds=[OTHER]), f".answers.0.sounds: {OTHER}: expected {FIRST['sounds'][0]} as trial 1"),
        (lambda d: d["answers"].append(FIRST), ".answers: 16 of 15 trials"),
        (lambda d: d["answers"].insert(0, FIRST), ".answers.1.sounds: "),
        (lambda d: d["answers"].pop(), ".answers: 14 of 15 trials; rater 2 must finish the test"),
        (b"", "not a file of answers"),
        (b'{"format": 1, "orders": []}', "not a file of answers; use the file as the page saved it"),
        (b"\xff\xfe\x00", "not a file of answers"),
        (b"[" * 100_000, "too deep"),
        (b"[1]", "a.json: "),
        (b'{"format": 1, "format": 1}', "'format' is repeated"),
        (json.dumps(WHOLE).replace('"quality": 3', '"quality": 3, "quality": 5', 1).encode(), "'quality' is repeated"),
        (b" " * 4_000_001, "larger than 4 MB"),
    ],
)
def test_hostile_answers_are_named(tmp_path, change, message):
    path = tmp_path / "a.json"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        document = copy.deepcopy(WHOLE)
        change(document)
        write(path, document)
    with pytest.raises(UserError) as error:
        answers.read(path, KEY)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_rater_answers_once(tmp_path):
    first, second = (write(tmp_path / name, WHOLE) for name in ("a.json", "b.json"))
    with pytest.raises(UserError, match=r"b\.json: rater: 2 is also the"):
        answers.read_all([first, second], KEY)
    with pytest.raises(UserError, match=r"none.json: cannot be read"):
        answers.read_all([tmp_path / "none.json"], KEY)


@pytest.mark.parametrize("value", [1, None, "A", "both", ["first"]])
def test_comparisons_have_three_answers(tmp_path, value):
    key = make_key(["a", "b"], 3, compare=True)
    document = answered(key, 1, lambda *_: "same")
    assert len(answers.read(write(tmp_path / "a.json", document), key).given) == 8
    document["answers"][4]["quality"] = value
    with pytest.raises(UserError, match=r"answers.4.quality: Input should be 'first', 'same' or 'second'"):
        answers.read(write(tmp_path / "a.json", document), key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(scale=7), "key.json.scale"),
        (lambda d: d["sounds"].pop("s000"), "key.json: orders: s000 is not in sounds"),
        (lambda d: d.pop("models"), "key.json.models: missing"),
    ],
)
def test_a_damaged_key_is_named(tmp_path, change, message):
    document = KEY.model_dump(mode="json")
    assert answers.read_key(write(tmp_path / "key.json", document)) == KEY
    change(document)
    with pytest.raises(UserError) as error:
        answers.read_key(write(tmp_path / "key.json", document))
    assert message in str(error.value)
    with pytest.raises(UserError, match=r"none.json: no such file; give the key.json"):
        answers.read_key(tmp_path / "none.json")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
def test_a_latin_square_balanced_for_carry_over(size):
    rows = answers.williams(size)
    assert len(rows) == (2 * size if size % 2 and size > 1 else size)
    assert all(sorted(row) == list(range(size)) for row in rows)
    times = len(rows) // size
    places = Counter((place, number) for row in rows for place, number in enumerate(row))
    assert set(places.values()) == {times}
    followers = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert set(followers.values()) <= {times}
    assert len(followers) == size * (size - 1)  # each after each other one


@pytest.mark.parametrize(("models", "requests"), [(1, 3), (2, 5), (3, 20), (5, 4)])
def test_every_treatment_with_every_request_and_checks_between(models, requests):
    treatments = [(f"m{number}",) for number in range(models)] + [("real",)]
    output = answers.orders(treatments, ("bad",), requests, seed=7)
    assert output == answers.orders(treatments, ("bad",), requests, seed=7)
    assert output != answers.orders(treatments, ("bad",), requests, seed=8)
    assert len(output) == len(answers.williams(models + 1))
    for trials in output:
        again = answers.repeats(trials)
        firsts = Counter(trial for place, trial in enumerate(trials) if place not in again)
        expected = [(Stimulus(name, request),) for (name,) in treatments for request in range(requests)]
        expected += [(Stimulus("bad", request),) for request in range(answers.checks(requests))]
        assert firsts == Counter(expected)
        assert len(again) == min(answers.checks(requests), len(trials) - len(expected))
        assert min(place - first for place, first in again.items()) >= min(answers.REPEAT_AFTER, len(treatments) * requests // 2)
        assert not any(trials[place][0].system == "bad" for place in again)
    first_heard = Counter(next(trial for trial in trials if trial[0].system != "bad")[0].system for trials in output)
    assert len(set(first_heard.values())) == 1  # no system has the ear that is still fresh more often


def test_pairs_change_sides_from_rater_to_rater_and_where_they_are_repeated():
    output = answers.orders([("a", "b"), ("a", "c"), ("b", "c")], ("real", "bad"), 10, seed=0)
    first = {frozenset(trial): trial for trial in output[0][::-1]}
    second = {frozenset(trial): trial for trial in output[1][::-1]}
    assert all(first[pair] == second[pair][::-1] for pair in first if "bad" not in {one.system for one in pair})
    sides = Counter(trial[0].system == "a" for trial in first.values() if {one.system for one in trial} == {"a", "b"})
    assert sides == {True: 5, False: 5}
    for trials in output:
        again = answers.repeats(trials)
        assert len(again) == 3
        assert all(trials[place] == trials[earlier][::-1] for place, earlier in again.items())


LIKED = {"mine": 3, "real": 5, "bad": 1}


@pytest.fixture
def sounds(tmp_path):
    for side, level in (("mine", 0.05), ("real", 0.2), ("other", 0.1)):
        for name, hertz in list(HERTZ.items())[:3]:
            write_wav(tmp_path / side / f"{name}.wav", tone(hertz, 16_000, level, 0.1), 16_000)
    return tmp_path


def make(sounds, output: str, *arguments: str):
    works("listening-test", "new", *arguments, "--reference", "real", "--per-model", "3", "--output", output, cwd=sounds)
    return sounds / output / "test.html", answers.read_key(sounds / output / "key.json")


def start(chrome, page, rater: int) -> None:
    """Through the volume check, which takes no wrong count."""
    chrome.get(page.as_uri())
    chrome.find_element(By.ID, "rater").send_keys(str(rater))
    chrome.find_element(By.ID, "beeps").send_keys("99")
    chrome.find_element(By.CSS_SELECTOR, ".next").click()
    assert "Turn the volume up" in chrome.find_element(By.CSS_SELECTOR, "[role=alert]").text
    count = json.loads(chrome.execute_script("return document.getElementById('content').textContent"))["beeps"]
    chrome.find_element(By.ID, "beeps").clear()
    chrome.find_element(By.ID, "beeps").send_keys(str(count))
    chrome.find_element(By.CSS_SELECTOR, ".next").click()
    until(chrome, lambda: "of" in chrome.find_element(By.CSS_SELECTOR, "#stage .soft").text)


def hear(chrome) -> None:
    """Every sound of a trial to its end."""
    for player in chrome.find_elements(By.CSS_SELECTOR, ".player"):
        player.find_element(By.TAG_NAME, "button").click()
        until(chrome, lambda player=player: player.find_element(By.TAG_NAME, "progress").get_property("value") == 1)


def go_on(chrome) -> None:
    button = chrome.find_element(By.CSS_SELECTOR, ".next")
    assert button.is_enabled()
    button.click()


@pytest.mark.slow
def test_from_the_first_click_to_the_score(sounds, tmp_path):
    page, key = make(sounds, "test", "mine", "--questions", "quality,relevance")
    order = key.order_of(2)
    with chromium.browser() as chrome:
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "down")})
        chromium.be_a_phone(chrome)
        chrome.get(page.as_uri())
        chrome.save_screenshot(tmp_path / "welcome.png")
        start(chrome, page, 2)
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 360
        for place, names in enumerate(order):
            (sound,) = (key.sounds[name] for name in names)
            assert chrome.find_element(By.CSS_SELECTOR, "#stage .soft").text == f"{place + 1} of {len(order)}"
            assert chrome.find_element(By.CSS_SELECTOR, ".text").text == f"“{sound.request.partition('/')[0]}”"
            for question in ("quality", "relevance"):
                choices = chrome.find_elements(By.CSS_SELECTOR, f"input[name={question}]")
                choices[LIKED[sound.system] - 1].click()
            assert not chrome.find_element(By.CSS_SELECTOR, ".next").is_enabled()  # not heard yet
            hear(chrome)
            if place == 1:
                chrome.save_screenshot(tmp_path / "trial.png")
            go_on(chrome)
            if place == 4:
                start(chrome, page, 2)  # a reload resumes the test
        until(chrome, lambda: "last sound" in chrome.find_element(By.ID, "stage").text)
        chrome.find_element(By.CSS_SELECTOR, ".next").click()
        saved = tmp_path / "down" / f"answers-{key.test}-2.json"
        until(chrome, saved.exists)
        assert chromium.complaints(chrome) == []

    liked_more = answered(key, 1, lambda question, systems, *_: LIKED[systems[0]] + (systems == ["mine"]))
    files = [str(saved), str(write(tmp_path / "other.json", liked_more))]
    done = works("listening-test", "score", *files, "--key", "test/key.json", "--json", "score.json", cwd=sounds)
    result = json.loads((sounds / "score.json").read_text())
    assert result["raters"] == {"passed": [1, 2], "failed": {}}
    for question in ("quality", "relevance"):
        means = {name: one["mean"] for name, one in result["questions"][question]["means"].items()}
        assert means == {"mine": 3.5, "real": 5.0}  # 3 in the browser, 4 in the other file
    for shown in ("mine − real", "3.5", "agreement of raters"):
        assert shown in done.stdout


@pytest.mark.slow
def test_a_scale_of_a_hundred_and_comparisons(sounds, tmp_path):
    wide, wide_key = make(sounds, "wide", "mine", "--questions", "similarity", "--scale", "100")
    (sounds / "own.yaml").write_text("dryness: {rate: How dry, compare: Which is drier, labels: [a, b, c, d, e], repeat: 2}")
    pairs, pairs_key = make(sounds, "pairs", "mine", "other", "--questions", "quality,dryness", "--own", "own.yaml", "--ab")
    with chromium.browser() as chrome:
        start(chrome, wide, 1)
        hear(chrome)  # the reference, too
        assert not chrome.find_element(By.CSS_SELECTOR, ".next").is_enabled()
        slider = chrome.find_element(By.CSS_SELECTOR, "input[type=range]")
        slider.click()  # its middle, where it stood: that is an answer
        assert chrome.find_element(By.CSS_SELECTOR, ".ends output").text in ("50", "51")
        go_on(chrome)
        kept = chrome.execute_script("return localStorage.getItem(Object.keys(localStorage)[0])")
        assert json.loads(kept)[0]["sounds"] == wide_key.order_of(1)[0]
        assert json.loads(kept)[0]["similarity"] in (50, 51)

        start(chrome, pairs, 3)
        hear(chrome)
        assert len(chrome.find_elements(By.CSS_SELECTOR, ".player")) == 2
        chrome.find_element(By.TAG_NAME, "body").send_keys("3")  # B, of the first question
        chrome.find_element(By.TAG_NAME, "body").send_keys("2")
        chrome.save_screenshot(tmp_path / "pair.png")
        go_on(chrome)
        kept = chrome.execute_script(f"return localStorage.getItem('soundmill listening test {pairs_key.test} 3')")
        assert json.loads(kept) == [{"sounds": pairs_key.order_of(3)[0], "quality": "second", "dryness": "same"}]
        assert chromium.complaints(chrome) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "beauty"], "--questions: 'beauty' is not one of quality, relevance, similarity"),
        (["--scale", "10"], "--scale 10: must be 5 or 100"),
        (["--scale", "100", "--ab"], "--ab and --scale"),
        (["--own", "bad.yaml"], "bad.yaml: sounds: is a name that files of answers use"),
    ],
)
def test_mistakes_are_named(sounds, arguments, message):
    (sounds / "bad.yaml").write_text("sounds: {}\n")
    done = soundmill("listening-test", "new", "mine", "--reference", "real", *arguments, cwd=sounds)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (sounds / "listening-test").exists()
