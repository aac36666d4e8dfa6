"""The preview of a drag: closed forms of its picture, its paths, and of what comes into view."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import ExifTags, Image
from torch import nn

from dynadrag_pipeline import EMBEDDED_MOTION_PREDICTOR, DynaDragPipeline, MotionPredictorModel, preview
from dynadrag_pipeline.drag_instruction import DragInstruction
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.source import BaseMotionSource, EditView
from dynadrag_pipeline.motion.straight import StraightMotion
from dynadrag_pipeline.picture import to_picture_tensor
from dynadrag_pipeline.preview import DragPreview, preview_drag
from support.tiny_models import make_motion_predictor

HEIGHT, WIDTH = 96, 128


class Everything(StraightMotion):
    """All of the picture goes by the same way, which is given in pixels of the input."""

    def __init__(self, x: float, y: float) -> None:
        self.way = torch.tensor([x, y])

    def dense_flow(self, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
        way = self.way * torch.tensor([view.size[1] / view.input_size[1], view.size[0] / view.input_size[0]])
        return way.view(1, 2, 1, 1).expand(1, 2, *view.size)


def pipeline(motion_predictor: nn.Module | None = None) -> DynaDragPipeline:
    """One that has nothing to edit with."""
    return DynaDragPipeline(None, None, None, None, None, motion_predictor=motion_predictor)


def photograph(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    bytes_of_it = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(bytes_of_it).resize((width, height), Image.Resampling.BICUBIC)


def spot(x: int, y: int) -> Image.Image:
    """A white spot on grey."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    hill = 60 + 180 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 32)
    return Image.fromarray(hill.astype(np.uint8)).convert("RGB")


def brightest(picture: Image.Image) -> tuple[int, int]:
    grey = np.asarray(picture.convert("L")).astype(int)
    y, x = np.unravel_index(grey.argmax(), grey.shape)
    return int(x), int(y)


def test_its_examples():
    assert doctest.testmod(preview).failed == 0


def test_what_moves_as_a_whole_is_the_picture_itself_elsewhere():
    before = np.asarray(photograph())
    shown = pipeline().preview(photograph(), [(40, 40)], [(48, 43)], motion=Everything(8, 3))
    after = np.asarray(shown.image)
    # but for rounding of the scale, 2 pixels of its grid being 3 of the picture's
    np.testing.assert_allclose(after[4:, 9:].astype(int), before[1:-3, 1:-8], atol=2)
    assert shown.disoccluded[:, :5].all()
    assert not shown.disoccluded[6:, 12:].any()


def test_pins_alone_leave_the_picture_as_it_is_to_the_bit():
    shown = pipeline().preview(photograph(), [(40, 40), (80, 50)], [(40, 40), (80, 50)])
    np.testing.assert_array_equal(np.asarray(shown.image), np.asarray(photograph()))
    assert not shown.disoccluded.any()
    assert (shown.paths == shown.paths[:, :1]).all()


@pytest.mark.parametrize("predictor", [None, make_motion_predictor()], ids=["smooth", "predicted"])
def test_nothing_changes_outside_the_mask_to_the_bit(predictor):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[20:70, 30:90] = True
    before = np.asarray(photograph())
    shown = pipeline(predictor).preview(photograph(), [(50, 40)], [(85, 60)], mask=mask)
    after = np.asarray(shown.image)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any()
    assert not shown.disoccluded[torch.from_numpy(~mask)].any()


def test_nothing_is_said_to_move_outside_the_mask_whatever_the_source_says():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, 64:] = True
    flow = pipeline().preview(photograph(), [(80, 40)], [(90, 40)], mask=mask, motion=Everything(10, 0)).flow
    middle = flow.forward.shape[-1] // 2
    assert not flow.forward[..., :middle].any()
    assert flow.covered[..., : middle - 1].all()
    assert flow.forward[0, 0, :, middle + 8 : -8].min() > 4


def test_one_point_brings_its_content_to_its_target():
    shown = pipeline().preview(spot(50, 40), [(50, 40)], [(62, 48)])
    assert brightest(shown.image) == pytest.approx((62, 48), abs=1)
    steps = shown.paths[0].diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-3, rtol=0)
    assert shown.paths[0, [0, -1]].tolist() == [[50, 40], [62, 48]]


def test_points_on_a_line_move_what_is_on_it():
    handles = [(30, 48), (60, 48), (90, 48)]
    shown = pipeline().preview(spot(60, 48), handles, [(x, y - 10) for x, y in handles])
    assert brightest(shown.image) == pytest.approx((60, 38), abs=1)


