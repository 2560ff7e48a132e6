"""What lanes share: the GPUs of the machine, and stages that several need."""

import threading

import pytest

from flows.pipeline import Lanes
from flows.trials import gpus_of
from soundmill.errors import UserError
from soundmill.params import LanesParams


@pytest.mark.parametrize(
    ("visible", "number", "gpus", "seen"),
    [("", 2, 0, [None, None]), ("0,1,2,3", 2, 2, ["0,1", "2,3"]), ("4,5,6,7", 3, 1, ["4", "5", "6"]), ("", 2, 2, UserError)],
)
def test_each_lane_sees_its_own_gpus(monkeypatch, visible, number, gpus, seen) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    params = LanesParams(number=number, gpus=gpus)
    if seen is UserError:
        with pytest.raises(UserError, match=r"execution\.lanes"):
            gpus_of(params)
    else:
        assert [variables.get("CUDA_VISIBLE_DEVICES") for variables in gpus_of(params)] == seen


def test_work_that_another_lane_does_is_waited_for() -> None:
    lanes, order = Lanes(), []

    def other() -> None:
        with lanes.alone("the same stage"):
            order.append("second")

    with lanes.alone("the same stage"):
        thread = threading.Thread(target=other)
        thread.start()
        with lanes.alone("another"):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]
    lanes.stopped = True
    with pytest.raises(UserError, match="interrupted"), lanes.alone("a third"):
        pass
