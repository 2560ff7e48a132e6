"""Files of answers are held to the key: every fault is an error that names the file and the place in it."""

import copy
import json

import pytest

from soundmill.errors import UserError
from soundmill.listening import answers
from tests.listening.answering import answered, make_key, write

KEY = make_key(["a", "b"], 3, ("quality", "relevance"))
WHOLE = answered(KEY, 2, lambda *_: 3)
FIRST = WHOLE["answers"][0]
OTHER = next(name for name in KEY.sounds if [name] != FIRST["sounds"])


def changed(change) -> dict:
    document = copy.deepcopy(WHOLE)
    change(document)
    return document


def test_whole_answers(tmp_path):
    read = answers.read(write(tmp_path / "a.json", WHOLE), KEY)
    assert read.rater == 2
    assert len(read.given) == len(KEY.order_of(2))
    assert set(read.given[0]) == {"quality", "relevance"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("test"), "test: missing"),
        (lambda d: d.update(test="ffffffffffff"), "test: 'ffffffffffff': answers to another test; the key is for 0123456789ab"),
        (lambda d: d.update(format=True), "format: True: expected 1"),
        (lambda d: d.update(extra=1), "'extra': unknown"),
        (lambda d: d.update(rater="2"), "rater: '2': expected a whole number from 1 to 10000"),
        (lambda d: d.update(rater=True), "rater: True: expected a whole number"),
        (lambda d: d.update(rater=0), "rater: 0: expected a whole number"),
        (lambda d: d.update(rater=10**30), "rater: 1000000000000000000000000000000: expected a whole number"),
        (lambda d: d.update(rater=3), "answers.0.sounds: "),  # another order
        (lambda d: d.update(answers={}), "answers: expected a list, found {}"),
        (lambda d: d["answers"].__setitem__(0, None), "answers.0: expected sounds, quality, relevance, found None"),
        (lambda d: d["answers"][1].pop("relevance"), "answers.1.relevance: missing"),
        (lambda d: d["answers"][1].update(qualty=3), "answers.1.'qualty': unknown; did you mean 'quality'?"),
        (lambda d: d["answers"][1].update(quality="3"), "answers.1.quality: '3': expected a whole number from 1 to 5"),
        (lambda d: d["answers"][1].update(quality=3.0), "answers.1.quality: 3.0: expected a whole number"),
        (lambda d: d["answers"][1].update(quality=True), "answers.1.quality: True: expected a whole number"),
        (lambda d: d["answers"][1].update(quality=6), "answers.1.quality: 6: expected a whole number from 1 to 5"),
        (lambda d: d["answers"][1].update(quality=float("nan")), "answers.1.quality: nan: expected a whole number"),
        (lambda d: d["answers"][1].update(quality=[3]), r"answers.1.quality: [3]: expected a whole number"),
        (lambda d: d["answers"][0].update(sounds=["s999"]), "answers.0.sounds: 's999' is not a sound of this test"),
        (lambda d: d["answers"][0].update(sounds=[["s001"]]), "answers.0.sounds: expected names of sounds"),
        (lambda d: d["answers"][0].update(sounds="s001"), "answers.0.sounds: expected names of sounds, found 's001'"),
        (
            lambda d: d["answers"][0].update(sounds=[OTHER]),
            f"answers.0.sounds: {OTHER}: expected {FIRST['sounds'][0]} as trial 1 of rater 2",
        ),
        (lambda d: d["answers"].append(FIRST), "more answers than the 15 trials of this test"),
        (lambda d: d["answers"].insert(0, FIRST), "answers.1.sounds: "),
        (lambda d: d["answers"].pop(), "answers: only 14 of 15 trials are answered; rater 2 must finish the test"),
        (b"", "not a file of answers"),
        (b"\xff\xfe\x00", "not a file of answers"),
        (b"[" * 100_000, "too deep"),
        (b"[1]", "expected format, test, rater, answers, found [1]"),
        (b'{"format": 1, "format": 1}', "'format' is repeated"),
        (json.dumps(WHOLE).replace('"quality": 3', '"quality": 3, "quality": 5', 1).encode(), "'quality' is repeated"),
        (b" " * 4_000_001, "larger than 4 MB"),
    ],
)
def test_hostile_answers_are_named(tmp_path, change, message):
    path = write(tmp_path / "a.json", WHOLE if isinstance(change, bytes) else changed(change))
    if isinstance(change, bytes):
        path.write_bytes(change)
    with pytest.raises(UserError) as error:
        answers.read(path, KEY)
    assert str(error.value).startswith(f"{path}: ")
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
    with pytest.raises(UserError, match=r"answers.4.quality: .*: expected first, same or second"):
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
