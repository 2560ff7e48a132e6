"""The loop: a step's content follows from (seed, step), so stopping and resuming changes nothing."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.training import callbacks, module, validation
from soundmill.training.checkpoint import LAST, PREVIOUS
from soundmill.training.loader import Loader, Order
from soundmill.training.params import DiffusersEmaParams, HardwareParams, OptimiserParams, TrainingParams
from soundmill.training.validation import HeldOut, Validation
from tests.lost_bits import lose_a_bit
from tests.training.test_ema import TINY_AUDIO, EveryBatch

OPTIMISER = OptimiserParams(
    learning_rate=0.01, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.01, warmup_steps=3, decay="cosine", clip_norm=1.0
)
EMA = DiffusersEmaParams(kind="diffusers", decay=0.9, min_decay=0.0, update_after_step=0)
PARAMS = TrainingParams(
    seed=5,
    start_from=None,
    optimiser=OPTIMISER,
    ema=EMA,
    log_every_steps=3,
    checkpoint_seconds=0.0,
    validate_every_steps=4,
    validate_batches=3,
    use="last",
    samples_every_steps=None,
)
CPU = HardwareParams(accelerator="cpu", devices=1, precision="32", threads=1)


@pytest.fixture
def loader(tmp_path):
    """Makes loaders over twenty spectrograms."""
    ids = [f"clip-{item:02d}" for item in range(20)]
    values = np.random.default_rng(0).standard_normal((20, 4, 6)).astype("<f2")
    size = {"num_mels": 4, "num_frames": 6, "digest": ""}
    rows = [{"clip_id": clip_id, "log_mel": one.tobytes(), **size} for clip_id, one in zip(ids, values, strict=True)]
    shards.write_rows(rows, tmp_path / "mels" / "shard-00000.parquet", manifest.SPECTROGRAMS)

    def make(steps):
        log_mels = gather_log_mels(tmp_path / "mels", ids, tmp_path / "flat")
        return Loader(Crops(log_mels, 1, 0.0), Order(5, dict.fromkeys(ids, 1.0), 8), places, steps=steps)

    return make


def places(step):
    return torch.rand(8, generator=torch.Generator().manual_seed(step))


class Regression(module.TrainingModule):
    """Learn to double numbers, with dropout, so that every source of randomness takes part."""

    def loss(self, step, batch):
        x = batch.values[0][..., 0].float() + 0.1 * torch.randn(len(batch.items), 4, generator=self.rng("x", step))
        return (self.net(x) - 2 * x).square().mean()


class _Killed(Exception):
    pass


class Kill(callbacks.pl.Callback):
    """After so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch.step + 1 == self.batches:
            raise _Killed


