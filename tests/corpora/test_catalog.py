"""Captions find their clips by id and time, never by order; others are made from names."""

import pytest

from soundmill.corpora import catalog
from soundmill.corpora.catalog import Heard, join_words, match
from soundmill.manifest import escape_path


def recording(recording_id, start=0.0, labels=()):
    return {"recording_id": recording_id, "path": f"{recording_id}.wav", "start_time": start, "labels": list(labels)}


def caption(recording_id, text, start=None, labels=()):
    return {"recording_id": recording_id, "caption": text, "start_time": start, "labels": list(labels), "origin": "x.csv:2"}


def clips(recording_id, *starts, seconds=5.0):
    of = {"recording_id": recording_id, "seconds": seconds}
    return [{"clip_id": f"{recording_id}_{start:g}", "start": start, **of} for start in starts]


def descriptions(result):
    return {clip_id: (actual.captions, actual.labels, actual.origin) for clip_id, actual in result.clips.items()}


def test_windows_have_their_own_captions_whatever_the_order_and_a_small_error():
    rows = [caption("a", "third", 40.02, ["c"]), caption("a", "first", 30.0, ["a"]), caption("a", "second", 34.9)]
    result = match([recording("a", 30.0, ["whole"])], rows, clips("a", 0.0, 5.0, 10.0), ["{label}"])
    assert descriptions(result) == {
        "a_0": (["first"], ["a"], "window"),
        "a_5": (["second"], ["whole"], "window"),
        "a_10": (["third"], ["c"], "window"),
    }
    assert (result.matched, result.missing) == (3, [])


def test_longer_clips_have_the_captions_of_all_windows_in_them():
    """Of a corpus that is captioned every 5 s, a variant of 10 s lacks none; the last window ends with the recording."""
    rows = [caption("a", name, 30.0 + 5 * number, [name]) for number, name in enumerate(["one", "two", "three", "four", "five"])]
    cut = clips("a", 0.0, 10.0, seconds=10.0) + clips("a", 20.0, seconds=2.0)
    result = match([recording("a", 30.0)], rows, cut, ["{label}"])
    assert descriptions(result) == {
        "a_0": (["one", "two"], ["one", "two"], "window"),
        "a_10": (["three", "four"], ["three", "four"], "window"),
        "a_20": (["five"], ["five"], "window"),
    }
    assert (result.matched, result.missing) == (5, [])
    shifted = match([recording("a", 30.0)], rows, clips("a", 2.0, 12.0, seconds=10.0), ["{label}"])
    assert descriptions(shifted) == {"a_2": (["two"], ["two"], "window"), "a_12": (["four", "five"],) * 2 + ("window",)}
    assert (shifted.matched, len(shifted.missing)) == (3, 2)  # the first begins before, the third lies in two


def test_a_recordings_caption_holds_for_all_clips_and_the_only_window_unless_in_the_middle():
    rows = [caption("a", "one", 30.0), caption("a", "two", 30.0)]
    result = match([recording("a", 30.0)], rows, clips("a", 0.0, 5.0), ["{label}"])
    assert descriptions(result) == {"a_0": (["one", "two"], [], "window"), "a_5": (["one", "two"], [], "recording")}
    result = match([recording("a", 0.0)], [caption("a", "middle", 10.0)], clips("a", 0.0, 10.0), ["{label}"])
    assert descriptions(result) == {"a_0": ([], [], "none"), "a_10": (["middle"], [], "window")}
    result = match([recording("a", labels=["dog"])], [caption("a", "barks")], clips("a", 0.0, 5.0), ["{label}"])
    assert descriptions(result) == {"a_0": (["barks"], ["dog"], "recording"), "a_5": (["barks"], ["dog"], "recording")}
    assert result.matched == 1


def test_every_template_with_the_fields_of_the_first_makes_a_caption():
    templates = ["{label} at {tempo} bpm", "{label}", "{file}", "the sound of {label}", "{label}", "{file} again"]
    result = match([recording("a", labels=["dog"]), recording("rain")], [], clips("a", 0.0) + clips("rain", 0.0), templates)
    found = descriptions(result)
    assert found == {"a_0": (["dog", "the sound of dog"], ["dog"], "label"), "rain_0": (["rain", "rain again"], [], "name")}


