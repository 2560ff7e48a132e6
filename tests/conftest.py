"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real recordings, captions and small models beside the checkout; tests that need them skip where they are absent."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "esc10").is_dir():
        pytest.skip("needs ../shared (real recordings and models), which is not beside this checkout")
    return path
