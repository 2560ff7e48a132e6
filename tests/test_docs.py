"""Keeps the docs true: what they link to and name exists, what they tell to run is accepted, and six commands of README.md run."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import bakeoff, sweep, trials
from soundmill import commands, params
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.publishing import model
from tests import docs_tables
from tests.checkouts import BIN
from tests.commands.running import works
from tests.docs_tables import ARCHITECTURE, LICENCES, architecture, spans
from tests.graph import copy
from tests.imports import EVERY_FAMILY, ROOT

DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
DVC = params.read_yaml(ROOT / "dvc.yaml")["stages"]
# What a person puts there: FAMILY, <stage>, {a,b}, *, ${key}.
PLACEHOLDER = re.compile(r"\$\{[^}]*\}|<[^>]*>|\{[^}]*\}|\*+|(?<![A-Za-z])(?!README)[A-Z]{3,}(?![A-Za-z])")
OURS = re.compile(r"(?<![\w./-])(?:soundmill|stages|flows|bench|tests|conf|docs)/[\w./{},*<>-]+")
UNTRACKED = ("data/.work", "data/bench", "data/kept")  # scratch, results of `make bench`, sounds kept on the page


def code(text: str) -> list[str]:
    """The lines of fenced blocks, continued ones joined, and the spans in backticks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()] + spans


def glob(path: str) -> str:
    return PLACEHOLDER.sub("*", path).rstrip("/.,")


def test_links_lead_somewhere():
    broken = []
    for doc in DOCS:
        for target in re.findall(r"\]\(([^)\s]+)\)", doc.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            there = (doc.parent / path) if path else doc
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M) if anchor and there.is_file() else []
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if not there.exists() or (anchor and anchor not in slugs):
                broken.append(f"{doc.name}: {target}")
    assert not broken, "\n".join(broken)


def test_files_that_docs_name_exist():
    kinds = ("outs", "metrics", "plots")
    listed = chain.from_iterable(stage.get("do", stage).get(kind, []) for stage in DVC.values() for kind in kinds)
    output = [PLACEHOLDER.sub("*", path) for entry in listed for path in ([entry] if isinstance(entry, str) else entry)]

    def is_made(path: str) -> bool:
        parts = glob(path).split("/")
        return path.startswith(UNTRACKED) or any(
            all(fnmatch(a, b) or fnmatch(b, a) for a, b in zip(parts, other.split("/"), strict=False)) for other in output
        )

    missing = []
    for doc in DOCS:
        text = doc.read_text(encoding="utf-8")
        paths = set(OURS.findall(text))
        paths |= {span for span in code(text) if re.fullmatch(r"[\w/<>{},*-]+/[\w<>{},*-]+\.(py|sh|yaml|md)", span)}
        missing += [
            f"{doc.name}: {path}"
            for path in sorted(paths)
            if not path.startswith("data/") and not any(list(place.glob(glob(path))) for place in (ROOT, ROOT / "soundmill"))
        ]
        data = set(re.findall(r"(?<![\w./-])data/[\w./{},*<>-]+", "\n".join(code(text))))
        missing += [f"{doc.name}: {path} is no output of dvc.yaml" for path in sorted(data) if not is_made(path)]
    assert not missing, "\n".join(missing)


def test_tests_that_docs_name_exist():
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    named = {span for doc in DOCS for span in code(doc.read_text(encoding="utf-8")) if re.fullmatch(r"test_\w+", span)}
    assert sorted(named - there) == []


def test_parameters_that_docs_name_exist():
    """`section.key` in backticks is a key of params.yaml."""
    captioned = [f"{family}=captions" for family in ("waveform_unet", "diffwave", "rave")]
    choices = [["corpus=synthetic", *captioned], ["corpus=auto", "vocoder=istft_laptop"], ["corpus=union", "scale=paper"]]
    documents = [params.compose(ROOT / "conf", [EVERY_FAMILY, *choice]) for choice in choices]

    def is_key(name: str) -> bool:
        for document in documents:
            with suppress(UserError):
                params.section(document, name, "params.yaml")
                return True
        return False

    faults = []
    for doc in DOCS:
        for line in code(doc.read_text(encoding="utf-8")):
            key = line.partition(": ")[0]
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.split(".")[0] in documents[0] and not is_key(key):
                faults.append(f"{doc.name}: {key} is no parameter")
    assert not faults, "\n".join(faults)


