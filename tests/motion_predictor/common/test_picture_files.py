from __future__ import annotations

import doctest
import io
import os
import re
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motion_predictor.common import picture_files
from motion_predictor.common.picture_files import (
    MOST_PIXELS,
    PICTURE_FORMATS,
    check_regular_file,
    decode_picture,
    open_picture,
)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_examples_in_docstrings():
    results = doctest.testmod(picture_files)
    assert results.attempted > 0
    assert results.failed == 0


# --- what is read ---


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p"])
def test_lossless_formats_come_out_as_they_went_in_under_any_name(tmp_path, rgb, file_format, name):
    options = {"lossless": True} if file_format == "WEBP" else {}
    (tmp_path / name).write_bytes(encoded(Image.fromarray(rgb), file_format, **options))
    for path in (tmp_path / name, str(tmp_path / name)):
        assert np.array_equal(np.asarray(open_picture(path)), rgb)


def test_jpeg_comes_out_nearly_as_it_went_in(tmp_path):
    ramp = np.repeat(np.arange(0, 200, 5, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    (tmp_path / "p.jpg").write_bytes(encoded(Image.fromarray(ramp), "JPEG", quality=98))
    assert np.abs(np.asarray(open_picture(tmp_path / "p.jpg")).astype(int) - ramp).max() <= 4


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_of_several_is_read(tmp_path, file_format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    frames[0].save(tmp_path / "p", file_format, save_all=True, append_images=frames[1:], **options)
    assert open_picture(tmp_path / "p").convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_the_picture_outlives_its_file(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "p.png")
    picture = open_picture(tmp_path / "p.png")
    (tmp_path / "p.png").unlink()
    assert np.array_equal(np.asarray(picture), rgb)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_stays_for_the_reader_to_apply(tmp_path, rgb, file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "p", file_format, exif=exif)
    picture = open_picture(tmp_path / "p")
    assert picture.size == (30, 20)
    assert picture.getexif()[0x0112] == 6


def test_a_member_of_an_archive_is_read_from_its_bytes(rgb):
    assert np.array_equal(np.asarray(decode_picture(encoded(Image.fromarray(rgb), "PNG"), "a.png")), rgb)


# --- what is refused ---


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6 x"])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` must be a (whole )?picture file.*, got '.*p\.png'"):
        open_picture(tmp_path / "p.png")


@pytest.mark.parametrize("name", ["p.png", "p.eps"])
def test_postscript_starts_no_other_program(tmp_path, monkeypatch, name):
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 80\n%%EndComments\n{} loop\n")
    with pytest.raises(ValueError, match=r"must be a picture file \(PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM\)"):
        open_picture(tmp_path / name)
    assert not started


def test_formats_that_nobody_asked_for_are_refused(rgb):
    """They need no Ghostscript, and are decoded by code that hardly anybody looks at."""
    for file_format in ("PCX", "SGI", "TGA", "ICO"):
        assert file_format not in PICTURE_FORMATS
        with pytest.raises(ValueError, match="must be a picture file"):
            decode_picture(encoded(Image.fromarray(rgb), file_format), "p.png")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_file_that_was_cut_short_is_named(tmp_path, rgb, file_format):
    whole = encoded(Image.fromarray(rgb), file_format)
    (tmp_path / "p.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"`path` must be a (whole )?picture file.*, got '.*p\.png'"):
        open_picture(tmp_path / "p.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8193, 12_000, 60_000])
def test_too_many_pixels_are_refused_by_the_header(side):
    """Within Pillow's limit, within that of its error, and beyond both."""
    with pytest.raises(ValueError, match=r"`path` must have at most 67,108,864 pixels, got 'huge\.png'"):
        decode_picture(png_header(side, side), "huge.png")


def test_as_many_pixels_as_are_allowed_get_past_the_header():
    assert MOST_PIXELS == 8192 * 8192
    with pytest.raises(ValueError, match="which is damaged"):
        decode_picture(png_header(8192, 8192), "large.png")


@pytest.mark.parametrize("check", [check_regular_file, open_picture])
class TestWhatIsNoFile:
    def test_folders(self, tmp_path, check):
        with pytest.raises(ValueError, match=rf"regular file, got '{re.escape(str(tmp_path))}', which is a folder"):
            check(tmp_path)

    def test_pipes_sockets_and_devices(self, tmp_path, check, monkeypatch):
        os.mkfifo(tmp_path / "pipe")
        monkeypatch.chdir(tmp_path)  # names of sockets must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(ValueError, match="which is a pipe, a socket or a device"):
                check(path)

    def test_links_are_followed(self, tmp_path, check):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "p.png").symlink_to(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"p\.png', which is a pipe"):
            check(tmp_path / "p.png")

    @pytest.mark.parametrize("path", [None, 3, b"p.png", ["p.png"], "p\0.png"])
    def test_what_is_no_path(self, path, check):
        with pytest.raises(ValueError, match=r"`path` must be the path of a file, got"):
            check(path)

    def test_missing_files_are_said_to_be_missing(self, tmp_path, check):
        with pytest.raises(FileNotFoundError):
            check(tmp_path / "p.png")


def test_messages_stay_short(tmp_path):
    folder = tmp_path / ("a" * 200)
    folder.mkdir()
    (folder / "p.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="must be a picture file") as error:
        open_picture(folder / "p.png")
    assert len(str(error.value)) < 250
