"""Sounds that are made for a person, by a net that is none."""

from types import SimpleNamespace

from torch import nn

from soundmill.play import making, session
from soundmill.play.checkpoints import Found, Models


def test_a_loop_is_named_without_its_number_and_the_first_sound_takes_two_steps(tmp_path, monkeypatch):
    loaded, steps = SimpleNamespace(model=SimpleNamespace(net=nn.Identity()), facts={"checkpoint": "0"}), []
    loaded.model.params = SimpleNamespace(sampling=SimpleNamespace(num_steps=9))
    play = session.Play(tmp_path, {"a": Found(tmp_path / "a", tmp_path)}, Models(1), tmp_path / "scratch")

    def make(asked, loaded, folder, output, home):
        steps.append(asked.settings)
        (output / "a-bell-0-001-120.5bpm.wav").touch()
        return [output / "a-bell-0-001-120.5bpm.wav"]

    for owner, name, value in (
        (play.models, "load", lambda found: loaded),
        (making, "passes", lambda *_: 1),
        (making, "make", make),
    ):
        monkeypatch.setattr(owner, name, value)
    play._get_ready()
    assert steps == [["num_steps=2"]]
    (path,) = play.sounds({"checkpoint": "a"}, session.Session(tmp_path))
    assert path.stem == "001-a-bell-0-120.5bpm"
