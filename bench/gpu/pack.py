"""Pack what the machine with the GPU lacks; see `bench.gpu`."""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from bench import measure
from bench.checkout import commit, copy_code
from flows import dvc
from soundmill import params
from soundmill.models import registry

# What an image with PyTorch, transformers, accelerate and pandas lacks of the packages that trainings import.
PACKAGES = [
    *("annotated-types", "cffi", "diffusers", "platformdirs", "pooch", "pydantic", "pydantic_core"),
    *("ruamel.yaml", "soundfile", "soxr", "typing-inspection"),
]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
SCALES = ("gpu", "paper")
# `scale=gpu` of the mel DDPM, and a transformer of that size over latents of log-mels, by label: the published codec and text
# encoder cannot be fetched there.
TRAININGS = [
    "model=[ddpm_mel,audio_dit]",
    "corpus=esc",
    "ddpm_mel=gpu",
    "ddpm_mel.train.hardware.precision=bf16",
    "audio_dit.train.hardware.precision=bf16",
    "audio_dit.train.batch_size=32",
    "audio_dit.train.network.layers=16",
    "audio_dit.train.network.heads=12",
    "audio_dit.train.network.head_width=64",
    "audio_dit.train.network.key_heads=6",
    "audio_dit.train.optimiser.learning_rate=3.0e-4",
    "audio_dit.train.ema.decay=0.9999",
    "audio_dit.train.sampling.num_steps=25",
]
FAMILIES = ("ddpm_mel", "audio_dit")
STAGES = ("train", "generate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path, help="directory to make")
    parser.add_argument("--recordings", type=Path, default=measure.ROOT.parent / "shared/data/esc10", help="ESC-10")
    parser.add_argument("--python", default="3.12", help="version of the other machine")
    parser.add_argument("--work", type=Path, help="directory of the project that makes the features, kept for `evaluate`")
    parser.add_argument("overrides", nargs="*", help="of the trainings' parameters")
    args = parser.parse_args()
    args.pack.mkdir(parents=True)
    with measure.workplace(None) as place:
        project = args.work or Path(place) / "project"
        make_features(project, [*TRAININGS, f"corpus.path={args.recordings.resolve()}", *args.overrides])
        pack_features(project, args.pack)
    presets = {scale: {family: composed(family, scale) for family in registry.FAMILIES} for scale in SCALES}
    (args.pack / "presets.json").write_text(json.dumps(presets))
    download_wheels(args.pack / "wheels", args.python)
    size = sum(path.stat().st_size for path in args.pack.rglob("*") if path.is_file())
    print(f"{args.pack}: {size / 2**20:.1f} MiB")


def composed(family: str, scale: str) -> dict:
    return params.compose(measure.ROOT / "conf", [f"model={family}", f"scale={scale}"])


def make_features(project: Path, overrides: list[str]) -> None:
    """Reproduce everything that the trainings read, in a copy of this checkout."""
    if not project.exists():
        project.mkdir(parents=True)
        copy_code(project, overrides)
        commit(project)
    makers = {maker for stage in stages_there(project) for maker in stage["makers"]}
    subprocess.run([dvc.executable(), "repro", "--quiet", *sorted(makers)], cwd=project, env=dvc.environment(), check=True)


def stages_there(project: Path) -> list[dict]:
    """The stages to run on the other machine: name, arguments, the data that they read, and the stages here that make the data."""
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        outs = {Path(out.fs_path): stage.name for stage in stages.values() for out in stage.outs}
        found = []
        for name in (f"{stage}@{family}" for family in FAMILIES for stage in STAGES):
            reads = {Path(dep.fs_path) for dep in stages[name].deps}
            made = {out: maker for out, maker in outs.items() if reads & {out, *out.parents} and maker.split("@")[0] not in STAGES}
            arguments = shlex.split(stages[name].cmd)[2:]  # without `sh stages/python.sh`
            paths = [str(path.relative_to(project.resolve())) for path in made]
            found.append({"name": name, "arguments": arguments, "reads": paths, "makers": [*made.values()]})
    return found


def pack_features(project: Path, pack: Path) -> None:
    """Copy parameters and data; write stages.json."""
    stages = stages_there(project)
    for name in {"params.yaml", "forgotten.yaml", *(path for stage in stages for path in stage["reads"])}:
        (pack / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, pack / "project" / name)
    (pack / "stages.json").write_text(json.dumps(stages))


def download_wheels(directory: Path, python: str) -> None:
    """Wheels of PACKAGES in the versions that are tested, for another Python."""
    pins = dict(line.split("==") for line in (measure.ROOT / "constraints.txt").read_text().split() if "==" in line)
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python]
    names = [f"{name}=={pins[name]}" for name in PACKAGES]
    subprocess.run([*command, *platforms, "--dest", str(directory), *names], check=True)


if __name__ == "__main__":
    main()
