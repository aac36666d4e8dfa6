"""The portraits of the demo, from the packages that they come with; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

SIDE = 256


@dataclass(frozen=True)
class Sample:
    """A picture to begin with, and points that suit it.

    Attributes:
        title (`str`): what the button says.
        package (`str`): that the picture comes with.
        box (`tuple[int, int, int, int]`): the head in it.
        points (`list`): pairs of (x, y) in the 256 x 256 pixels of the portrait.
    """

    title: str
    package: str
    box: tuple[int, int, int, int]
    points: list[list[list[int]]]


SAMPLES = {
    "astronaut": Sample(
        "Astronaut",
        "scikit-image",
        (126, 0, 326, 200),
        [[[98, 129], [110, 129]], [[155, 132], [166, 132]], [[127, 160], [142, 160]], [[124, 227], [136, 226]]],
    ),
    "hopper": Sample("Hopper", "matplotlib", (85, 20, 455, 390), [[[111, 166], [105, 160]], [[148, 162], [156, 157]]]),
}


def sample_picture(name: str) -> Image.Image:
    """A portrait, 256 x 256 pixels, RGB.

    Args:
        name (`str`): one of `SAMPLES`.

    Raises:
        ValueError: if the package that it comes with is not installed.
    """
    sample = SAMPLES[name]
    try:
        picture = _astronaut() if name == "astronaut" else _hopper()
    except ImportError as error:
        raise ValueError(
            f"The sample `{name}` comes with {sample.package}, which is not installed: pip install 'dynadrag[app]'."
        ) from error
    return picture.convert("RGB").crop(sample.box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _astronaut() -> Image.Image:
    import skimage.data

    return Image.fromarray(skimage.data.astronaut())


def _hopper() -> Image.Image:
    import matplotlib.cbook

    return Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
