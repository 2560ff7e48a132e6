"""Prompt sets: those of the package are whole, and mistakes in one's own are named."""

from collections import Counter

import pytest

from soundmill.errors import UserError
from soundmill.prompts import sets


def test_the_sets_of_the_package():
    loaded, kinds = sets.load(sets.NAMES), sets.kinds()
    assert list(loaded) == list(sets.ORDER)
    assert len(kinds) == 10
    assert set(Counter(name for kind in kinds.values() for name in kind.classes).values()) == {1}  # no class of two kinds
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
    loaded = sets.load(["plain", str(path), "order"])
    assert list(loaded) == ["plain", "strings", "order"]
    assert loaded["strings"].kinds["violin"].classes == ["Violin, fiddle"]
    # The sounds of another set are not compared with it.
    assert loaded["plain"].kinds == loaded["order"].kinds == sets.kinds()


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
        sets.load([str(path)])


def test_an_unknown_set_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match=r"no prompt set 'plane'; did you mean 'plain'\?; there are plain, paraphrases"):
        sets.load(["plane"])
    with pytest.raises(UserError, match="two prompt sets are called 'plain'"):
        (tmp_path / "plain.yaml").write_text("about: x\nprompts: [{text: a}]\n")
        sets.load(["plain", str(tmp_path / "plain.yaml")])
