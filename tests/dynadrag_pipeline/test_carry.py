"""Carry in an edit: what it does to the latent, what it costs, and that all ways to an edit know of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline, settings
from dynadrag_pipeline.cli import main
from dynadrag_pipeline.content_search import content_offsets
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.kv_replacement import KVBank
from dynadrag_pipeline.latent_optimizer import LeastLoss
from dynadrag_pipeline.modular_blocks import DynaDragBlocks
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion_supervision import sample_patches
from dynadrag_pipeline.settings import settings_in_force
from motion_predictor import MotionPredictorOutput

POINTS = ([(40, 30), (70, 60)], [(52, 30), (70, 60)])  # a handle and a pin
SECOND = ([(20, 50)], [(12, 42)])
LORA, STEPS, SUPERVISION = 2, 4, 2


@pytest.fixture
def passes(unet) -> list[int]:
    count: list[int] = []
    unet.register_forward_hook(lambda *_: count.append(1))
    return count


def edit(pipe: DynaDragPipeline, picture, quick, **changes):
    return pipe(picture, *POINTS, output_type="pt", **(quick | {"locate_content": False} | changes))


class TestWhatItCosts:
    def test_carried_once_without_supervision_is_a_look_before_and_one_after(self, pipe, picture, quick, passes):
        edit(pipe, picture, quick, carry="once", settle_iterations=0)
        assert len(passes) == LORA + 2 * STEPS + 1 + STEPS + 1

    @pytest.mark.parametrize("iterations", [1, 3])
    def test_each_supervised_iteration_adds_its_adam_steps(
        self, pipe, picture, quick, passes, iterations, monkeypatch
    ):
        monkeypatch.setattr(DragEdit, "_content_is_there", lambda edit: False)
        result = edit(pipe, picture, quick, carry="once", settle_iterations=iterations)
        assert len(result.iterations) == 1 + iterations
        assert len(passes) == LORA + 2 * STEPS + 1 + iterations * SUPERVISION + STEPS + 1

    def test_it_settles_no_longer_than_its_content_needs(self, pipe, picture, quick, monkeypatch):
        monkeypatch.setattr(DragEdit, "_content_is_there", lambda edit: edit.k == 2)
        result = edit(pipe, picture, quick, carry="once", settle_iterations=9)
        assert (len(result.iterations), result.stop_reason) == (3, "reached")

    def test_carried_in_each_iteration_looks_once_more_in_each(self, pipe, picture, quick, passes):
        result = edit(pipe, picture, quick, carry="iteration", max_iterations=3)
        assert len(result.iterations) == 3
        assert len(passes) == LORA + 2 * STEPS + 3 * (1 + SUPERVISION) + STEPS + 1

    @pytest.mark.parametrize(("stop_distance", "reach"), [(0.0, 1), (2.0, 2), (40.0, 12)])
    def test_content_is_looked_for_in_a_window_of_bounded_size(
        self, pipe, picture, quick, monkeypatch, stop_distance, reach
    ):
        asked = []
        monkeypatch.setattr(
            "dynadrag_pipeline.drag_edit.content_offsets",
            lambda features, patches, places, reach: asked.append(reach) or places,
        )
        options = {"carry": "once", "settle_iterations": 1, "stop_distance": stop_distance, "locate_content": False}
        pipe(picture, [(10, 30)], [(60, 30)], **(quick | options))
        assert asked == [reach]


class TestSettling:
    """Supervision only finishes what carry did."""

    def test_steps_that_spoil_what_was_carried_are_taken_back(self, pipe, picture, quick, monkeypatch):
        monkeypatch.setattr(DragEdit, "_content_is_there", lambda edit: False)
        carried = edit(pipe, picture, quick, carry="once", settle_iterations=0)
        spoilt = edit(pipe, picture, quick, carry="once", settle_iterations=2, supervision_lr=300.0)
        assert torch.equal(spoilt.images, carried.images)
        assert [record.added for record in spoilt.iterations] == [0, 0, 0]
        assert not torch.equal(edit(pipe, picture, quick, supervision_lr=300.0).images, carried.images)

    @pytest.mark.parametrize("rate", [0.01, 0.3, 3.0])
    def test_no_iteration_ends_with_a_higher_loss_than_it_began_with(self, pipe, picture, quick, monkeypatch, rate):
        monkeypatch.setattr(DragEdit, "_content_is_there", lambda edit: False)
        result = edit(pipe, picture, quick, carry="once", settle_iterations=3, supervision_lr=rate)
        assert all(record.loss_after <= record.loss_before for record in result.iterations)

    def test_of_the_latents_that_were_met_the_first_of_the_least_loss_is_kept(self):
        least = LeastLoss()
        for number, loss in enumerate([3.0, 1.0, 2.0, 1.0, torch.nan]):
            least.offer(torch.tensor(loss), torch.full((1, 1, 2, 2), float(number)))
        assert (least.loss, least.latents.unique()) == (1, 1)


class TestTheRecord:
    def test_says_what_carry_did_and_what_supervision_added(self, pipe, picture, quick):
        carried, supervised = edit(pipe, picture, quick, carry="once", settle_iterations=1).iterations
        torch.testing.assert_close(carried.carried, torch.tensor([[12.0, 0], [0, 0]]), atol=0.3, rtol=0)
        assert torch.equal(carried.step, torch.tensor([[12.0, 0], [0, 0]]))
        assert (carried.added, carried.unfolded, supervised.carried) == (0, 0, None)
        assert supervised.added > 0
        assert supervised.loss_before == carried.loss_after == carried.loss_before

    def test_steps_of_carry_add_up_to_the_way(self, pipe, picture, quick):
        result = edit(pipe, picture, quick, carry="iteration", max_iterations=3)
        total = sum(record.carried for record in result.iterations)
        torch.testing.assert_close(total, torch.tensor([[12.0, 0], [0, 0]]), atol=0.3, rtol=0)

    def test_the_command_line_carries_and_writes_it_down(self, pipe, picture, tmp_path, capsys):
        """`--carry once` and `--preset carry`, by the command itself: what it printed, wrote, and can read again."""
        pipe.save_pretrained(tmp_path / "model")
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
        command = ["edit", str(tmp_path / "picture.png"), "--model", str(tmp_path / "model")]
        command += ["--handle", "40,30", "--target", "52,30", "--handle", "70,60", "--target", "70,60"]
        quick = ["--steps", "4", "--supervision-steps", "2", "--identity-lora-steps", "2", "--stop-distance", "0"]
        once = [*quick, "--carry", "once", "--settle-iterations", "1"]
        records = {}
        for name, options in {
            "once": once,
            "preset": [*quick, "--preset", "carry"],
            "again": ["--settings", str(tmp_path / "once" / "result.json")],
        }.items():
            assert main([*command, "--out", str(tmp_path / name), *options]) == 0, capsys.readouterr().err
            records[name] = json.loads((tmp_path / name / "result.json").read_text())
        carried, settled = records["once"]["iterations"]
        assert carried["carried"] == [pytest.approx([12, 0], abs=0.3), pytest.approx([0, 0], abs=0.3)]
        assert (carried["added"], carried["invented"], carried["unfolded"]) == (0, 0, 0)
        assert "carried" not in settled
        assert settled["added"] > 0
        assert records["once"]["settings"]["carry"] == {"value": "once", "from": "given"}
        assert records["preset"]["settings"]["carry"] == {"value": "once", "from": "preset"}
        assert records["preset"]["settings"]["inversion_strength"]["value"] == 0.7
        assert 2 <= len(records["preset"]["iterations"]) <= 4
        assert records["again"]["iterations"] == records["once"]["iterations"]

    def test_says_nothing_of_carry_without_it(self, pipe, picture, quick):
        assert {record.carried for record in edit(pipe, picture, quick).iterations} == {None}


class TestTheWaysToAnEdit:
    @pytest.mark.parametrize("carry", ["once", "iteration"])
    def test_the_same_call_gives_the_same_picture_and_another_one_than_without(self, pipe, picture, quick, carry):
        first, second = (edit(pipe, picture, quick, carry=carry, restore_source=True).images for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, edit(pipe, picture, quick, restore_source=True).images)

    def test_drags_of_a_session_go_on_from_one_another(self, pipe, picture, quick):
        session = pipe.open_session(picture, **(quick | {"carry": "once"}))
        list(session.drag(*POINTS))
        first = session.state
        list(session.drag(*SECOND, continue_from=first))
        both = session.state
        assert session.undo() is first
        assert session.undo().flow is None
        list(session.drag(*SECOND))
        torch.testing.assert_close(both.flow.forward, first.flow.then(session.state.flow).forward)

    def test_a_drag_by_gradients_between_carried_ones_loses_nothing_of_them(self, pipe, picture, quick):
        session = pipe.open_session(picture, **(quick | {"carry": "once"}))
        list(session.drag([(5, 40)], [(30, 40)]))
        first = session.history[-1]
        assert first.iterations[-1].invented > 0
        list(session.drag([(70, 60)], [(75, 60)], carry="none", continue_from=first))
        between = session.history[-1]
        assert between.state.flow is first.state.flow
        assert between.iterations[-1].invented == first.iterations[-1].invented
        list(session.drag(*SECOND, continue_from=between))
        bent_once = session.state.flow
        session.undo()
        list(session.drag(*SECOND, continue_from=first))
        assert torch.equal(bent_once.backward, session.state.flow.backward)

    def test_what_settling_added_goes_on_with_the_next_drag_and_comes_off_with_undo(self, pipe, picture, quick):
        session = pipe.open_session(picture, **(quick | {"carry": "once", "settle_iterations": 1, "stop_distance": 0}))
        list(session.drag(*POINTS))
        first, picture_of_it = session.state, session.image(session.history[-1])
        assert session.history[-1].iterations[-1].added > 0
        for _ in range(2):  # the second time from what `undo` left
            (carried,) = session.drag(*SECOND, continue_from=session.state, settle_iterations=0)
            assert carried.record.carried.abs().amax() > 4
            again = session.state.noise
            assert session.undo() is first
        list(session.drag(*SECOND, continue_from=first, settle_iterations=0))
        assert torch.equal(session.state.noise, again)
        session.undo()
        assert torch.equal(session.image(session.history[-1]), picture_of_it)
        still = session.drag([(20, 50)], [(20, 50)], continue_from=first, settle_iterations=0, max_iterations=1)
        assert not list(still), "a pin alone has arrived"
        assert torch.equal(session.state.noise, first.noise)

    def test_a_saved_session_knows_what_was_carried(self, pipe, picture, quick, tmp_path):
        session = pipe.open_session(picture, **(quick | {"carry": "once", "restore_source": True}))
        list(session.drag(*POINTS))
        pipe.save_session(session, tmp_path)
        loaded = pipe.load_session(tmp_path)
        assert torch.equal(loaded.state.flow.backward, session.state.flow.backward)
        assert torch.equal(loaded.image(loaded.history[-1]), session.image(session.history[-1]))
        assert torch.equal(loaded.history[-1].iterations[0].carried, session.history[-1].iterations[0].carried)

    def test_a_callback_may_end_it_after_the_carry(self, pipe, picture, quick):
        def stop(pipe, step, timestep, tensors):
            pipe._interrupt = True
            return tensors

        options = {"carry": "once", "settle_iterations": 2}
        result = edit(pipe, picture, quick, callback_on_step_end=stop, **options)
        assert result.stop_reason == "interrupted"
        assert len(result.iterations) == 1

    def test_blocks_make_the_pipeline_s_picture(self, pipe, picture, quick, tmp_path):
        options = quick | {"carry": "once", "settle_iterations": 1, "restore_source": True, "output_type": "pt"}
        expected = pipe(picture, *POINTS, **options)
        pipe.save_pretrained(tmp_path)
        blocks = DynaDragBlocks().init_pipeline(tmp_path)
        blocks.load_components()
        blocks.set_progress_bar_config(disable=True)
        state = blocks(image=picture, handles=POINTS[0], targets=POINTS[1], **options)
        assert torch.equal(state.images, expected.images)

    def test_models_are_left_as_they_were(self, pipe, picture, quick, unet):
        before, processors = [each.clone() for each in unet.parameters()], dict(unet.attn_processors)
        edit(pipe, picture, quick, carry="once")
        assert all(torch.equal(*each) for each in zip(before, unet.parameters(), strict=True))
        assert unet.attn_processors == processors


class TestSettings:
    def test_the_paper_does_not_carry_whatever_a_checkpoint_recommends(self):
        recommended = {"carry": "once"}
        assert settings_in_force({}, preset="paper", recommended=recommended).settings.carry == "none"
        assert settings_in_force({}, recommended=recommended).settings.carry == "once"

    def test_the_preset_carries(self):
        assert settings_in_force({}, preset="carry").settings.carry == "once"

    def test_another_word_is_refused(self):
        with pytest.raises(ValueError, match=r"`carry` must be .*'once'.*got 'twice'"):
            settings.DragSettings(carry="twice")

    @pytest.mark.parametrize(
        ("given", "idle"),
        [
            ({"carry": "once", "supervision_lr": 0.3, "max_iterations": 9}, ["max_iterations", "supervision_lr"]),
            ({"carry": "once", "supervision_lr": 0.3, "settle_iterations": 2, "mask_weight": 1.0}, []),
            ({"carry": "once", "max_iterations": 9, "hold_unselected": True}, []),
            ({"carry": "iteration", "optimizer_scope": "edit"}, ["optimizer_scope"]),
            ({"carry": "none", "supervision_lr": 0.3, "motion_guard": "clamp"}, []),
        ],
    )
    def test_what_does_nothing_beside_the_carry_is_known_if_it_was_asked_for(self, given, idle):
        of_the_checkpoint = {"supervision_steps": 9, "motion_guard": "clamp"}
        assert settings_in_force(given, recommended=of_the_checkpoint).idle == idle
        complete = settings_in_force({}, settings=settings.DragSettings(**given))
        assert complete.idle == [], "most were given, and none in particular"

    def test_it_is_said_once_and_changes_nothing(self, pipe, picture, quick, caplog):
        plain = {
            name: value for name, value in quick.items() if name in ("num_inference_steps", "identity_lora_steps")
        }
        quiet = edit(pipe, picture, plain, carry="once").images
        assert "will do nothing" not in caplog.text
        said = edit(pipe, picture, plain, carry="once", supervision_lr=0.3, motion_guard="clamp").images
        assert caplog.text.count("`motion_guard`, `supervision_lr` will do nothing beside `carry='once'`") == 1
        assert torch.equal(quiet, said)


class KnowingPredictor:
    """Says the same of everything, knows masks and the whole way, and remembers what it was asked."""

    takes_mask = True
    horizons = ("step", "total")

    def __init__(self) -> None:
        self.asked: list[SimpleNamespace] = []

    def predict(self, image, handles, targets, *, mask=None):
        self.asked.append(SimpleNamespace(handles=handles, targets=targets, mask=mask))
        flow = torch.zeros(1, 2, *image.shape[-2:])
        flow[:, 0] = 12 * 64 / 80
        return MotionPredictorOutput(flow=flow / 10, total_flow=flow)


def test_a_predictor_that_knows_the_whole_way_is_asked_for_it_with_pins_and_mask(pipe, picture, quick):
    predictor = KnowingPredictor()
    mask = torch.ones(80, 96)
    mask[:, 90:] = 0
    edit(pipe, picture, quick, carry="once", motion=PredictedMotion(predictor), mask=mask)
    (asked,) = predictor.asked
    assert torch.equal(asked.handles[1], asked.targets[1]), "the pin"
    assert not asked.mask[..., -1].any()


def test_what_is_outside_the_mask_is_carried_nowhere_whatever_the_source_says(pipe, picture, quick):
    mask = torch.zeros(80, 96)
    mask[:, 48:] = 1
    session = pipe.open_session(picture, **(quick | {"carry": "once"}))
    list(session.drag([(60, 30)], [(72, 30)], mask, motion=PredictedMotion(KnowingPredictor())))
    forward, backward = session.state.flow.forward, session.state.flow.backward
    middle = forward.shape[-1] // 2
    assert not forward[..., :middle].any()
    assert not backward[..., : middle - 1].any()
    assert forward[0, 0, :, middle + 1 :].min() > 5


def test_a_predictor_that_knows_steps_alone_is_said_not_to_be_asked(pipe, picture, quick, caplog):
    edit(pipe, picture, quick, carry="once", motion=PredictedMotion(KnowingPredictor()))
    assert "asks for no steps" not in caplog.text
    edit(pipe, picture, quick, carry="once", motion=PredictedMotion(SimpleNamespace()))
    assert "`motion` 'predicted' says where handles go step by step" in caplog.text


class TestSearch:
    def test_content_is_found_where_it_was_moved_to(self):
        features = torch.randn(1, 6, 24, 24, generator=torch.Generator().manual_seed(0))
        places = torch.tensor([[8.0, 9.0], [15.0, 12.0]])
        patches = sample_patches(features, places, 1)
        moved = features.roll((2, -1), dims=(3, 2))
        assert content_offsets(moved, patches, places, 3).tolist() == [[2, -1], [2, -1]]
        assert content_offsets(features, patches, places, 3).tolist() == [[0, 0], [0, 0]]

    def test_of_equal_places_the_nearest_is_taken(self):
        places = torch.tensor([[8.0, 8.0]])
        assert content_offsets(torch.ones(1, 2, 16, 16), torch.ones(1, 2, 3, 3), places, 4).tolist() == [[0, 0]]


class TestKeysAndValues:
    def test_are_the_edit_s_own_where_the_original_has_nothing_to_say(self):
        bank = KVBank(0)
        places = torch.zeros(1, 1, 8, 8)
        places[..., :4] = 1
        assert bank.silence(64, places) is None
        with bank.silent_at(places):
            assert bank.silence(64, places).view(8, 8)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
            assert bank.silence(16, places).view(4, 4)[0].tolist() == [1, 1, 0, 0]
        assert bank.silence(64, places) is None