@pytest.mark.parametrize("corner", [(0, 0), (WIDTH - 1, 0), (0, HEIGHT - 1), (WIDTH - 1, HEIGHT - 1)])
def test_a_handle_in_a_corner_moves_inwards(corner):
    target = (64 + (corner[0] - 64) // 2, 48 + (corner[1] - 48) // 2)
    shown = pipeline().preview(photograph(), [corner], [target])
    assert shown.image.size == (WIDTH, HEIGHT)
    assert shown.paths[0, [0, -1]].tolist() == [list(map(float, corner)), list(map(float, target))]


def test_points_that_cross_are_no_error():
    shown = pipeline().preview(photograph(), [(40, 48), (90, 48)], [(90, 48), (40, 48)])
    assert torch.isfinite(shown.flow.forward).all()


def test_a_path_that_is_drawn_is_the_path_that_is_shown():
    shown = pipeline().preview(photograph(), [(40, 40)], [(60, 60)], motion=[[(40, 60)]])
    on_the_way = shown.paths[0]
    assert on_the_way[1:-1].sub(torch.tensor([40.0, 60.0])).norm(dim=1).min() < 1
    assert (((on_the_way[:, 0] - 40).abs() < 0.6) | ((on_the_way[:, 1] - 60).abs() < 0.6)).all()


@pytest.mark.parametrize("motion", ["track", "search"])
def test_sources_that_look_at_features_are_shown_as_straight(motion):
    shown = pipeline().preview(photograph(), [(40, 40)], [(64, 52)], motion=motion)
    straight = pipeline().preview(photograph(), [(40, 40)], [(64, 52)], motion="straight")
    np.testing.assert_array_equal(np.asarray(shown.image), np.asarray(straight.image))
    x, y = shown.paths[0].unbind(dim=1)
    torch.testing.assert_close(y, 40 + (x - 40) / 2, atol=1e-3, rtol=0)


def test_a_predictor_that_knows_the_whole_way_is_asked_for_its_map():
    predictor = MotionPredictorModel.from_pretrained(EMBEDDED_MOTION_PREDICTOR)
    picture, points = to_picture_tensor(spot(50, 40)), ([(50, 40)], [(60, 46)])
    instruction = DragInstruction.from_user(*points, None, (HEIGHT, WIDTH))
    by_network = preview_drag(picture, instruction, PredictedMotion(predictor))
    assert brightest(by_network.image) == pytest.approx((60, 46), abs=2)
    total = predictor.predict_flow(picture, instruction.handles, instruction.targets, horizon="total")
    size = by_network.flow.forward.shape[-2:]
    expected = torch.nn.functional.interpolate(total, size=size, mode="area")
    smooth = preview_drag(picture, instruction).flow.forward
    smooth = 2 * torch.nn.functional.interpolate(smooth, size=size, mode="bilinear")

    def distance(flow: torch.Tensor) -> float:
        return (flow - expected).norm(dim=1).mean().item()

    assert distance(by_network.flow.forward) < distance(smooth)
    assert by_network.paths[0, -1].tolist() == [60, 46]


def test_the_predictor_of_the_pipeline_is_the_source_unless_said_otherwise():
    predictor = make_motion_predictor()
    asked: list[torch.Size] = []
    predictor.register_forward_pre_hook(lambda _, given: asked.append(given[0].shape))
    pipeline(predictor).preview(photograph(), [(50, 40)], [(60, 46)], motion="straight")
    assert not asked
    pipeline(predictor).preview(photograph(), [(50, 40)], [(60, 46)])
    assert asked


def test_a_large_picture_is_bent_at_its_own_size():
    large = spot(50, 40).resize((8 * WIDTH, 8 * HEIGHT), Image.Resampling.BICUBIC)
    shown = pipeline().preview(large, [(400, 320)], [(480, 384)])
    assert shown.image.size == large.size
    assert brightest(shown.image) == pytest.approx((480, 384), abs=8)
    assert max(shown.flow.forward.shape) < 200


def sideways() -> Image.Image:
    turned = photograph().transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[ExifTags.Base.Orientation] = 6
    return turned


@pytest.mark.parametrize(
    "picture",
    [
        photograph().convert("RGBA"),
        photograph().convert("L"),
        photograph().convert("P"),
        Image.fromarray(257 * np.asarray(photograph().convert("L")).astype(np.uint16)),
        sideways(),
        np.asarray(photograph()),
        to_picture_tensor(photograph()),
    ],
    ids=["RGBA", "L", "P", "16 bits", "EXIF", "array", "tensor"],
)
def test_it_takes_the_pictures_that_an_edit_takes(picture):
    seen = to_picture_tensor(picture)
    expected = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(seen))[0]
    shown = pipeline().preview(picture, [(40, 40)], [(40, 40)])
    assert (shown.image.mode, shown.image.size) == ("RGB", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(np.asarray(shown.image), np.asarray(expected))


def test_it_leaves_the_users_picture_alone():
    picture = torch.rand(1, 3, HEIGHT, WIDTH)
    before = picture.clone()
    pipeline().preview(picture, [(40, 40)], [(60, 50)])
    assert torch.equal(picture, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "`image` must be a PIL image"),
        ({"image": [photograph()]}, "`image` must be a PIL image"),
        ({"image": photograph(height=32)}, "at least 64 pixels"),
        ({"handles": [(200, 10)]}, "`handles` must lie inside the picture"),
        ({"targets": [(1, 1), (2, 2)]}, "same number of points"),
        ({"mask": np.zeros((HEIGHT, WIDTH))}, "`mask` must select something"),
        ({"motion": "sideways"}, "`motion` must be one of"),
        ({"motion": "predicted"}, "`motion_predictor`"),
        ({"motion": [None, None]}, "a path for each"),
    ],
)
def test_what_does_not_fit_is_refused_as_in_a_call(changes, message):
    given = {"image": photograph(), "handles": [(40, 40)], "targets": [(60, 50)]} | changes
    with pytest.raises(ValueError, match=message):
        pipeline().preview(**given)


def test_a_source_that_answers_with_nonsense_is_named():
    class Lost(BaseMotionSource):
        name = "lost"
        propose = StraightMotion.propose

        def dense_flow(self, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 2, *view.size), float("nan"))

    with pytest.raises(FloatingPointError, match="`lost`"):
        pipeline().preview(photograph(), [(40, 40)], [(60, 50)], motion=Lost())


def test_it_is_frozen():
    shown = pipeline().preview(photograph(), [(40, 40)], [(60, 50)])
    assert isinstance(shown, DragPreview)
    with pytest.raises(AttributeError):
        shown.image = photograph()
