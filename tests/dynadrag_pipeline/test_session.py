"""Sessions: what a picture costs once is done once, drags follow one another, and everything goes to disk and back."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from dynadrag_pipeline import DynaDragPipeline, session_file
from dynadrag_pipeline import session as session_module
from dynadrag_pipeline.content import ContentLocations
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.drag_instruction import DragInstruction
from dynadrag_pipeline.session import ONCE_PER_PICTURE, DragSession
from support.tiny_models import make_motion_predictor, make_unet

FIRST = ([(40, 30)], [(60, 30)])
SECOND = ([(20, 50)], [(10, 40)])
LORA, STEPS, ITERATIONS, SUPERVISION = 2, 4, 3, 2


@pytest.fixture
def passes(unet: UNet2DConditionModel) -> list[None]:
    count: list[None] = []
    unet.register_forward_hook(lambda *_: count.append(None))
    return count


@pytest.fixture
def session(pipe, picture, quick) -> DragSession:
    return pipe.open_session(picture, **quick)


def dragged(session: DragSession, points: tuple, **options: object) -> torch.Tensor:
    list(session.drag(*points, **options))
    return session.image(session.history[-1])


def test_two_drags_take_the_passes_of_opening_once_and_give_the_pictures_of_two_calls(pipe, picture, quick, passes):
    calls = [pipe(picture, *points, output_type="pt", **quick).images for points in (FIRST, SECOND)]
    in_calls = len(passes)
    pipe.identity_loras.fitted.clear()
    passes.clear()
    session = pipe.open_session(picture, **quick)
    assert len(passes) == LORA + 2 * STEPS
    drags = [dragged(session, points) for points in (FIRST, SECOND)]
    drag = ITERATIONS * SUPERVISION + STEPS + 1
    assert len(passes) == LORA + 2 * STEPS + 2 * drag
    locating = 2  # where the content went, which a session says when it is asked
    assert in_calls == LORA + 2 * (2 * STEPS + drag + locating), (
        "the calls shared the LoRA; a new pipeline would fit it twice"
    )
    assert all(torch.equal(*pair) for pair in zip(drags, calls, strict=True))


def test_models_are_their_owner_s_between_drags(session, unet):
    before = [parameter.detach().clone() for parameter in unet.parameters()], dict(unet.attn_processors)
    drag = session.drag(*FIRST)
    next(drag)
    assert any(not torch.equal(*pair) for pair in zip(before[0], unet.parameters(), strict=True)), "the LoRA is on"
    drag.close()
    assert all(torch.equal(*pair) for pair in zip(before[0], unet.parameters(), strict=True))
    assert unet.attn_processors == before[1]


def test_a_drag_goes_on_from_the_state_before(session):
    apart = dragged(session, SECOND)
    session.undo()
    first = dragged(session, FIRST)
    both = dragged(session, SECOND, continue_from=session.state)
    assert not torch.equal(both, apart)
    assert torch.equal(session.history[0].state.image, session.history[0].state.image)
    step = next(session.drag(*SECOND, continue_from=session.history[0], is_watched=True))
    assert (step.noise - session.history[0].state.noise).abs().max() <= SUPERVISION * 0.0101, "from its latent"
    assert not torch.equal(first, both)


def test_the_predictor_of_a_drag_that_goes_on_sees_the_picture_before(pipe, picture, quick):
    pipe.register_modules(motion_predictor=make_motion_predictor())
    seen = []
    predict = pipe.motion_predictor.predict_flow
    pipe.motion_predictor.predict_flow = lambda image, *points: seen.append(image) or predict(image, *points)
    session = pipe.open_session(picture, **quick)
    list(session.drag(*FIRST))
    seen.clear()
    list(session.drag(*SECOND, continue_from=session.state))
    assert torch.equal(seen[0], session.history[0].state.image)


def test_a_mask_keeps_what_the_drag_before_made_outside_it(session):
    """Before its first step, a drag has changed nothing: Eq. 2 finds no difference outside the mask."""
    list(session.drag(*FIRST, supervision_lr=0.1))
    before, mask = session.state, torch.zeros(80, 96)
    mask[30:, :40] = 1
    losses = []
    for weight in (0, 1e3):
        list(session.drag(*SECOND, mask, continue_from=before, mask_weight=weight, max_iterations=1))
        losses.append(session.history[-1].iterations[0].loss_before)
    assert losses[0] == losses[1]


def test_undo_goes_back_one_drag_at_a_time_to_the_original(session):
    dragged(session, FIRST)
    dragged(session, SECOND, continue_from=session.state)
    assert session.undo() is session.history[0].state
    assert torch.equal(session.undo().noise, session.noise)
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_a_drag_that_was_left_is_no_part_of_the_history(session):
    drag = session.drag(*FIRST)
    next(drag)
    drag.close()
    assert session.history == []
    dragged(session, FIRST)
    assert len(session.history) == 1


def test_a_drag_may_have_settings_of_its_own(session):
    list(session.drag(*FIRST, max_iterations=1, dynamic_selection=None))
    assert len(session.history[-1].iterations) == 1
    list(session.drag(*FIRST))
    assert len(session.history[-1].iterations) == ITERATIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 9}, "`num_inference_steps` must be given when a session is opened, got 9"),
        ({"locate_content": False}, "`locate_content` must be given when a session is opened, got False"),
        ({"max_iterations": 0}, "`max_iterations` must be"),
        ({"feature_block": 7}, "`feature_block` must index"),
        ({"motion": "predicted"}, "`motion` must be"),
        ({"targets": None}, "`targets` is missing"),
        ({"mask": "here"}, "`mask` must"),
        ({"colour": 1}, "`colour` is no option"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_call_itself(session, passes, options, message):
    passes.clear()
    with pytest.raises(ValueError, match=message):
        session.drag(**({"handles": FIRST[0], "targets": FIRST[1]} | options))
    assert not passes


def test_a_picture_is_hashed_once(pipe, picture, quick, monkeypatch):
    hashed = []
    fingerprint = session_module.picture_fingerprint
    monkeypatch.setattr(session_module, "picture_fingerprint", lambda *args: hashed.append(1) or fingerprint(*args))
    session = pipe.open_session(picture, **quick)
    dragged(session, FIRST)
    dragged(session, SECOND, continue_from=session.state)
    assert len(hashed) == 1


def test_settings_of_the_picture_are_settings():
    assert set(ONCE_PER_PICTURE) <= set(DynaDragPipeline.__call__.__signature__.parameters)


# --- what is known to have moved, when the source's own pixels are taken back ---


@pytest.fixture
def arriving(pipe, picture, quick, monkeypatch) -> DragSession:
    """A session in which all content is found at its target."""

    def found_at_targets(source, edited, ways, size, input_size):
        asked = (ways[-1] - ways[0]).norm(dim=-1)
        return ContentLocations(ways[0], ways[-1], 0 * asked, asked, torch.ones_like(asked), asked >= 0)

    monkeypatch.setattr("dynadrag_pipeline.session.locate_content", found_at_targets)
    return pipe.open_session(picture, **quick, restore_source=True)


@pytest.fixture
def asked_for(monkeypatch) -> list:
    """The moves that each restoration is told."""
    told: list = []

    def restore(source, edited, reconstruction, *, flow=None, moves=None):
        told.append(None if moves is None else moves.tolist())
        return edited

    monkeypatch.setattr("dynadrag_pipeline.session.restore_source", restore)
    return told


def test_a_way_in_two_drags_is_restored_as_the_way_in_one(arriving, asked_for):
    dragged(arriving, ([(40, 30)], [(60, 30)]))
    dragged(arriving, ([(40, 30)], [(52, 30)]))
    dragged(arriving, ([(52, 30)], [(60, 30)]), continue_from=arriving.state)
    assert asked_for == [[[[40, 30], [60, 30]]], [[[40, 30], [52, 30]]], [[[40, 30], [60, 30]]]]


def test_content_of_all_drags_is_not_taken_back_whatever_is_asked_for(pipe, arriving, asked_for, tmp_path):
    list(arriving.drag(*FIRST))
    list(arriving.drag(*SECOND, continue_from=arriving.state))
    arriving.image(arriving.history[-1])
    arriving.image(arriving.state)
    pipe.save_session(arriving, tmp_path)
    loaded = pipe.load_session(tmp_path)
    loaded.image(loaded.state)
    dragged(loaded, ([(60, 30)], [(60, 35)]), continue_from=loaded.state)
    first, second = [[40, 30], [60, 30]], [[20, 50], [10, 40]]
    assert asked_for == [[first, second]] * 3 + [[second, [[40, 30], [60, 35]]]]
    assert loaded.image(loaded.original) is not None
    assert asked_for[-1] is None


# --- on disk ---


def test_a_saved_session_goes_on_where_it_was(pipe, picture, quick, passes, session, tmp_path):
    first = dragged(session, FIRST)
    session_path = tmp_path / "new" / "session"
    pipe.save_session(session, session_path)
    expected = dragged(session, SECOND, continue_from=session.state)
    passes.clear()
    loaded = pipe.load_session(session_path)
    assert len(passes) == STEPS, "neither fitted nor inverted: the reference alone is denoised"
    assert torch.equal(loaded.image(loaded.history[0]), first)
    assert torch.equal(dragged(loaded, SECOND, continue_from=loaded.state), expected)
    record, before = loaded.history[0].iterations[0], session.history[0].iterations[0]
    assert torch.equal(record.handles, before.handles)
    assert (record.loss_before, record.loss_after) == (before.loss_before, before.loss_after)
    assert loaded.in_force == session.in_force
    assert sorted(path.name for path in session_path.iterdir()) == ["session.json", "session.safetensors"]


def test_a_session_is_not_saved_while_a_drag_has_its_lora_in_the_weights(pipe, session, tmp_path):
    drag = session.drag(*FIRST)
    next(drag)
    with pytest.raises(RuntimeError, match="`unet` is being edited with already"):
        pipe.save_session(session, tmp_path)
    assert list(tmp_path.iterdir()) == []
    list(drag)
    pipe.save_session(session, tmp_path)
    assert len(pipe.load_session(tmp_path).history) == 1


def test_that_a_decoder_of_previews_is_not_kept_is_said(pipe, session, tmp_path, caplog):
    pipe.save_session(session, tmp_path)
    pipe.load_session(tmp_path)
    assert "preview_vae" not in caplog.text
    session.decode_preview = lambda latents: latents
    pipe.save_session(session, tmp_path)
    assert pipe.load_session(tmp_path).decode_preview is None
    assert "The session had a `preview_vae`, which is not kept" in caplog.text


def test_a_session_of_other_models_is_refused(pipe, session, tmp_path):
    pipe.save_session(session, tmp_path)
    other = DynaDragPipeline(**(pipe.components | {"unet": make_unet(seed=1)}))
    with pytest.raises(ValueError, match="with the models that it was saved with"):
        other.load_session(tmp_path)


@pytest.mark.parametrize("damage", ["no record", "no tensors", "garbage", "cut", "flipped", "other format", "no seed"])
def test_damaged_sessions_are_named(pipe, session, tmp_path, damage):
    pipe.save_session(session, tmp_path)
    record, tensors = tmp_path / session_file.RECORD_FILE, tmp_path / session_file.TENSORS_FILE
    content = json.loads(record.read_text())
    if damage == "no record":
        record.unlink()
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "garbage":
        record.write_text("[" * 100_000)
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:100])
    elif damage == "flipped":
        packed = bytearray(tensors.read_bytes())
        packed[-3] ^= 1
        tensors.write_bytes(packed)
    elif damage == "other format":
        record.write_text(json.dumps(content | {"format": 9}))
    else:
        del content["seed"]
        record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must"):
        pipe.load_session(tmp_path)


# --- one edit at a time ---


def test_a_unet_that_is_being_edited_with_is_refused_until_the_edit_ends(pipe, picture, quick, session):
    drag = session.drag(*FIRST)
    next(drag)
    with pytest.raises(RuntimeError, match="`unet` is being edited with already"):
        pipe(picture, *FIRST, **quick)
    drag.close()
    assert pipe(picture, *FIRST, **quick).stop_reason == "reached"


def test_pipelines_of_two_threads_give_the_pictures_that_they_give_alone(pipe, picture, quick):
    pipes = [pipe, DynaDragPipeline(**(pipe.components | {"unet": make_unet(seed=1)}))]
    pipes[1].set_progress_bar_config(disable=True)
    options = {**quick, "identity_lora_steps": 6, "output_type": "pt"}
    alone = [each(picture, *FIRST, **options).images for each in pipes]
    together: dict[int, torch.Tensor] = {}
    for each in pipes:
        each.identity_loras.fitted.clear()
    start = threading.Barrier(2)

    def edit(index: int) -> None:
        start.wait()
        together[index] = pipes[index](picture, *FIRST, **options).images

    threads = [threading.Thread(target=edit, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[index], alone[index]) for index in range(2))


# --- what a session refuses, and keeps apart ---


@pytest.mark.parametrize("wrong", [0, "last", [], -1])
def test_what_is_no_state_is_refused_at_once(pipe, picture, quick, wrong):
    session = pipe.open_session(picture, **quick)
    with pytest.raises(ValueError, match="`continue_from` must be a state or a result"):
        session.drag([(40, 30)], [(52, 30)], continue_from=wrong)
    with pytest.raises(ValueError, match="`result` must be a state or a result"):
        session.image(wrong)


def test_a_state_of_another_picture_is_refused(pipe, picture, quick):
    session = pipe.open_session(picture, **quick)
    other = pipe.open_session(picture.flip(-1), **quick)
    with pytest.raises(ValueError, match="one of another picture"):
        session.drag([(40, 30)], [(52, 30)], continue_from=other.state)


def test_a_drag_without_iterations_is_saved_and_loaded(pipe, picture, quick, tmp_path):
    session = pipe.open_session(picture, **quick)
    assert not list(session.drag([(40, 30)], [(40, 30)]))
    image = session.image(session.history[-1])
    pipe.save_session(session, tmp_path)
    loaded = pipe.load_session(tmp_path)
    assert torch.equal(loaded.image(loaded.history[-1]), image)


def test_a_session_is_of_the_factors_too_that_its_models_had(pipe, picture, quick, tmp_path):
    session = pipe.open_session(picture, **quick)
    pipe.save_session(session, tmp_path)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    try:
        with pytest.raises(ValueError, match="models that it was saved with"):
            pipe.load_session(tmp_path)
    finally:
        pipe.disable_freeu()
        for block in pipe.unet.up_blocks:
            for factor in ("s1", "s2", "b1", "b2"):
                vars(block).pop(factor, None)
    assert pipe.load_session(tmp_path).history == []


def test_a_second_thread_in_a_session_is_refused_and_breaks_nothing(pipe, picture, quick):
    session = pipe.open_session(picture, **quick)
    refused: list[BaseException] = []

    def intrude() -> None:
        try:
            list(session.drag([(40, 30)], [(52, 30)]))
        except RuntimeError as error:
            refused.append(error)

    def iterate(edit: Any) -> None:
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        DragEdit.iterate(edit)

    alone = list(session.drag([(40, 30)], [(52, 30)]))
    watched = list(session.drag([(40, 30)], [(52, 30)], iterate=iterate))
    assert len(refused) == len(watched) > 0
    assert "another thread" in str(refused[0])
    assert torch.equal(alone[-1].noise, watched[-1].noise)


def test_the_pipeline_saves_no_lora_of_an_earlier_picture(pipe, picture, quick, tmp_path):
    pipe(picture, [(40, 30)], [(52, 30)], **quick)
    pipe(picture, [(40, 30)], [(52, 30)], **(quick | {"identity_lora_steps": 0}))
    with pytest.raises(ValueError, match="no identity LoRA to save"):
        pipe.save_identity_lora(tmp_path)


def test_a_lora_that_is_not_finite_names_its_rate_and_is_not_kept(pipe, picture, quick):
    pipe.identity_loras.fitted.clear()
    with pytest.raises(FloatingPointError, match="`identity_lora_lr`, got 1000"):
        pipe(picture, [(40, 30)], [(52, 30)], **(quick | {"identity_lora_lr": 1e3, "identity_lora_steps": 30}))
    assert not pipe.identity_loras.fitted


def test_an_instruction_has_its_own_targets_and_size(pipe, picture, quick):
    session = pipe.open_session(picture, **quick)
    own = DragInstruction.from_user([(40, 30)], [(52, 30)], None, session.input_size)
    with pytest.raises(ValueError, match="`targets` and `mask` must be left out"):
        session.drag(own, [(1, 2)])
    with pytest.raises(ValueError, match="for a picture of size"):
        session.drag(own.scaled_to((32, 32)))