def test_captions_that_do_not_fit_are_left_out_and_tags_describe_what_has_no_caption():
    rows = [caption("a", "rain", labels=["water"]), caption("a", "a dog"), caption("b", "a bell")]
    heard = {"a_0": Heard(["dog", "wind"], {"rain"}), "a_5": Heard(["wind"], {"rain", "a dog"})}
    heard |= {"b_0": Heard([], {"a bell"}), "c_0": Heard(["bell"])}
    everything = [*clips("a", 0.0, 5.0), *clips("b", 0.0), *clips("c", 0.0)]
    result = match(list(map(recording, "abc")), rows, everything, ["{label}", "the sound of {tags}"], heard)
    found = {"a_0": (["a dog"], ["water"], "recording"), "a_5": (["the sound of wind"], ["water"], "tags")}
    assert descriptions(result) == found | {"b_0": ([], [], "none"), "c_0": (["the sound of bell"], [], "tags")}
    assert (result.matched, result.missing) == (3, [])


def test_captions_without_a_clip_are_named():
    rows = [caption("a", "late", 60.0), caption("gone", "x", 0.0), caption("silent", "y"), caption("a", "here", 0.0)]
    result = match([recording("a"), recording("silent")], rows, clips("a", 0.0, 5.0), ["{label}"])
    assert result.missing == ["a (x.csv:2)", "silent (x.csv:2)", "gone (x.csv:2)"]
    assert result.matched == 1
    assert descriptions(result)["a_5"] == ([], [], "none")


def test_lists_in_words():
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def facts(path: str, *labels: str, **more) -> dict[str, str]:
    return catalog.facts_of({"path": escape_path(path.encode()), **more}, labels)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("drums/HeavyKick_03.wav", {"file": "heavy kick", "folder": "drums"}),
        ("010 - Fire crackling/3-158476-A.ogg", {"folder": "fire crackling"}),
        (
            "pads/train/audio/warm pad 120bpm_C#min.wav",
            {"file": "warm pad", "folder": "pads", "tempo": "120", "key": "C sharp minor"},
        ),
        ("loop_bpm93.5_Am-2.flac", {"file": "loop", "tempo": "93.5", "key": "A minor"}),
        ("pad_999bpm.wav", {"file": "pad"}),
        ("a_120bpm_to_90bpm.wav", {"file": "to"}),
        ("strings Bb major.wav", {"file": "strings", "key": "B flat major"}),
        ("I Am here.wav", {"file": "am here"}),
        ("Abm-pad.wav", {"file": "pad", "key": "A flat minor"}),
        ("Y-0KrZ56kjtlv_340.flac", {}),
        ("MXrlMqk6m49.wav", {}),
        ("550e8400-e29b-41d4-a716-446655440000.wav", {}),
        ("Vögel/Straße im Regen.wav", {"file": "straße im regen", "folder": "vögel"}),
        ("雨/風の音.wav", {"file": "風の音"}),
        ("{label}/{0.__class__}.wav", {"file": "class", "folder": "label"}),
        ("-.wav", {}),
    ],
)
def test_names_give_what_is_in_them_and_nothing_else(path, expected):
    assert facts(path) == expected


def test_the_first_template_with_known_fields_makes_the_caption():
    templates = ["{label} at {tempo} bpm in {key}", "{label} at {tempo} bpm", "{label}", "{file}, {folder}", "{file}"]
    known = {"a loop at 90 bpm in A minor": facts("x_90bpm_Am.wav", "a loop"), "door slam": facts("door_slam.wav")}
    known |= {"dog, rain and wind": facts("x.wav", "dog", "rain", "wind"), "door slam, house": facts("house/door_slam.wav")}
    assert {catalog.choose(templates, of)[0].format_map(of): of for of in known.values()} == known
    assert catalog.choose(templates, facts("4.wav")) == []
    assert catalog.choose(["{label}"], {"label": "{file} {0}"})[0].format_map({"label": "{file} {0}"}) == "{file} {0}"
    assert facts("x_90bpm.wav", bpm=120.0)["tempo"] == "120"  # of a loop that was stretched to it
    assert catalog.facts_of({"path": "4.wav"}, [], ["rain", "wind", "bell"]) == {"tags": "rain, wind and bell"}


@pytest.mark.parametrize("template", ["", "a sound", "{sound}", "{label!r}", "{label:>9}", "{label.x}", "{}", "{0}", "{label"])
def test_other_templates_are_refused(template):
    with pytest.raises(ValueError, match=r"must contain \{label\}|expected '\}'"):
        catalog.fields_of(template)
