"""Image files: modes, damage, limits, frames, and names that try to leave their folder."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cpgr.data.images import check_image, image_size, open_image, safe_join, to_frame
from cpgr.errors import DataError
from cpgr.regions import Frame

READERS = (image_size, check_image, open_image)


def noise(width=40, height=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(320, 240)).save(path, quality=90)
    return path


def test_every_mode_becomes_rgb(tmp_path):
    picture = Image.fromarray(noise())
    modes = {"L": "png", "1": "png", "P": "png", "LA": "png", "RGBA": "png", "CMYK": "jpg", "YCbCr": "jpg", "RGB": "webp", "I;16": "tiff"}
    for mode, suffix in modes.items():
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        made = Image.fromarray(np.full((30, 40), 51400, "u2")) if mode == "I;16" else picture.convert(mode)
        made.save(path)
        for read in (image_size, check_image):
            assert read(path) == (40, 30), mode
        opened = open_image(path)
        assert (opened.mode, opened.size) == ("RGB", (40, 30)), mode
        opened.resize((4, 4))  # the file is closed, the picture is not
    assert open_image(tmp_path / "I16.tiff").getpixel((0, 0)) == (200, 200, 200)


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGB", (2, 1), (0, 255, 0)).save(tmp_path / "b.png", transparency=(0, 255, 0))
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (40, 30)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_jpeg(jpeg, share):
    data = jpeg.read_bytes()
    jpeg.write_bytes(data[: int(len(data) * share)])
    for read in (check_image, open_image):
        with pytest.raises(DataError, match="a.jpg: image 7: the image file is truncated"):
            read(jpeg, record="image 7")


def test_damaged_png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise()).save(path)
    data = bytearray(path.read_bytes())
    data[60:200] = b"\0" * 140
    path.write_bytes(data)
    for read in (check_image, open_image):
        with pytest.raises(DataError, match="a.png: image 7"):
            read(path, record="image 7")


@pytest.mark.parametrize("read", READERS)
def test_files_that_are_no_images(tmp_path, read):
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    expected = {"text": "not an image", "empty": "empty", "folder": "no file", "pipe": "no file", "missing": "missing", "eps": "not an image", "x" * 300: "missing"}
    for name, message in expected.items():
        with pytest.raises(DataError, match=f"image 7: .*{message}"):
            read(tmp_path / f"{name}.jpg", record="image 7")


def png_of(width, height):
    """A PNG file of a few bytes that announces a black picture of this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", READERS)
def test_bombs_are_refused_before_decoding(tmp_path, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(12000, 12000))
    with pytest.raises(DataError, match="12000 x 12000 pixels, more than the limit of 100000000"):
        read(path)
    path.write_bytes(png_of(100_000, 100_000))
    with pytest.raises(DataError, match="too large to decode safely"):
        read(path, max_pixels=10**12)
    Image.new("L", (30, 20)).save(path)
    with pytest.raises(DataError, match="30 x 20 pixels, more than the limit of 500"):
        read(path, max_pixels=500)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_frames_agree_with_their_geometry(resample):
    picture = Image.new("RGB", (60, 30), (10, 20, 30))
    letterbox = Frame(40, 60, 30)
    pixels = to_frame(picture, letterbox, resample=resample, fill=(1, 2, 3))
    assert pixels.shape == (3, 40, 40) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert pixels[:, 0, 0].tolist() == [1, 2, 3]
    left, top, width, height = letterbox.content
    inside = pixels[:, top : top + height, left : left + width]
    assert inside.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert (pixels == 10).sum() == width * height
    squashed = to_frame(picture, Frame(40, 60, 30, "squash"))
    assert squashed.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_frame_keeps_pixels_that_need_no_scaling():
    array = noise(32, 32)
    assert torch.equal(to_frame(Image.fromarray(array), Frame(32, 32, 32)), torch.from_numpy(array).permute(2, 0, 1))
    with pytest.raises(ValueError, match="frame is made for"):
        to_frame(Image.fromarray(array), Frame(32, 30, 32))
    with pytest.raises(ValueError, match="resample"):
        to_frame(Image.fromarray(array), Frame(32, 32, 32), resample="nearest")


NAMES = ["../a.jpg", "x/../../a.jpg", "..", "..\\a.jpg", "/etc/passwd", "\\\\server\\a.jpg", "C:\\a.jpg", "c:a.jpg", "a\0.jpg", "", "  ", None, 7, ["a.jpg"], "link/a.jpg", "link.jpg"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_leave_the_folder(tmp_path, name):
    root, outside = tmp_path / "images", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (outside / "a.jpg").touch()
    (root / "link").symlink_to(outside)
    (root / "link.jpg").symlink_to(outside / "a.jpg")
    with pytest.raises(DataError, match="refs.p: ref 7: the file name"):
        safe_join(root, name, file="refs.p", record="ref 7")


def test_names_inside_the_folder(tmp_path):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "inner.jpg").symlink_to(tmp_path / "real" / "sub" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("a.jpg", "sub/a.jpg", "a..b.jpg", "inner.jpg", "späße 1.jpg"):
        assert safe_join(tmp_path / "link", name) == tmp_path / "link" / name