def test_readme_begins_with_two_commands_and_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = [line.split("#")[0].strip() for line in re.search(r"^```\n(.*?)^```", text, re.M | re.S)[1].splitlines()]
    assert first == ["make demo", "make test"]
    assert len(text.split()) <= 650
    assert re.search(r"\]\((docs/\w+\.md)", text)[1] == "docs/architecture.md"


def test_the_stages_that_run_on_a_cluster_are_those_that_docs_name():
    text = (ROOT / "docs" / "orchestration.md").read_text("utf-8")
    named = re.search(r"^dask worker .*^```\n\nThe stages (.*?);", text, re.M | re.S)[1]  # up to what is said of all others
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "stages").glob("*.py")}
    mapping = {name for name, text in sources.items() if re.search(r"ctx\.(map|make)_shards", text)}
    assert set(spans(named)) == mapping


def test_generated_columns_of_architecture_are_current():
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert page == architecture(page), "run `make docs`"
    assert "TODO" not in page, "say what a stage does, and where a table is"


def test_licences_are_those_of_the_installed_packages():
    """Extras that are not installed here (`make bench`'s) are not in the table."""
    page = LICENCES.read_text(encoding="utf-8")
    assert page == docs_tables.licences(page), "run `make docs`"
    words, _, _ = page.partition("| licence |")
    for package in docs_tables.packages(["export", "test"]):
        if not docs_tables.is_permissive(docs_tables.licence(package)):
            assert any(fnmatch(package, name) for name in spans(words)), f"{package}: {docs_tables.licence(package)}"


def test_which_licences_are_permissive():
    for expression in ("MIT", "BSD-3-Clause AND (Apache-2.0 OR MIT)", "Apache-2.0 OR GPL-2.0-or-later"):
        assert docs_tables.is_permissive(expression), expression
    for expression in ("GPL-3.0-or-later", "MPL-2.0 AND (Apache-2.0 OR MIT)", "CC-BY-NC-4.0", "Other/Proprietary License"):
        assert not docs_tables.is_permissive(expression), expression


# Commands

# What stands for what a person puts there; for all else, `recordings`.
STANDS_FOR = {
    "CLIPS": "CLIPS", "COMMIT": "0" * 40, "FORMAT": "folder", "LABEL": "rain", "MODEL": "ddpm_mel", "NAME": "made",
    "NAMES": "vggish", "RUN_ID": "0" * 32, "STAGE": "train@ddpm_mel", "VARIANT": "default",
}  # fmt: skip
PROGRAMS = ("soundmill", "make", "dvc", "python")
INSTALLED = ("dask", "mlflow", "prefect")  # with the project; their options are their own
OTHERS = ("aws", "cp", "curl", "docker", "export", "kubectl", "ls", "openssl", "pip", "sed")


@dataclass(frozen=True)
class Command:
    """A simple command of a doc: its words, with what stands for placeholders; those of the commands before it in its line."""

    doc: str
    text: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...]
    named: bool  # in prose, where a command's name may stand for itself

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of fenced blocks of shell commands, continued ones joined; and the spans in backticks that begin as commands do."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if language not in ("csv", "python", "yaml", "mermaid") and not block.startswith("#!"):  # a whole script has its own test
            yield from ((line, False) for line in re.sub(r"\\\n", " ", block).splitlines() if line.split("#")[0].strip())
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        program, _, rest = re.sub(r"^(?:[A-Z_]+=\S* |time )*", "", span).partition(" ")
        if rest and program.rpartition("/")[2] in (*PROGRAMS, *INSTALLED):
            yield span, True


def simple_commands(doc: str, text: str, named: bool) -> Iterator[Command]:
    """The commands of a line, those of its substitutions among them."""
    for inner in re.findall(r"\$\(([^)]*)\)", text):
        yield from simple_commands(doc, inner, False)
    lexer = shlex.shlex(re.sub(r"\$\([^)]*\)", "CLIPS", text), posix=True, punctuation_chars="&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    before: list[tuple[str, ...]] = []
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";", "|", "&"):
            parts.append([])
        else:
            parts[-1].append(word)
    for part in parts:
        while part and (re.match(r"[A-Z_]+=", part[0]) or part[0] == "time"):
            part.pop(0)
        if part:
            words = tuple(word for given in part if (word := stand_in(given)))
            yield Command(doc, text, words, tuple(before), named)
            before.append(words)


