"""A training that dies: as a killed process does, between two batches."""

from collections.abc import Iterator

import pytest

from soundmill.training.loader import Batch, Loader


class Killed(BaseException):
    pass


def die_before(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let every training of this process die when it is handed batch `step`."""
    batches = Loader.__iter__

    def until(self: Loader) -> Iterator[Batch]:
        for batch in batches(self):
            if batch.step == step:
                raise Killed
            yield batch

    patch.setattr(Loader, "__iter__", until)
