"""A demo that was interrupted goes on by what it decided when it began."""

from __future__ import annotations

from deploynas.train import SupernetRecipe
from deploynas.workflows.demo import DemoPlan, begun
from deploynas.workflows.supernets import CHECKPOINT


def plan(passes, **changes):
    asked = {"data": "digits", "minutes": 8.0, "epochs": None, "seed": 0, **changes}
    return DemoPlan(**asked, settings=SupernetRecipe(epochs=passes, seed=asked["seed"]))


def test_what_was_begun_goes_on_whatever_the_machine_is_now_as_fast_as(tmp_path):
    first = plan(19.1)
    assert begun(tmp_path, first) == first
    (tmp_path / CHECKPOINT).write_bytes(b"half of it")
    assert begun(tmp_path, plan(19.67)) == first
    assert (tmp_path / CHECKPOINT).exists()


def test_another_demo_begins_anew(tmp_path):
    begun(tmp_path, plan(19.1))
    for change in ({"minutes": 4.0}, {"seed": 1}, {"data": "others"}, {"epochs": 3.0}):
        (tmp_path / CHECKPOINT).write_bytes(b"of another")
        other = plan(9.0, **change)
        assert begun(tmp_path, other) == other
        assert not (tmp_path / CHECKPOINT).exists()


def test_a_plan_without_a_checkpoint_is_made_anew(tmp_path):
    begun(tmp_path, plan(19.1))
    assert begun(tmp_path, plan(19.67)) == plan(19.67)