def stand_in(word: str) -> str:
    """The word without what marks it as optional, repeated or one of several; for a placeholder what stands for it."""
    word = word.removeprefix("[")
    word = (word if "[" in word else word.removesuffix("]")).rstrip("…")
    if re.fullmatch(r"[A-Z|…]+", word):
        word = word.partition("|")[0].rstrip("…")
    key, equals, value = word.rpartition("=")
    if re.fullmatch("[A-Z_]{3,}|[AB]", value):
        value = STANDS_FOR.get(value, "recordings")
    key = STANDS_FOR["NAME"] if key == "NAME" else key
    return f"{key}{equals}{value or 'recordings'}" if word else ""


@cache
def own_commands() -> dict[str, Any]:
    """Every `soundmill` command that is no group (`corpus check`)."""
    found: dict[str, Any] = {}

    def visit(command: Any, words: tuple[str, ...]) -> None:
        for word, inner in getattr(command, "commands", {}).items():
            visit(inner, (*words, word))
        if not hasattr(command, "commands"):
            found[" ".join(words)] = command

    visit(typer.main.get_command(commands.app), ())
    return found


LINES = [(doc.name, *line) for doc in DOCS for line in lines(doc.read_text(encoding="utf-8"))]
COMMANDS = [command for doc, text, named in LINES for command in simple_commands(doc, text, named)]


@cache
def composed(*overrides: str) -> dict[str, Any]:
    return registry.compose(ROOT / "conf", overrides)


