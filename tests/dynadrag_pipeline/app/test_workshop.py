"""Edits behind the page: one at a time, told step by step, ended on request, with what a picture costs kept."""

from __future__ import annotations

import doctest
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.app import workshop as workshop_module
from dynadrag_pipeline.app.edits import Base, Cancelled, Edit, Order, Progress, Watcher
from dynadrag_pipeline.app.limits import MOST_PAIRS, check_picture
from dynadrag_pipeline.app.turns import Turns
from dynadrag_pipeline.app.workshop import Workshop, _iterations_left
from motion_predictor.common.command_errors import CommandError


@pytest.fixture
def order(picture: Any, quick: dict[str, Any]) -> Order:
    shown = Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).numpy())
    return Order(Base(shown, "picture", shown), [[30, 40], [70, 20]], [[40, 40], [70, 20]], given=quick)


@pytest.fixture
def workshop(pipe: DynaDragPipeline) -> Workshop:
    return Workshop(pipe)


def test_an_edit_is_what_a_call_of_the_pipeline_makes(workshop: Workshop, order: Order, quick: dict[str, Any]) -> None:
    *told, edit = workshop.edit(order, Watcher())
    assert isinstance(edit, Edit)
    seed = torch.Generator().manual_seed(0)
    called = workshop.pipe(order.base.shown, order.handles, order.targets, generator=seed, **quick)
    assert np.array_equal(np.asarray(edit.after), np.asarray(called.images[0]))
    assert edit.output.trajectories.tolist() == called.trajectories.tolist()
    assert edit.output.stop_reason == called.stop_reason
    steps = [event for event in told if isinstance(event, Progress) and event.image is not None]
    assert len(steps) == len(called.iterations)
    assert steps[-1].paths[0] == called.trajectories[:, 0].tolist()
    assert steps[0].text.startswith("iteration 1 of at most 3 · loss ")
    assert "px to go · about " in steps[0].text
    opening = [event.text for event in told if event.text.startswith("opening the picture: ")]
    assert any("DDIM inversion" in text for text in opening)
    assert [event.share for event in told] == sorted(event.share for event in told)