class StopAt(callbacks.pl.Callback):
    """End the training after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == self.steps


def _net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.3), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def _fit(loader, scratch, hardware=CPU, extra=(), steps=23, accumulate=1, validation=None):
    trained = Regression(_net(), PARAMS, steps, accumulate)
    curve = callbacks.Curve(4)
    module.fit(
        trained,
        loader(steps * accumulate),
        hardware=hardware,
        scratch=scratch,
        progress=callbacks.Progress("test"),
        curve=curve,
        validation=validation,
        callbacks=list(extra),
    )
    return trained, curve.points


def _same(one, other):
    states = zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in [*states, *zip(one.ema.shadow, other.ema.shadow, strict=True)])


@pytest.mark.parametrize(("killed_at", "accumulate"), [(1, 1), (10, 1), (23, 1), (13, 2)])
def test_a_killed_training_ends_like_an_unbroken_one(loader, tmp_path, killed_at, accumulate, capsys):
    whole, whole_curve = _fit(loader, tmp_path / "whole", accumulate=accumulate)
    with pytest.raises(_Killed):
        _fit(loader, tmp_path / "killed", extra=[Kill(killed_at)], accumulate=accumulate)
    resumed, resumed_curve = _fit(loader, tmp_path / "killed", accumulate=accumulate)
    assert _same(whole, resumed)
    assert whole_curve == resumed_curve
    assert [point["step"] for point in whole_curve] == [4, 8, 12, 16, 20, 23]
    assert ("resuming at step" in capsys.readouterr().out) == (killed_at > 3 * accumulate)


@pytest.mark.parametrize("damaged", [[LAST], [LAST, PREVIOUS]], ids=["last", "both"])
def test_a_training_resumed_from_damaged_checkpoints_ends_like_an_unbroken_one(loader, tmp_path, damaged, capsys):
    whole, whole_curve = _fit(loader, tmp_path / "whole")
    with pytest.raises(_Killed):
        _fit(loader, tmp_path / "killed", extra=[Kill(14)])
    for name in damaged:
        (path,) = (tmp_path / "killed").rglob(name)
        lose_a_bit(path, 0.3)
    resumed, resumed_curve = _fit(loader, tmp_path / "killed")
    assert _same(whole, resumed)
    assert whole_curve == resumed_curve
    said = capsys.readouterr().out
    assert f"{LAST}: is not as it was written" in said
    assert ("resuming at step" in said) == (damaged == [LAST])
    assert ("training starts from its beginning" in said) == (damaged != [LAST])


def test_a_finished_training_is_taken_as_it_is(loader, tmp_path):
    first, first_curve = _fit(loader, tmp_path)
    again, again_curve = _fit(loader, tmp_path)
    assert _same(first, again)
    assert first_curve == again_curve


def test_gradients_of_two_batches_are_those_of_one_twice_as_large(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Regression, "loss", lambda self, step, batch: (self.net(batch.values[0][..., 0].float()) - 1).square().mean()
    )
    monkeypatch.setattr(sys.modules[__name__], "_net", _linear)

    def wider(steps):
        made = loader(steps)
        order, made.order = made.order, Order(5, dict.fromkeys(map(str, range(20)), 1.0), 16)
        made.draw = lambda step: torch.cat([places(2 * step), places(2 * step + 1)])
        assert (made.order.batch(0) == np.concatenate([order.batch(0), order.batch(1)])).all()
        return made

    two, two_curve = _fit(loader, tmp_path / "two", accumulate=2)
    one, one_curve = _fit(wider, tmp_path / "one")
    torch.testing.assert_close(two.net.weight, one.net.weight)
    assert [point["step"] for point in two_curve] == [4, 8, 12, 16, 20, 23]
    for mine, theirs in zip(two_curve, one_curve, strict=True):
        assert mine == pytest.approx(theirs)


def _linear():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


class Judged(Regression):
    """Its held-out loss is lowest at step 8, where it is that of real batches; remembers what was measured."""

    def valid_loss(self, step, batch):
        self.__dict__.setdefault("seen", []).append((self.global_step, step, batch.items.tolist(), self.net.training))
        return self.loss(step, batch) + abs(self.global_step - 8)


def _validation(loader, every=4, **changes):
    held_out = HeldOut(loader(1).source, 20)
    return Validation(held_out, places, 8, batches=3, every=every, precision="32", **changes)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_held_out_batches_are_measured_and_the_best_weights_kept_killed_or_not(loader, tmp_path, accumulate, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Regression", Judged)
    whole = _validation(loader)
    trained, _ = _fit(loader, tmp_path / "whole", accumulate=accumulate, validation=whole)
    assert [point["step"] for point in whole.points] == [4, 8, 12, 16, 20, 23]
    assert (whole.step, whole.loss) == (8, whole.points[1]["loss/valid"])
    numbers = [(-1, [*range(8)]), (-2, [*range(8, 16)]), (-3, [16, 17, 18, 19, 0, 1, 2, 3])]
    assert trained.seen == [(step, *number, False) for step in (4, 8, 12, 16, 20, 23) for number in numbers]
    early, _ = _fit(loader, tmp_path / "early", accumulate=accumulate, extra=[StopAt(8)])
    assert all(torch.equal(*pair) for pair in zip(early.ema.shadow, whole.weights.values(), strict=True))
    unmeasured, _ = _fit(loader, tmp_path / "unmeasured", accumulate=accumulate)
    assert _same(trained, unmeasured)

    for killed_at in (9, 17):  # just after it was measured, and later
        scratch = tmp_path / f"killed-{killed_at}"
        with pytest.raises(_Killed):
            _fit(loader, scratch, accumulate=accumulate, validation=_validation(loader), extra=[Kill(killed_at * accumulate)])
        resumed = _validation(loader)
        _fit(loader, scratch, accumulate=accumulate, validation=resumed)
        assert (resumed.points, resumed.step) == (whole.points, 8)
        assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_without_an_interval_only_the_end_is_measured(loader, tmp_path):
    sent = []
    measured = _validation(loader, every=None, on_point=lambda values, step: sent.append((values, step)))
    _fit(loader, tmp_path, validation=measured)
    assert sent == [({"loss/valid": measured.loss}, 23)]


def test_curves_side_by_side():
    training = [{"step": step, "loss/train": step / 10, "learning_rate": 0.1} for step in (2, 4, 6, 7)]
    assert validation.side_by_side(training, []) == training
    held_out = [{"step": 4, "loss/valid": 3.0}, {"step": 7, "loss/valid": 2.0}]
    assert validation.side_by_side(training, held_out) == [
        {"step": 4, "loss/train": pytest.approx(0.3), "loss/valid": 3.0, "learning_rate": 0.1},
        {"step": 7, "loss/train": pytest.approx(0.65), "loss/valid": 2.0, "learning_rate": 0.1},
    ]


def test_it_learns(loader, tmp_path):
    _, points = _fit(loader, tmp_path, steps=200)
    assert points[-1]["loss/train"] < 0.5 * points[0]["loss/train"]


def test_a_loss_that_is_no_number_ends_it_with_advice(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "loss", lambda self, *_: self.net(torch.full((1, 4), float("nan"))).mean())
    with pytest.raises(UserError, match=r"step 4: lower optimiser\.learning_rate"):
        _fit(loader, tmp_path)


@pytest.mark.slow
def test_two_devices_share_the_work_and_end_with_one_model(loader, tmp_path):
    hardware = HardwareParams(accelerator="cpu", devices=2, precision="32", threads=1)
    whole = _validation(loader)
    trained, points = _fit(loader, tmp_path, hardware, accumulate=2, validation=whole)
    assert [point["step"] for point in points] == [4, 8, 12, 16, 20, 23]
    assert [point["step"] for point in whole.points] == [4, 8, 12, 16, 20, 23]
    assert whole.weights
    assert not torch.equal(trained.net[0].weight, _net()[0].weight)


def test_a_batch_of_another_step_is_refused(loader, tmp_path):
    """A loader that lost its place must not go unnoticed."""

    class Forgetful(Loader):
        def load_state_dict(self, state):
            pass

    with pytest.raises(_Killed):
        _fit(loader, tmp_path, extra=[Kill(10)])

    def forgetful(steps):
        made = loader(steps)
        made.__class__ = Forgetful
        return made

    with pytest.raises(RuntimeError, match="batch 9 was awaited, and batch 0 given"):
        _fit(forgetful, tmp_path)


def test_an_average_that_counts_batches_is_updated_on_each_as_the_training_goes(loader, tmp_path):
    """tiny-audio-diffusion updates it in `training_step`, before the step that the batch may end."""

    class Literal(Regression):
        def loss(self, step, batch):
            literal.update(self.net[0].weight)
            return super().loss(step, batch)

    net = _net()
    literal = EveryBatch(net[0].weight)
    trained = Literal(net, PARAMS.model_copy(update={"ema": TINY_AUDIO}), 60, 4)
    scratch = {"scratch": tmp_path, "progress": callbacks.Progress("test"), "curve": callbacks.Curve(4), "callbacks": []}
    module.fit(trained, loader(240), hardware=CPU, **scratch)
    assert trained.ema.steps == literal.calls == 240
    torch.testing.assert_close(trained.ema.shadow[0], literal.average)
    assert not torch.allclose(literal.average, net[0].weight)


def test_a_missing_gpu_is_named(loader, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"hardware\.accelerator"):
        _fit(loader, tmp_path, HardwareParams(accelerator="gpu", devices=1, precision="32", threads=1))


def test_rate_rises_and_falls():
    assert module.rate_factor(0, 100, OPTIMISER) == pytest.approx(0.25)
    assert module.rate_factor(50, 100, OPTIMISER) == pytest.approx(0.5)
    assert module.rate_factor(100, 100, OPTIMISER) == pytest.approx(0, abs=1e-12)
    falling = OPTIMISER.model_copy(update={"decay": "three_quarters"})
    assert [module.rate_factor(step, 100, falling) for step in (40, 100)] == pytest.approx([0.9, 0.75])
    held = OPTIMISER.model_copy(update={"decay": "none"})
    assert module.rate_factor(99, 100, held) == 1
    shrinking = held.model_copy(update={"decay": "exponential", "warmup_steps": 0})
    assert module.rate_factor(0, 100, shrinking) == 1
    assert module.rate_factor(50, 100, shrinking) ** 2 == pytest.approx(module.rate_factor(100, 100, shrinking)) == 0.045


def test_curve_file(tmp_path):
    callbacks.write_curve([{"step": 1, "loss/train": 0.5}, {"step": 2, "loss/train": 0.25}], tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text() == "step,loss/train\n1,0.5\n2,0.25\n"


def test_weights_of_another_net_are_refused_by_name(loader):
    trained = Regression(_net(), PARAMS, 1)
    other = {name: value + 1 for name, value in _net().state_dict().items()}
    trained.start_from(other, "there")
    assert all(torch.equal(*pair) for pair in zip(trained.ema.shadow, other.values(), strict=True))
    other["3.bias"] = torch.zeros(5)
    other["4.bias"] = torch.zeros(1)
    message = r"start_from: there: 3\.bias is \[5\] there and \[4\] here; 4\.bias is \[1\] there and absent here; make them agree"
    with pytest.raises(UserError, match=message):
        trained.start_from(other, "there")


def test_the_pace_is_of_the_steps_after_the_first_few(loader, tmp_path):
    pace = {}
    for steps in (callbacks.WARM_UP_STEPS, 12):
        progress = callbacks.Progress("test")
        trained = Regression(_net(), PARAMS, steps, 1)
        curve = callbacks.Curve(4)
        began = time.monotonic()
        module.fit(
            trained, loader(steps), hardware=CPU, scratch=tmp_path / str(steps), progress=progress, curve=curve, callbacks=[]
        )
        pace[steps] = progress.seconds_per_step
        took = time.monotonic() - began
    assert pace[callbacks.WARM_UP_STEPS] is None
    assert 0 < pace[12] <= took / (12 - callbacks.WARM_UP_STEPS)


def test_the_look_after_the_last_step_is_not_in_the_pace(loader, tmp_path, monkeypatch):
    """A bake-off times a few steps with one look after them, which costs as much as two or three of them."""
    look = 5.0
    monkeypatch.setattr(Validation, "_measure", lambda *_: time.sleep(look) or 1.0)
    progress = callbacks.Progress("test")
    module.fit(
        Regression(_net(), PARAMS, 8, 1),
        loader(8),
        hardware=CPU,
        scratch=tmp_path / "scratch",
        progress=progress,
        curve=callbacks.Curve(4),
        validation=_validation(loader, every=8),
        callbacks=[],
    )
    assert 0 < progress.seconds_per_step < look / 5
