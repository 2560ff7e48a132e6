import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from soundmill import params
from soundmill.errors import UserError


class Inner(params.StageParams):
    depth: int = Field(ge=1)


class Example(params.StageParams):
    clip_seconds: params.Seconds = Field(gt=0)
    learning_rate: float = Field(gt=0)
    inner: Inner
    interval: list[float]


GOOD = {"clip_seconds": 5.0, "learning_rate": 1e-4, "inner": {"depth": 2}, "interval": [0.0, 1.0]}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_scientific_notation_is_a_number(tmp_path):
    path = write(tmp_path / "params.yaml", "x: {clip_seconds: 5, learning_rate: 1e-4, inner: {depth: 1}, interval: []}\n")
    assert params.parse_section(params.read_yaml(path), "x", Example).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_secnds": 1.0}, ["x.clip_secnds", "did you mean 'clip_seconds'"]),
        ({"clip_seconds": 0.0}, ["x.clip_seconds", "greater than 0"]),
        ({"clip_seconds": "5"}, ["x.clip_seconds", "valid number", "'5'"]),
        ({"clip_seconds": float("nan")}, ["x.clip_seconds", "finite"]),
        ({"inner": {"depth": 1.5}}, ["x.inner.depth", "valid integer"]),
        ({"inner": {"depth": True}}, ["x.inner.depth", "valid integer"]),
        ({"inner": {"dept": 1}}, ["x.inner.dept", "did you mean 'depth'", "x.inner.depth: missing"]),
    ],
)
def test_mistakes_name_the_key(tmp_path, change, words):
    path = tmp_path / "params.yaml"
    params.write_yaml({"x": {**GOOD, **change}}, path)
    with pytest.raises(UserError) as error:
        params.parse_section(params.read_yaml(path), "x", Example)
    for word in words:
        assert word in str(error.value)


def test_what_keys_say_together_is_told_without_their_values():
    class Together(Example):
        @model_validator(mode="after")
        def _fits(self):
            raise ValueError("clip_seconds does not go with learning_rate")

    with pytest.raises(UserError, match=r"^params\.yaml: x: clip_seconds does not go"):
        params.parse(Together, GOOD, "params.yaml: x")


def test_missing_section_and_file_say_where(tmp_path):
    path = write(tmp_path / "params.yaml", "segment: {}\n")
    with pytest.raises(UserError, match="section 'segmnt' is missing; did you mean 'segment'"):
        params.parse_section(params.read_yaml(path), "segmnt", Example)
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        params.read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="not readable as YAML"):
        params.read_yaml(write(tmp_path / "broken.yaml", "a: [1\n"))
    for text, said in (("", "an empty file"), ("a: [1\n", "not readable as YAML: .*")):
        with pytest.raises(UserError, match=f"{said}; `soundmill params` makes it again"):
            params.read_yaml(write(path, text))
    twice = write(tmp_path / "config.yaml", "seed: 1\nseed: 2\n")
    for read in (lambda: params.read_yaml(twice), lambda: params.compose(tmp_path, [])):  # Hydra has a reader of its own
        with pytest.raises(UserError, match=r'config\.yaml: not readable as YAML: line 2: found duplicate key "?seed.*$') as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000, "[" * 101 + "]" * 101])
def test_yaml_that_nests_too_deep_is_named_and_ends_no_process(tmp_path, text):
    path = write(tmp_path / "deep.yaml", f"a:\n {text}\n")
    code = "import sys; from pathlib import Path; from soundmill import params; params.read_yaml(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1  # of the error; libyaml's composer would have ended with a signal
    assert "deep.yaml: not readable as YAML: line " in done.stderr


LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LAUGHS, 6),
        ("a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)), 6),
        ("a: &a [1, *a]\n", 1),
        ("a: &a\n  b: *a\n", 2),
        ("a: " + "9" * 5000, None),
    ],
)
def test_yaml_that_stands_for_more_than_memory_is_named_with_its_line(tmp_path, text, line):
    path = write(tmp_path / "large.yaml", text)
    with pytest.raises(UserError, match=rf"large\.yaml: not readable as YAML: {f'line {line}: more than' if line else ''}"):
        params.read_yaml(path)
    if line:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"\.yaml: not readable as YAML"):
            params.compose(tmp_path, [])


def test_aliases_of_a_few_values_are_read(tmp_path):
    found = params.read_yaml(write(tmp_path / "x.yaml", "a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n"))
    assert found == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_json_that_nests_too_deep_is_named(tmp_path):
    path = write(tmp_path / "deep.json", "[" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json: not readable as JSON: nested too deeply; do this"):
        params.read_json(path, "do this")
    with pytest.raises(ValueError, match="nested too deeply"):
        params.parse_json(b'{"a": ' * 100_000)


@given(st.floats(min_value=1e-300, max_value=1e300, allow_nan=False))
def test_numbers_survive_a_round_trip(tmp_path_factory, number):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    params.write_yaml({"x": {"value": number}}, path)
    assert params.read_yaml(path)["x"]["value"] == number


def test_settings_replace_some_parameters_and_are_held_to_their_types():
    kept = Example.model_validate(GOOD)
    assert params.override(kept, [], "sampling") == kept
    changed = params.override(kept, ["inner.depth=50", "learning_rate=1e-3", "interval=[0.2, 0.8]"], "sampling")
    assert (changed.inner.depth, changed.learning_rate, changed.interval) == (50, 0.001, [0.2, 0.8])
    for setting, message in (
        ("innre=3", r"sampling: cannot set .*did you mean 'inner'\? .*keys: clip_seconds, learning_rate"),
        ("inner", "cannot set 'inner'"),
        ("inner.depth=many", r"sampling\.inner\.depth: .*integer.*found 'many'"),
        ("inner.speed=1", "did you mean|keys: depth"),
        ("inner=[", r"sampling\.inner: '\[' is not a YAML value"),
    ):
        with pytest.raises(UserError, match=message):
            params.override(kept, [setting], "sampling")
