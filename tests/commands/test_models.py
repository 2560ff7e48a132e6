import json
import re
import shlex

from soundmill.models import registry
from tests.commands.running import soundmill


def test_generate_without_a_checkpoint_says_what_to_run(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    done = soundmill("generate", "--label", "dog", cwd=tmp_path)
    assert done.returncode == 1
    assert "no checkpoint; train one with `dvc repro`" in done.stderr


def test_families_are_listed_with_their_sizes_and_written(root, tmp_path):
    done = soundmill("families", "--json", str(tmp_path / "families.json"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert "23,331,457" in done.stdout
    assert "arXiv:2006.11239" in done.stdout
    described = json.loads((tmp_path / "families.json").read_text())
    assert list(described) == sorted(registry.FAMILIES)
    assert described["ddpm_mel"]["paper"] == {"unet": 23_331_457}
    assert described["ddpm_mel"]["laptop"]["unet"] > 0


GENERATE = ("generate", "--family", "ddpm_mel", "-n", "1", "--set", "num_steps=1")


def test_a_sentence_that_names_a_label_is_taken_for_it(built_graph, tmp_path):
    asked = (*GENERATE, "--project", str(built_graph))
    done = soundmill(*asked, "a dog barks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "'a dog barks' matches the label 'dog'\n"
    assert done.stdout == "sounds/dog-0-001.wav\n"
    itself = soundmill(*asked, "Dog", cwd=tmp_path)
    assert (itself.returncode, itself.stderr) == (0, "")


def test_a_prompt_without_a_label_is_answered_with_a_command_that_works(built_graph, tmp_path):
    done = soundmill(*GENERATE, "--project", str(built_graph), "a cow moos", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("unknown label 'a cow moos' (labels: bell, bird, ")
    command = shlex.split(re.search(r"this works: soundmill (.+)", done.stderr)[1])
    works = soundmill(*command, "-n", "1", "--set", "num_steps=1", cwd=tmp_path)
    assert works.returncode == 0, works.stderr
