from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline import visualization
from dynadrag_pipeline.pipeline_output import DragIteration, DynaDragPipelineOutput
from dynadrag_pipeline.visualization import (
    ARROW_COLOUR,
    HANDLE_COLOUR,
    PATH_COLOUR,
    PIN_COLOUR,
    TARGET_COLOUR,
    contact_sheet,
    draw_points,
    draw_trajectories,
    flow_to_image,
    save_gif,
)
from motion_predictor.common.atomic_file import atomic_file

GREY = (128, 128, 128)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed_columns_and_rows(picture: Image.Image) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of what differs from grey."""
    rows, columns = np.nonzero((np.asarray(picture) != GREY).any(axis=-1))
    return columns.min(), columns.max(), rows.min(), rows.max()


def iteration(image: torch.Tensor | None) -> DragIteration:
    points = torch.zeros(1, 2)
    return DragIteration(points, points, points, torch.ones(1, dtype=torch.bool), torch.ones(1), 1.0, 0.5, 0, image)


def edit_of(levels: list[float], size: tuple[int, int] = (64, 128)) -> DynaDragPipelineOutput:
    """An edit whose iterations are plain pictures of these levels, of one handle that moves 8 px to the right each."""
    return DynaDragPipelineOutput(
        images=[Image.new("RGB", (size[1], size[0]), (0, 255, 0))],
        trajectories=torch.tensor([[[16.0 + 8 * step, 32.0]] for step in range(len(levels) + 1)]),
        iterations=[iteration(torch.full((3, *size), level)) for level in levels],
        stop_reason="max_iterations",
    )


def test_examples_in_docstrings():
    results = doctest.testmod(visualization)
    assert results.attempted >= 6
    assert results.failed == 0


def test_arrow_runs_from_handle_to_target_and_nowhere_else():
    picture = draw_points(grey(256, 256), handles=[(60, 100)], targets=[(180, 100)])
    assert picture.getpixel((60, 100)) == HANDLE_COLOUR
    assert picture.getpixel((180, 100)) == TARGET_COLOUR
    assert picture.getpixel((120, 100)) == ARROW_COLOUR
    left, right, top, bottom = changed_columns_and_rows(picture)
    assert 60 - left == pytest.approx(right - 180, abs=1)
    assert 100 - top == pytest.approx(bottom - 100, abs=1)
    assert 4 <= 60 - left <= 6
    assert 4 <= 100 - top <= 7


def test_arrow_head_is_at_the_target():
    picture = np.asarray(draw_points(grey(256, 256), handles=[(60, 100)], targets=[(180, 100)]).convert("L"))
    marked = (picture != 128).sum(axis=0)
    assert marked[170] > marked[70] + 2


def test_a_short_arrow_has_no_head():
    picture = np.asarray(draw_points(grey(256, 256), handles=[(60, 100)], targets=[(72, 100)]).convert("L"))
    assert (picture != 128).sum(axis=0).max() <= 11


def test_marks_are_legible_on_light_and_dark():
    for ground in (0, 255):
        picture = draw_points(Image.new("RGB", (256, 256), (ground,) * 3), [(60, 100)], [(180, 100)])
        shaft = np.asarray(picture)[:, 120].astype(int)
        assert abs(shaft - ground).max() > 200


def test_marks_grow_with_the_picture():
    widths = []
    for factor in (1, 4):
        picture = draw_points(grey(256 * factor, 256 * factor), [(100 * factor,) * 2], [(100 * factor,) * 2])
        left, right, _, _ = changed_columns_and_rows(picture)
        widths.append(right - left + 1)
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.15)


def test_points_are_on_the_upright_picture_and_any_mode_is_drawn_in_colour():
    lying = Image.new("L", (100, 70), 128)
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.info["exif"] = exif.tobytes()
    picture = draw_points(lying, [(30, 80)], [(60, 80)])
    assert (picture.mode, picture.size) == ("RGB", (70, 100))
    assert picture.getpixel((30, 80)) == HANDLE_COLOUR


def test_a_handle_on_its_target_is_drawn_as_a_pin():
    picture = draw_points(grey(64, 64), [(16, 16), (32, 48)], [(16, 16), (48, 48)])
    assert picture.getpixel((16, 16)) == PIN_COLOUR
    assert picture.getpixel((32, 48)) == HANDLE_COLOUR
    drawn = draw_trajectories(grey(64, 64), [[(16, 16), (32, 48)], [(16, 16), (40, 48)]], [(16, 16), (48, 48)])
    assert drawn.getpixel((16, 16)) == PIN_COLOUR
    assert drawn.getpixel((40, 48)) == HANDLE_COLOUR


def test_16_bit_and_transparent_pictures_keep_their_look():
    deep = Image.fromarray(np.full((64, 64), 32896, dtype=np.uint16))
    assert draw_points(deep, [(32, 32)], [(32, 32)]).getpixel((0, 0)) == GREY
    clear = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    assert draw_points(clear, [(32, 32)], [(32, 32)]).getpixel((0, 0)) == (255, 255, 255)


def test_the_given_picture_is_not_drawn_on():
    given = grey(64, 64)
    draw_points(given, [(32, 32)], [(40, 32)])
    assert np.array_equal(np.asarray(given), np.asarray(grey(64, 64)))


def test_trajectory_is_the_way_gone_and_not_the_way_ahead():
    way = torch.tensor([[[40.0, 60.0]], [[40.0, 120.0]], [[120.0, 120.0]]])
    picture = draw_trajectories(grey(256, 256), way, targets=[(200, 120)])
    assert picture.getpixel((40, 90)) == PATH_COLOUR
    assert picture.getpixel((80, 120)) == PATH_COLOUR
    assert picture.getpixel((120, 120)) == HANDLE_COLOUR
    assert picture.getpixel((200, 120)) == TARGET_COLOUR
    assert picture.getpixel((160, 120)) == GREY
    assert picture.getpixel((80, 90)) == GREY


@pytest.mark.parametrize(
    ("handles", "targets", "named"),
    [
        ([(1, 2)], [(1, 2), (3, 4)], "same number"),
        ([(1, float("nan"))], [(1, 2)], "`handles`"),
        ([(1, 2)], [(1, 2, 3)], "`targets`"),
        ([], [], "`handles`"),
        ([("a", 2)], [(1, 2)], "`handles`"),
    ],
)
def test_bad_points_are_named(handles, targets, named):
    with pytest.raises(ValueError, match=named):
        draw_points(grey(64, 64), handles, targets)


@pytest.mark.parametrize(
    ("direction", "colour"),
    [
        ((1, 0), (255, 0, 0)),
        ((0, 1), (255, 234, 0)),
        ((-1, 0), (0, 197, 255)),
        ((0, -1), (103, 0, 255)),
    ],
)
def test_flow_colours_of_the_four_directions(direction, colour):
    """Positions 0, 13.75, 27.5 and 41.25 of the wheel of 55 hues, whose ramps are 15, 6, 4, 11, 13 and 6 long."""
    flow = torch.tensor(direction, dtype=torch.float16)[:, None, None].expand(2, 3, 4)
    picture = flow_to_image(flow)
    assert picture.size == (4, 3)
    assert np.abs(np.asarray(picture).astype(int) - colour).max() <= 1


def test_flow_length_is_saturation():
    flow = np.zeros((2, 1, 4))
    flow[0, 0] = [0, 1, 2, 4]
    red, green, _ = np.asarray(flow_to_image(flow, max_magnitude=2))[0].T.astype(int)
    assert red.tolist() == [255] * 4
    assert green.tolist() == [255, 128, 0, 0]
    assert np.asarray(flow_to_image(flow))[0, 2, 1] == 128


def test_flow_without_motion_is_white_and_bad_flow_is_refused():
    assert (np.asarray(flow_to_image(np.zeros((2, 5, 5)))) == 255).all()
    with pytest.raises(ValueError, match=r"\(2, height, width\)"):
        flow_to_image(np.zeros((5, 5, 2)))
    with pytest.raises(ValueError, match="finite"):
        flow_to_image(np.full((2, 5, 5), np.nan))
    with pytest.raises(ValueError, match="max_magnitude"):
        flow_to_image(np.zeros((2, 5, 5)), max_magnitude=0)


def test_sheet_shows_source_evenly_spread_iterations_and_result():
    levels = [step / 10 for step in range(1, 9)]
    source = Image.new("RGB", (128, 64), (255, 0, 255))
    output = edit_of(levels)
    sheet = contact_sheet(source, output.images[0], output, targets=[(112, 32)])
    width, height, gap, strip = 512, 256, 16, 32
    assert sheet.size == (3 * width + 4 * gap, 2 * (height + strip) + gap)
    corners = [
        sheet.getpixel((gap + column * (width + gap) + 4, gap + row * (height + strip) + 4))
        for row in range(2)
        for column in range(3)
    ]
    shown = [round(levels[number - 1] * 255) for number in (2, 4, 6, 8)]
    assert corners == [(255, 0, 255), *((level,) * 3 for level in shown), (0, 255, 0)]


def test_sheet_draws_the_way_up_to_each_iteration_in_the_tiles_scale():
    output = edit_of([0.5] * 4)
    sheet = contact_sheet(grey(128, 64), output.images[0], output, targets=[(112, 32)])
    scale = 256 / 64

    def at(tile: int, x: float) -> tuple[int, int, int]:
        left, top = 16 + tile % 3 * (512 + 16), 16 + tile // 3 * (256 + 32)
        return sheet.getpixel((round(left + (x + 0.5) * scale), round(top + 32.5 * scale)))

    assert at(0, 16) == HANDLE_COLOUR
    assert at(0, 60) == ARROW_COLOUR
    assert at(0, 112) == TARGET_COLOUR
    assert at(1, 20) == PATH_COLOUR
    assert at(1, 24) == HANDLE_COLOUR
    assert at(1, 32) == GREY
    assert at(4, 44) == PATH_COLOUR
    assert at(4, 48) == HANDLE_COLOUR
    assert at(5, 48) == (0, 255, 0)


def test_sheet_labels_stand_under_the_tiles(monkeypatch):
    labels = []
    text = visualization.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        visualization.ImageDraw.ImageDraw,
        "text",
        lambda draw, at, label, **options: (labels.append(label), text(draw, at, label, **options)),
    )
    output = edit_of([0.5] * 2)
    sheet = np.asarray(contact_sheet(grey(128, 64), output.images[0], output, targets=[(112, 32)]))
    assert labels == ["source", "iteration 1", "iteration 2", "result (max iterations)"]
    strips = [sheet[272:304, 16:528], sheet[272:304, 544:1056], sheet[560:592, 16:528], sheet[560:592, 544:1056]]
    inked = [(strip < 128).any(axis=-1) for strip in strips]
    for ink in inked:
        assert ink.sum() > 100
        columns = np.nonzero(ink.any(axis=0))[0]
        assert columns.mean() == pytest.approx(256, abs=30)
        assert not ink[[0, -1]].any()
    assert inked[3].any(axis=0).sum() > inked[0].any(axis=0).sum()


def test_sheet_without_intermediate_pictures_is_source_and_result():
    output = edit_of([0.5] * 3)
    for record in output.iterations:
        record.image = None
    sheet = contact_sheet(grey(128, 64), output.images[0], output, targets=[(112, 32)])
    assert sheet.size == (2 * 512 + 3 * 16, 256 + 32 + 16)


def test_sheet_of_a_large_upright_picture_has_small_tiles():
    output = edit_of([])
    sheet = contact_sheet(grey(1000, 2000), grey(1000, 2000), output, targets=[(500, 1000)])
    assert sheet.size == (2 * 256 + 3 * 16, 512 + 32 + 16)


def test_sheet_of_several_edits_at_once_is_refused():
    output = DynaDragPipelineOutput(images=[grey(64, 64)] * 2, trajectories=[torch.zeros(1, 1, 2)] * 2)
    with pytest.raises(ValueError, match="one picture"):
        contact_sheet(grey(64, 64), grey(64, 64), output, targets=[(1, 1)])


def test_gif_has_the_source_each_iteration_and_the_result(tmp_path):
    path, result = tmp_path / "edit.gif", Image.new("RGB", (640, 320), (102, 102, 102))
    save_gif(edit_of([0.2, 0.6, 1.0]), path, source=Image.new("RGB", (640, 320)), frame_ms=100, result=result)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (128, 64), 0)
        levels, durations = [], []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            levels.append(gif.convert("L").getpixel((5, 5)))
            durations.append(gif.info["duration"])
    assert levels == pytest.approx([0, 51, 153, 255, 102], abs=2)
    assert durations == [100, 100, 100, 100, 1000]
    assert list(tmp_path.iterdir()) == [path]


def test_gif_needs_intermediate_pictures(tmp_path):
    with pytest.raises(ValueError, match="return_intermediates=True"):
        save_gif(edit_of([]), tmp_path / "edit.gif")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half of the n")
            assert path.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