def test_what_a_picture_costs_once_is_kept(workshop: Workshop, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_session = workshop.pipe.open_session
    monkeypatch.setattr(
        workshop.pipe, "open_session", lambda *args, **given: opened.append(1) or open_session(*args, **given)
    )
    first, second = (list(workshop.edit(order, Watcher()))[-1] for _ in range(2))
    assert opened == [1]
    assert (first.was_open, second.was_open) == (False, True)
    assert np.array_equal(np.asarray(first.after), np.asarray(second.after))
    assert "what was kept of the picture" in second.words[0]


def test_the_time_left_is_told_from_how_fast_handles_come_nearer() -> None:
    assert doctest.testmod(workshop_module).failed == 0
    assert [_iterations_left([8.0 - k for k in range(done + 1)], 20) for done in (1, 4, 8)] == [8, 5, 1]


def test_an_edit_goes_on_from_another(workshop: Workshop, order: Order) -> None:
    first = list(workshop.edit(order, Watcher()))[-1]
    base = Base(first.after, "picture", order.base.opened, first.result.state)
    more = Order(base, [[36, 40]], [[44, 40]], given=order.given)
    second = list(workshop.edit(more, Watcher()))[-1]
    session = workshop.pipe.open_session(order.base.opened, generator=torch.Generator().manual_seed(0), **order.given)
    list(session.drag(order.handles, order.targets, is_watched=True))
    list(session.drag(more.handles, more.targets, is_watched=True, continue_from=session.state))
    assert second.result.trajectory.tolist() == session.history[-1].trajectory.tolist()
    assert (second.result.state.latents == session.history[-1].state.latents).all()


def test_cancel_keeps_what_there_is_once_there_is_something(workshop: Workshop, order: Order) -> None:
    watcher, edit = Watcher(), None
    most = 10_000  # far more than are made until the cancelling is noticed
    long = replace(order, given={**order.given, "stop_distance": 0, "settle_iterations": most})
    for event in workshop.edit(long, watcher):
        if isinstance(event, Edit):
            edit = event
        elif event.image is not None:
            watcher.cancel()
    assert edit is not None
    assert edit.result.stop_reason == "interrupted"
    assert len(edit.result.iterations) < most
    watcher = Watcher()
    watcher.cancel()
    slow = Order(order.base, order.handles, order.targets, given=order.given, seed=5)
    with pytest.raises(Cancelled):
        list(workshop.edit(slow, watcher))
    assert isinstance(list(workshop.edit(order, Watcher()))[-1], Edit)


def test_an_edit_that_nobody_listens_to_ends_and_the_next_one_is_made(workshop: Workshop, order: Order) -> None:
    events = workshop.edit(order, Watcher())
    next(events)
    events.close()
    assert isinstance(list(workshop.edit(order, Watcher()))[-1], Edit)


def test_content_that_stayed_behind_is_told_with_what_may_help(workshop: Workshop, order: Order) -> None:
    edit = list(workshop.edit(order, Watcher()))[-1]
    assert isinstance(edit, Edit)
    assert edit.output.content is not None
    edit = replace(edit, result=replace(edit.result, stop_reason="reached"))
    for distance, advice in ((9.0, 1), (1.0, 0)):
        edit.output.content = replace(
            edit.output.content, distances=torch.tensor([distance, 0.0]), found=torch.tensor([True, True])
        )
        assert edit.words[1:3] == [f"pair 1: content {distance:.0f} px from its target of 10 px asked", "pin 2: held"]
        assert ["`supervision_steps`" in line for line in edit.words[3:]] == [True] * advice


def test_edits_end_with_the_app_also_those_that_wait(workshop: Workshop, order: Order) -> None:
    with workshop.turns.ask():
        events = workshop.edit(order, Watcher())
        next(events)
        workshop.close()
        with pytest.raises(Cancelled):
            list(events)


def test_an_edit_takes_no_more_than_its_time(workshop: Workshop, order: Order) -> None:
    list(workshop.edit(order, Watcher()))  # so that the picture is open
    late = list(workshop.edit(order, Watcher(most_seconds=0.0)))[-1]
    assert late.result.stop_reason == "interrupted"
    assert len(late.result.iterations) == 1


def test_a_failed_edit_says_why_and_the_next_one_is_made(
    workshop: Workshop, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(workshop.pipe.unet, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(workshop.edit(order, Watcher()))
    assert isinstance(list(workshop.edit(order, Watcher()))[-1], Edit)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"handles": [], "targets": []}, "`handles` must be at least one point"),
        (
            {"handles": [[1, 1]] * (MOST_PAIRS + 1), "targets": [[2, 2]] * (MOST_PAIRS + 1)},
            "`handles` must be at most",
        ),
        ({"handles": [[500, 1]], "targets": [[2, 2]]}, "`handles` must lie inside the picture"),
        ({"given": {"supervision_steps": 0}}, "`supervision_steps` must be a whole number"),
        ({"preset": "slow"}, "`preset` must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_api(
    workshop: Workshop, order: Order, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CommandError, match=said):
        list(workshop.edit(Order(**{**vars(order), **changes}), Watcher()))


def test_pictures_have_a_largest_size() -> None:
    with pytest.raises(ValueError, match=r"`image` must have at most 16,777,216 pixels here, got 4097x4096"):
        check_picture(Image.new("1", (4097, 4096)))


def test_turns_are_taken_in_order_and_their_places_known() -> None:
    turns = Turns(most_waiting=2)
    first, second, third = turns.ask(), turns.ask(), turns.ask()
    assert [turn.before() for turn in (first, second, third)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"Too many edits are waiting \(2\)"):
        turns.ask()
    with second:
        pass
    assert third.before() == 1
    waited: list[int] = []
    thread = threading.Thread(target=lambda: waited.append(third.before(timeout=30)))
    thread.start()
    with first:
        pass
    thread.join(30)
    assert waited == [0]


def test_people_wait_and_are_told_so(workshop: Workshop, order: Order) -> None:
    with workshop.turns.ask():
        events = workshop.edit(order, Watcher())
        waiting = next(events)
    assert isinstance(waiting, Progress)
    assert waiting.text == "waiting: 1 edit before yours"
    assert isinstance(list(events)[-1], Edit)
