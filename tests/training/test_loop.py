"""The loop: a step's content follows from (seed, step), so stopping and resuming changes nothing."""

import sys
import time
from functools import partial

import pytest
import torch

from soundmill.errors import UserError
from soundmill.training import checkpoint, module, monitoring
from soundmill.training import curve as curves
from soundmill.training.curve import Curve, Progress
from soundmill.training.loader import Loader
from soundmill.training.loop import LAST, PREVIOUS, fit
from soundmill.training.monitoring import HeldOut, Kept, Scoring, Validation
from soundmill.training.params import HardwareParams
from soundmill.training.seeds import seed_of
from tests.lost_bits import lose_a_bit
from tests.training import doubling
from tests.training.doubling import Killed, die_before, places

OFTEN = {"log_every_steps": 3, "validate_every_steps": 4, "validate_batches": 3}
PARAMS = doubling.PARAMS.model_copy(update=OFTEN)
OPTIMISER = PARAMS.optimiser
CPU = HardwareParams(accelerator="cpu", devices=1, precision="32", threads=1)


@pytest.fixture
def loader(tmp_path):
    """Makes loaders of so many steps."""
    return partial(doubling.make_loader, tmp_path)


class Regression(module.TrainingModule):
    """Learn to double numbers, with dropout, so that every source of randomness takes part."""

    def loss(self, step, batch):
        x = batch.values[0][..., 0].float() + 0.1 * torch.randn(len(batch.items), 4, generator=self.rng("x", step))
        return (self.net(x) - 2 * x).square().mean()


def _net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.3), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def _fit(loader, scratch, hardware=CPU, steps=23, accumulate=1, until=None, params=PARAMS, **more):
    """Train, for `until` of `steps` steps; returns what was trained, and the points of its curve."""
    trained, curve = Regression(_net(), params, steps, accumulate), Curve(4)
    batches = loader((until or steps) * accumulate)
    more = {"progress": Progress("test", 0.5), "curve": curve} | more
    fit(trained, batches, hardware=hardware, scratch=scratch, **more)
    return trained, curve.points