def check_soundmill(command: Command) -> None:
    words = command.words[1:]
    groups = {name.partition(" ")[0] for name in own_commands() if " " in name}
    if words == ("--help",) or (command.named and len(words) == 1 and words[0] in groups):
        return
    name = next((name for count in (2, 1) if (name := " ".join(words[:count])) in own_commands()), None)
    if name is None:
        raise UserError(f"no command {' '.join(words[:2])!r}")
    arguments = list(words[len(name.split()) :])
    if command.named and not [word for word in arguments if not word.startswith("--")]:
        options = {option for param in own_commands()[name].params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        if unknown := [word for word in arguments if word.partition("=")[0] not in options]:
            raise UserError(f"no option {', '.join(unknown)}")
        return
    try:
        given = own_commands()[name].make_context(name, arguments).params
    except typer.TyperException as error:
        raise UserError(str(error)) from None
    overrides = list(given.get("overrides") or [])
    if name == "params":
        registry.check(composed(*overrides))
    elif name == "run":
        chosen = ["corpus=auto", *([f"model={given['model']}"] if given["model"] else [])]
        registry.check(composed(*chosen, *overrides))
    elif name == "bakeoff":
        named = trials.comma_separated(given["families"]) or [family for family in registry.FAMILIES if family in str(overrides)]
        _, excluded = bakeoff.choose_models(ROOT, bakeoff.read_plan(ROOT, given["plan"]), overrides, named or ["ddpm_mel"])
        assert not excluded, excluded
    elif name == "sweep" and given["name"]:
        definition = sweep.read(ROOT, given["name"])  # its own points are planned in tests/flows/test_sweep.py
        chosen = trials.comma_separated(given["points"]) or list(definition.points)
        assert definition.points.keys() >= set(chosen)
        seeds = trials.numbers(given["seeds"] or "0")
        if overrides:
            sweep.plan(ROOT, definition, overrides, chosen[:1], seeds[:1])


def check_make(command: Command) -> None:
    done = subprocess.run(["make", "--dry-run", *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr.strip())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = [word.partition("=")[0] for word in command.words[1:] if "=" in word]
    if unknown := [name for name in variables if f"$${{{name}:+" not in makefile]:
        raise UserError(f"the Makefile has no {', '.join(unknown)}")


def check_dvc(command: Command) -> None:
    from dvc import cli

    try:
        given = vars(cli.parse_args(list(command.words[1:])))
    except cli.DvcParserError as error:
        raise UserError(str(error)) from None
    if given["cmd"] != "repro":
        return
    before = [words[2:] for words in command.before if words[0].endswith("soundmill") and words[1] == "params"]
    document = composed(*(before[-1] if before else [EVERY_FAMILY]))
    for stage in given["targets"]:
        name, _, item = stage.partition("@")
        entry = DVC.get(name)
        if entry is None or ("foreach" in entry) != bool(item):
            raise UserError(f"no stage {stage!r}")
        over = params.section(document, entry["foreach"].strip("${}"), "params.yaml") if item else ()
        if item and item != "FAMILY" and item not in over:
            raise UserError(f"no stage {stage!r}; there are those of {', '.join(over)}")


class Parsed(Exception):
    pass


def check_python(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.words[1] == "-c":
        compile(command.words[2], command.text, "exec")
        return
    if command.words[1] == model.LOADER:  # its arguments are those of a published model: tests/test_publishing.py runs it
        return
    flag, module, *arguments = command.words[1:]
    if module == "pytest":
        if not (ROOT / arguments[-1]).is_file():
            raise UserError(f"there are no tests {arguments[-1]}")
        return
    if flag != "-m" or not module.startswith(("bench", "flows.", "soundmill", "tests.")):
        raise UserError("no module of the project")
    if module == "soundmill" or module.startswith("tests.") or (command.named and not arguments):
        base = ROOT.joinpath(*module.split("."))
        assert base.with_suffix(".py").is_file() or (base / "__init__.py").is_file(), command.text
        return

    def parse_and_stop(parse: Any) -> Any:
        def stop(parser: argparse.ArgumentParser, given: Any = None) -> None:
            raise Parsed(parse(parser, arguments))

        return stop

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, parse_and_stop(getattr(argparse.ArgumentParser, name)))
        try:
            whole = (ROOT / module.replace(".", "/") / "__main__.py").exists()
            importlib.import_module(f"{module}.__main__" if whole else module).main()
        except Parsed as parsed:
            given = vars(parsed.args[0])
        except SystemExit:
            raise UserError("its arguments are refused") from None
    if given.get("overrides"):
        composed(EVERY_FAMILY, *given["overrides"])


@pytest.mark.slow
def test_every_command_in_the_docs_is_accepted_by_what_would_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # options that name files make their folders
    for name in ("dvc.yaml", "params.yaml"):  # of a checkout, as most commands want to be in
        (tmp_path / name).touch()
    faults = []
    for command in {(command.words, command.before, command.named): command for command in COMMANDS}.values():
        try:
            if command.program == "soundmill":
                check_soundmill(command)
            elif command.program == "make":
                check_make(command)
            elif command.program == "dvc":
                check_dvc(command)
            elif command.program == "python":
                check_python(command, monkeypatch)
            elif not (command.program in OTHERS or (command.program in INSTALLED and (BIN / command.program).exists())):
                raise UserError(f"{command.words[0]!r} is a command of no known kind")
        except UserError as error:
            faults.append(f"{command.doc}: {command.text}: {error} {capsys.readouterr().err.strip()}")
    assert not faults, "\n".join(faults)
    assert {command.doc for command in COMMANDS} >= {"README.md", "corpora.md", "evaluation.md", "parameters.md", "sweeps.md"}


# README's commands, with what the demo made in place of their capital words.
RUN = {
    "doctor": [],
    'generate "a dog barks"': ["generate", "a dog barks"],
    "reconstruct FILE…": ["reconstruct", "real/{clip}.wav"],
    "evaluate GENERATED REFERENCE --report page": ["evaluate", "{generated}", "real", "--report", "page"],
    "compare A B REFERENCE": ["compare", "{generated}", "{generated}", "real"],
    "listen MODEL…": ["listen", "ddpm_mel"],
}


@pytest.fixture(scope="module")
def demo(built_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's state, where its model is the newest; `real` are real clips by the names of generated ones."""
    project = copy(built_graph, tmp_path_factory.mktemp("demo") / "a checkout")
    output = sorted(path.stem for path in (project / "data/generated/ddpm_mel").glob("*.wav"))
    works("clips", "export", "--output", "real", "--", *output, cwd=project)
    os.utime(project / "data/models/ddpm_mel/config.json")
    return project


@pytest.mark.parametrize("text", RUN)
def test_commands_of_the_readme_run_over_the_demo(text: str, demo: Path, alone: None, shared: Path, monkeypatch) -> None:
    assert f"soundmill {text}" in {command.text for command in COMMANDS if command.doc == "README.md"}
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(demo / "cache"))
    places = {"generated": "data/generated/ddpm_mel", "clip": sorted((demo / "real").glob("*.wav"))[0].stem}
    works(*(word.format(**places) for word in RUN[text] or [text]), cwd=demo)
