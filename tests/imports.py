"""What the project's modules import, read from their source: the basis of the architecture and dvc.yaml tests."""

from collections.abc import Sequence
from pathlib import Path

from soundmill.shards.code import PACKAGES, ROOT, running


def module_name(path: Path) -> str:
    parts = path.resolve().relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


MODELS = ROOT / "soundmill" / "models"
COMPONENTS = MODELS / "components"


def packages(directory: Path) -> list[Path]:
    """The packages right below a directory."""
    return sorted(path for path in directory.iterdir() if (path / "__init__.py").exists())


def families() -> list[Path]:
    return [path for path in packages(MODELS) if path != COMPONENTS]


EVERY_FAMILY = f"model=[{','.join(path.name for path in families())}]"  # of `soundmill params`
VOCODED = "model=[audio_dit,ddpm_mel,projected_gan,tango,upsampler]"  # all of log-mels, and one of none: composed sooner


def components_of(family: Path, by_name: Sequence[str]) -> set[str]:
    """The components that a family's code imports or finds `by_name`, with those that they import."""
    used = running([*(module_name(source) for source in family.rglob("*.py")), *by_name])
    return {component.name for component in packages(COMPONENTS) if any(path.is_relative_to(component) for path in used)}