def _killed(batches, loader, scratch, **more):
    """The same, but it dies after so many batches."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_before(patch, batches)
        _fit(loader, scratch, **more)


def _same(one, other):
    states = zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in [*states, *zip(one.ema.shadow, other.ema.shadow, strict=True)])


def test_it_is_the_loop_of_a_textbook_bit_for_bit(loader, tmp_path):
    """Batch, loss, backward, clip, step, average; two batches to a step."""
    trained, points = _fit(loader, tmp_path, steps=9, accumulate=2)
    net, average, losses = _net(), _net(), []
    matrices, vectors = ([weight for weight in net.parameters() if (weight.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-8, fused=True)
    for batch in loader(18):
        torch.manual_seed(seed_of(5, 0, "net", batch.step))
        x = batch.values[0][..., 0].float()
        x = x + 0.1 * torch.randn(8, 4, generator=torch.Generator().manual_seed(seed_of(5, 0, "x", batch.step)))
        loss = (net(x) - 2 * x).square().mean()
        (loss / 2).backward()
        losses.append(loss.item())
        step, second = divmod(batch.step, 2)
        if second:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * module.rate_factor(step, 9, OPTIMISER)
            optimiser.step()
            optimiser.zero_grad()
            with torch.no_grad():
                decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
                for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                    mean.lerp_(weight, 1 - decay)
    assert all(torch.equal(*pair) for pair in zip(trained.net.parameters(), net.parameters(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(trained.ema.shadow, average.parameters(), strict=True))
    assert [point["loss/train"] for point in points] == [sum(some) / len(some) for some in (losses[:8], losses[8:16], losses[16:])]


@pytest.mark.parametrize("damaged", [[LAST], [LAST, PREVIOUS]], ids=["last", "both"])
def test_a_training_resumed_from_damaged_checkpoints_ends_like_an_unbroken_one(loader, tmp_path, damaged, capsys):
    whole, whole_curve = _fit(loader, tmp_path / "whole")
    _killed(14, loader, tmp_path / "killed")
    for name in damaged:
        (path,) = (tmp_path / "killed").rglob(name)
        lose_a_bit(path, 0.3)
    resumed, resumed_curve = _fit(loader, tmp_path / "killed")
    assert _same(whole, resumed)
    assert whole_curve == resumed_curve
    said = capsys.readouterr().out
    assert f"{LAST}: damaged" in said
    assert ("resuming at step" in said) == (damaged == [LAST])
    assert ("training starts from the beginning" in said) == (damaged != [LAST])


def test_a_finished_training_is_taken_as_it_is(loader, tmp_path):
    first, first_curve = _fit(loader, tmp_path)
    again, again_curve = _fit(loader, tmp_path)
    assert _same(first, again)
    assert first_curve == again_curve


class Judged(Regression):
    """Its held-out loss is lowest at step 8, where it is that of real batches; remembers what was measured."""

    def valid_loss(self, step, batch):
        self.__dict__.setdefault("seen", []).append((self.step, step, batch.items.tolist(), self.net.training))
        return self.loss(step, batch) + abs(self.step - 8)


def _validation(loader, every=4, patience=None):
    held_out = HeldOut(loader(1).source, 20)
    return Validation(held_out, places, 8, batches=3, every=every, patience=patience)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_held_out_batches_are_measured_and_the_best_weights_kept_killed_or_not(loader, tmp_path, accumulate, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Regression", Judged)
    whole = _validation(loader)
    trained, _ = _fit(loader, tmp_path / "whole", accumulate=accumulate, validation=whole)
    assert [point["step"] for point in whole.points] == [4, 8, 12, 16, 20, 23]
    assert (whole.step, whole.loss) == (8, whole.points[1]["loss/valid"])
    numbers = [(-1, [*range(8)]), (-2, [*range(8, 16)]), (-3, [16, 17, 18, 19, 0, 1, 2, 3])]
    assert trained.seen == [(step, *number, False) for step in (4, 8, 12, 16, 20, 23) for number in numbers]
    early, _ = _fit(loader, tmp_path / "early", accumulate=accumulate, until=8)
    assert all(torch.equal(*pair) for pair in zip(early.ema.shadow, whole.weights.values(), strict=True))
    unmeasured, _ = _fit(loader, tmp_path / "unmeasured", accumulate=accumulate)
    assert _same(trained, unmeasured)

    for killed_at in (9, 17):  # just after it was measured, and later
        scratch = tmp_path / f"killed-{killed_at}"
        _killed(killed_at * accumulate, loader, scratch, accumulate=accumulate, validation=_validation(loader))
        resumed = _validation(loader)
        _fit(loader, scratch, accumulate=accumulate, validation=resumed)
        assert (resumed.points, resumed.step) == (whole.points, 8)
        assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_a_training_ends_when_its_patience_does_killed_or_not(loader, tmp_path, monkeypatch):
    """Lowest at step 8; the losses at 12 and 16 are above it. It then is what a training of that state was at step 16."""
    monkeypatch.setattr(sys.modules[__name__], "Regression", Judged)
    whole = _validation(loader, patience=2)
    trained, points = _fit(loader, tmp_path / "whole", validation=whole)
    assert ([point["step"] for point in whole.points], whole.step) == ([4, 8, 12, 16], 8)
    assert (trained.step, trained.steps, points[-1]["step"]) == (16, 16, 16)
    unending, _ = _fit(loader, tmp_path / "unending", until=16)
    assert _same(trained, unending)

    again = _validation(loader, patience=2)  # it had ended: nothing is trained or measured again
    ended, same_points = _fit(loader, tmp_path / "whole", validation=again)
    assert (ended.step, ended.steps, again.points, same_points) == (16, 16, whole.points, points)
    assert _same(trained, ended)
    scratch = tmp_path / "killed"
    _killed(13, loader, scratch, validation=_validation(loader, patience=2))
    resumed = _validation(loader, patience=2)
    other, _ = _fit(loader, scratch, validation=resumed)
    assert (other.steps, resumed.points) == (16, whole.points)
    assert _same(trained, other)


def _scoring(every=5, most=None, operations=0):
    """Scores that are lowest after step 10; they depend on the averaged weights and leave the generator elsewhere."""

    def measure(module, step):
        with module.ema.applied(module.net):
            torch.rand(step)
            values = {"score/fad": float(module.net[0].weight.detach().sum()) + 10 * abs(step - 10), "score/kl": float(step)}
        return values, operations

    return Scoring(every, measure, most)


def test_scores_are_measured_and_the_weights_of_the_lowest_kept_killed_or_not(loader, tmp_path):
    whole, sent = _scoring(), []
    trained, _ = _fit(loader, tmp_path / "whole", scoring=whole, report=lambda values, step: sent.append((values, step)))
    assert [point["step"] for point in whole.points] == [5, 10, 15, 20, 23]
    assert [({"step": step, **values}) for values, step in sent if "score/fad" in values] == whole.points
    assert (whole.step, whole.score) == (10, whole.points[1]["score/fad"])
    early, _ = _fit(loader, tmp_path / "early", until=10)
    assert all(torch.equal(*pair) for pair in zip(early.ema.shadow, whole.weights.values(), strict=True))
    unscored, _ = _fit(loader, tmp_path / "unscored")
    assert _same(trained, unscored)

    for killed_at in (11, 17):
        scratch = tmp_path / f"killed-{killed_at}"
        _killed(killed_at, loader, scratch, scoring=_scoring())
        resumed = _scoring()
        _fit(loader, scratch, scoring=resumed)
        assert (resumed.points, resumed.step, resumed.score) == (whole.points, 10, whole.score)
        assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_scores_that_cost_more_than_their_share_of_operations_come_less_often_killed_or_not(loader, tmp_path, capsys):
    """A score costs as much as three steps: 12 steps between scores would be a fifth; the next multiple of 5 is 15."""
    step = 2 * 8 * 4 * 16 * 5  # for eight items; two products forward, three back: the input has no gradient
    whole = _scoring(most=0.2, operations=3 * step)
    trained, _ = _fit(loader, tmp_path / "whole", scoring=whole)
    assert whole.step_operations == step
    assert [point["step"] for point in whole.points] == [5, 15, 23]
    assert "every 5 steps, scores would be 38% of all operations; for 20% (score_share), the next ones come every 15 steps" in (
        capsys.readouterr().out
    )
    uncounted, _ = _fit(loader, tmp_path / "uncounted")
    assert _same(trained, uncounted)
    for killed_at in (3, 11, 17):
        scratch = tmp_path / f"killed-{killed_at}"
        _killed(killed_at, loader, scratch, scoring=_scoring(most=0.2, operations=3 * step))
        resumed = _scoring(most=0.2, operations=3 * step)
        _fit(loader, scratch, scoring=resumed)
        assert (resumed.points, resumed.spacing) == (whole.points, 15)
    cheap = _scoring(most=0.2, operations=step)
    _fit(loader, tmp_path / "cheap", scoring=cheap)
    assert [point["step"] for point in cheap.points] == [5, 10, 15, 20, 23]


def test_operations_of_attention_are_counted_on_every_device():
    q = torch.randn(1, 2, 3, 4, requires_grad=True)  # two heads, three frames
    with monitoring.Operations() as counted:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    forward = counted.total
    assert forward == 2 * (2 * 2 * 3 * 3 * 4)  # two products of two operations for each of 3 · 3 · 4 numbers and head
    with monitoring.Operations() as counted:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counted.total > 2 * forward


def test_a_score_that_cannot_be_measured_is_told_and_the_training_goes_on(loader, tmp_path, capsys):
    broken = _scoring()
    measured = broken.values

    def measure(module, step):
        if step in (5, 10):
            raise UserError("the model's output is not finite")
        return measured(module, step)

    broken.values = measure
    _fit(loader, tmp_path, scoring=broken)
    assert [point["step"] for point in broken.points] == [15, 20, 23]
    assert broken.step == 15
    said = capsys.readouterr().out
    told = [step for step in (5, 10, 15) if f"test: no scores at step {step}: the model's output is not finite\n" in said]
    assert told == [5, 10]


def test_the_cost_of_scores_is_told_with_what_would_lower_it(loader, tmp_path, capsys):
    """The clock is the test's: a step takes a second, a score three; so 27 steps between scores would be a tenth."""
    now = [0.0]
    slow, told = _scoring(), r"test: scores took {} s, {}% of the training's time"
    measured = slow.values

    def measure(module, step):
        now[0] += 3
        return measured(module, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring.time, "monotonic", lambda: now[0])
        patch.setattr(Regression, "loss", lambda self, *_: now.__setitem__(0, now[0] + 1) or self.net(torch.ones(1, 4)).mean())
        slow.values = measure
        _fit(loader, tmp_path / "slow", scoring=slow)
        said = capsys.readouterr().out
        assert said.count("set score_every_steps to 27, or score_requests lower") == 1
        assert told.format(3, "37.5") + "; for 10%, set" in said
        assert told.format(15, "39.5") + "\n" in said
        now[0] = 0.0
        rare = _scoring(23)
        _fit(loader, tmp_path / "rare", scoring=rare)
        assert told.format(0, "0.0") + "\n" in capsys.readouterr().out


