"""The engines that decode JPEG files: the same geometry and pixels, the same errors, and which of them is taken."""

import numpy as np
import pytest
import torch
from PIL import Image

from cpgr.data import decoding
from cpgr.data.images import as_picture, decode_images, open_image, to_frame
from cpgr.errors import CpgrError, DataError
from cpgr.regions import Frame

# DALI's import and first pipeline take seconds, and its package is large: `pip install "cpgr[dali]"`.
OTHERS = ["simplejpeg", pytest.param("dali", marks=pytest.mark.slow)]


def picture(width=67, height=45):
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def engine(request, monkeypatch):
    if why := decoding.missing(request.param):
        pytest.skip(why)
    monkeypatch.setattr(decoding, "_chosen", None)
    decoding.use(request.param)
    return decoding.current()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "colour": ("RGB", {}), "progressive": ("RGB", {"progressive": True}), "4:4:4": ("RGB", {"subsampling": 0}), "4:2:2": ("RGB", {"subsampling": 1}),
    "stored as RGB": ("RGB", {"keep_rgb": True}), "grey": ("L", {}), "CMYK": ("CMYK", {}), "turned by Exif": ("RGB", {"exif": turned()}),
}  # fmt: skip


def write(folder):
    """A JPEG file of every kind, and one that is no JPEG whatever its name says."""
    paths = []
    for name, (mode, options) in FILES.items():
        paths.append(folder / f"{name.replace(' ', '-')}.jpg")
        picture().convert(mode).save(paths[-1], "JPEG", **options)
    paths.append(folder / "png.jpg")
    picture().save(paths[-1], "PNG")
    return paths


@pytest.mark.parametrize("engine", OTHERS, indirect=True)
def test_every_engine_gives_pillows_pixels(tmp_path, engine, monkeypatch):
    paths = write(tmp_path)
    found = [as_picture(pixels) for pixels in decode_images([(path, path.name) for path in paths])]
    monkeypatch.setattr(decoding, "_chosen", "pillow")
    for path, mine in zip(paths, found, strict=True):
        theirs = open_image(path)
        assert mine.size == theirs.size == (67, 45), path.name
        # nvJPEG rounds in its own way; on a CPU all three are libjpeg-turbo
        assert np.abs(np.asarray(mine, int) - np.asarray(theirs, int)).max() <= (3 if engine.device == "gpu" else 0), path.name


@pytest.mark.parametrize("engine", OTHERS, indirect=True)
def test_the_bad_file_of_a_batch_is_named(tmp_path, engine):
    good, short, none = tmp_path / "good.jpg", tmp_path / "short.jpg", tmp_path / "none.jpg"
    picture().save(good)
    short.write_bytes(good.read_bytes()[:-40])
    with pytest.raises(DataError, match="short.jpg: image 2: the image file is truncated"):
        decode_images([(good, "image 1"), (short, "image 2")])
    with pytest.raises(DataError, match="none.jpg: image 3: the image file is missing"):
        decode_images([(good, "image 1"), (none, "image 3")])
    with pytest.raises(DataError, match="67 x 45 pixels, more than the limit of 1000"):
        decode_images([(good, "image 1")], max_pixels=1000)
    assert decode_images([(good, "image 1")])[0].shape == (45, 67, 3)  # the engine is as good as before


@pytest.mark.parametrize("engine", OTHERS, indirect=True)
def test_the_engine_is_used(tmp_path, engine, monkeypatch):
    """Pillow is left out of it where the file is plain."""
    picture().save(tmp_path / "a.jpg")
    monkeypatch.setattr("cpgr.data.images._open_by_pillow", None)
    assert open_image(tmp_path / "a.jpg").size == (67, 45)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("frame", [Frame(32, 67, 45), Frame(96, 67, 45), Frame(32, 67, 45, "squash"), Frame(67, 67, 45)])
def test_pixels_are_framed_as_pictures_are(frame, resample):
    image = picture()
    theirs = to_frame(image, frame, resample=resample, fill=(1, 2, 3))
    mine = to_frame(torch.from_numpy(np.asarray(image).copy()), frame, resample=resample, fill=(1, 2, 3))
    assert mine.shape == theirs.shape and mine.dtype == torch.uint8
    # Pillow's weights are of 8 bits
    assert (mine.int() - theirs.int()).abs().max() <= 1


def test_auto_takes_the_fastest_and_a_name_is_a_name(monkeypatch):
    monkeypatch.setattr(decoding, "rates", lambda: {"simplejpeg": 500.0, "pillow": 900.0})
    assert decoding.choose() == "pillow" and decoding.choose("simplejpeg") == "simplejpeg"


def test_an_engine_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(decoding, "missing", lambda name: 'No module named simplejpeg: pip install "cpgr[decode]"')
    with pytest.raises(CpgrError, match=r"data.decoder: simplejpeg cannot run here: .* pip install"):
        decoding.use("simplejpeg")
    with pytest.raises(CpgrError, match="data.decoder: 'jpegli' is none of auto, dali"):
        decoding.use("jpegli")
