"""The demo's pictures."""

from demo_portraits import write_portraits
from PIL import Image, ImageChops
from run_demo import edits_sheet

from dynadrag_pipeline.app.samples import SIDE


def test_the_sheet_shows_each_portrait_with_its_points_beside_its_own_result(tmp_path):
    portraits = write_portraits(tmp_path)
    results = {"astronaut_hair": "red", "hopper_smile": "blue"}
    for name, colour in results.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / name / f"{name.split('_')[0]}-edited.png")
    sheet = edits_sheet(tmp_path, list(results))
    assert sheet.size == (2 * SIDE, 2 * SIDE)
    for row, (name, colour) in enumerate(results.items()):
        source = sheet.crop((0, row * SIDE, SIDE, (row + 1) * SIDE))
        changed = ImageChops.difference(source, Image.open(portraits[name.split("_")[0]])).convert("L").point(bool)
        assert 0 < sum(changed.tobytes()) < SIDE**2 / 10
        assert sheet.getpixel((SIDE, row * SIDE)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