def test_weights_of_some_steps_are_kept_the_newest_of_them_killed_or_not(loader, tmp_path):
    whole, killed = Kept(tmp_path / "whole", 5, 2), Kept(tmp_path / "killed", 5, 2)
    trained, _ = _fit(loader, tmp_path / "whole", kept=whole)
    assert whole.steps(23, 23) == [15, 20]
    assert {path.name for path in (tmp_path / "whole").glob("*.safetensors")} == {"step-15.safetensors", "step-20.safetensors"}
    early, _ = _fit(loader, tmp_path / "early", until=15)
    early.ema.copy_to(early.net)
    assert all(torch.equal(value, early.net.state_dict()[name]) for name, value in checkpoint.read_weights(whole.path(15)).items())
    unkept, _ = _fit(loader, tmp_path / "unkept")
    assert _same(trained, unkept)

    _killed(17, loader, tmp_path / "killed", kept=killed)
    assert {path.name for path in (tmp_path / "killed").glob("*.safetensors")} == {"step-10.safetensors", "step-15.safetensors"}
    _fit(loader, tmp_path / "killed", kept=killed)
    files = [sorted(path.glob("*.safetensors")) for path in (tmp_path / "whole", tmp_path / "killed")]
    for one, other in zip(*files, strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_without_an_interval_only_the_end_is_measured(loader, tmp_path):
    sent = []
    measured = _validation(loader, every=None)
    _fit(loader, tmp_path, validation=measured, report=lambda values, step: sent.append((values, step)))
    assert [point for point in sent if "loss/valid" in point[0]] == [({"loss/valid": measured.loss}, 23)]


def test_curves_side_by_side():
    training = [{"step": step, "loss/train": step / 10, "learning_rate": 0.1} for step in (2, 4, 6, 7)]
    assert curves.side_by_side(training, []) == training
    held_out = [{"step": 4, "loss/valid": 3.0}, {"step": 5, "loss/valid": 2.5}, {"step": 7, "loss/valid": 2.0}]
    assert curves.side_by_side(training, held_out) == [
        {"step": 4, "loss/train": pytest.approx(0.3), "loss/valid": 3.0, "learning_rate": 0.1},
        {"step": 5, "loss/train": pytest.approx(0.4), "loss/valid": 2.5, "learning_rate": 0.1},  # measured more often
        {"step": 7, "loss/train": pytest.approx(0.65), "loss/valid": 2.0, "learning_rate": 0.1},
    ]


def test_a_loss_that_is_no_number_ends_it_with_advice(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "loss", lambda self, *_: self.net(torch.full((1, 4), float("nan"))).mean())
    with pytest.raises(UserError, match=r"step 4: lower optimiser\.learning_rate"):
        _fit(loader, tmp_path)


def test_a_batch_of_another_step_is_refused(loader, tmp_path):
    """A loader that lost its place must not go unnoticed."""

    class Forgetful(Loader):
        def load_state_dict(self, state):
            pass

    _killed(10, loader, tmp_path)

    def forgetful(steps):
        output = loader(steps)
        output.__class__ = Forgetful
        return output

    with pytest.raises(RuntimeError, match="expected batch 9, got batch 0"):
        _fit(forgetful, tmp_path)


def test_a_missing_gpu_is_named(loader, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="accelerator is `gpu`"):
        _fit(loader, tmp_path, HardwareParams(accelerator="gpu", devices=1, precision="32", threads=1))


def test_the_pace_is_of_the_steps_after_the_first_few(loader, tmp_path):
    pace = {}
    for steps in (curves.WARM_UP_STEPS, 12):
        progress, began = Progress("test", 0.5), time.monotonic()
        _fit(loader, tmp_path / str(steps), steps=steps, progress=progress)
        pace[steps] = progress.seconds_per_step
        took = time.monotonic() - began
    assert pace[curves.WARM_UP_STEPS] is None
    assert 0 < pace[12] <= took / (12 - curves.WARM_UP_STEPS)


def test_the_look_after_the_last_step_is_not_in_the_pace(loader, tmp_path, monkeypatch):
    """A bake-off times a few steps with one look after them, which costs as much as two or three of them."""
    now, progress = [0.0], Progress("test", 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Validation, "_measure", lambda *_: now.append(now.pop() + 100.0) or 1.0)
    monkeypatch.setattr(Regression, "loss", lambda self, *_: now.append(now.pop() + 1.0) or self.net(torch.ones(1, 4)).mean())
    _fit(loader, tmp_path / "scratch", steps=8, progress=progress, validation=_validation(loader, every=8))
    assert progress.seconds_per_step == 1


def test_curves_of_speed_count_items_of_all_batches_and_the_time_waited_for_them(loader, tmp_path, monkeypatch):
    clock = 100.0

    def pass_time(seconds):
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock)

    class Slow(Regression):
        def loss(self, step, batch):
            pass_time(1.0)
            return super().loss(step, batch)

    class SlowLoader(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                pass_time(3.0)
                self.waited += 3.0
                yield batch

    def slow(steps):
        batches = loader(steps)
        batches.__class__ = SlowLoader
        return batches

    points, report = [], lambda values, step: points.append((step, values))
    monkeypatch.setattr(sys.modules[__name__], "Regression", Slow)
    # Two batches of eight items, four seconds each, per step.
    _fit(slow, tmp_path, steps=4, accumulate=2, curve=Curve(10), report=report)
    timed = [(step, values) for step, values in points if "steps_per_second" in values]
    assert [step for step, _ in timed] == [2, 4]
    for _, values in timed:
        assert values.pop("peak_memory_bytes") > 2**20
        values.pop("peak_gpu_memory_bytes", None)
        speeds = {"steps_per_second": 0.125, "items_per_second": 2.0, "sound_seconds_per_second": 1.0}
        assert values == speeds | {"data_wait_share": 0.75}
