"""YOLOX and FastestDet networks: decoding of made-up heads, and recall on real photographs where they are to be had."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cpgr_kernels import box_iou
from PIL import Image as pil

from cpgr.data.proposals import ProposalConfig, build_detector, onnx, propose
from cpgr.data.records import Image, Split
from cpgr.errors import CpgrError, DataError

REAL = Path(os.environ.get("CPGR_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
NETWORK = REAL / "weights" / "yolox_nano" / "yolox_nano.onnx"
REFER = REAL / "real" / "refer"
SIZE = (64, 96)  # height, width of the made-up network's input
CELLS = {8: 8 * 12, 16: 4 * 6, 32: 2 * 3}


def raw_head(*objects, classes=80):
    """YOLOX's raw output holding objects (stride, row, column, x offset, y offset, width, height, class, score)."""
    output = np.zeros((1, sum(CELLS.values()), 5 + classes), np.float32)
    for stride, row, column, dx, dy, width, height, label, score in objects:
        start = sum(cells for s, cells in CELLS.items() if s < stride)
        at = start + row * (SIZE[1] // stride) + column
        output[0, at, :5] = dx, dy, np.log(width / stride), np.log(height / stride), score
        output[0, at, 5 + label] = 1
    return output


HEAD = raw_head((8, 3, 5, 0.5, 0.25, 20, 12, 16, 0.9), (32, 1, 2, -0.5, 0.0, 40, 24, 2, 0.5))


@pytest.fixture
def network(monkeypatch):
    """Makes `build_detector` run a function in place of a network file."""

    def install(output, shape=(1, 3, *SIZE)):
        seen = []

        class Session:
            def get_inputs(self):
                return [SimpleNamespace(name="images", shape=list(shape))]

            def get_outputs(self):
                return [SimpleNamespace(shape=list(output.shape))]

            def run(self, names, feed):
                seen.append(feed["images"])
                return [output]

        monkeypatch.setattr(onnx, "_session", lambda path: Session())
        return seen

    return install


def picture(folder, width=192, height=96):
    path = folder / "a.jpg"
    pil.new("RGB", (width, height), (250, 120, 10)).save(path, quality=95)
    return Image("a", "a.jpg", path, width, height)


def run(spec, image, **settings):
    config = ProposalConfig(attributes="none", **settings)
    return propose(build_detector(spec, config), Split("t", {"a": image}), config).rows


def test_raw_head_is_decoded_by_grid_and_stride(tmp_path, network):
    seen = network(HEAD)
    rows = run("onnx:x.onnx", picture(tmp_path))  # the image is twice the input's width: 2 pixels a pixel
    assert [(row.category, row.scores["detector"]) for row in rows] == [("dog", pytest.approx(0.9)), ("car", pytest.approx(0.5))]
    # Centre (5.5 * 8, 3.25 * 8) = (44, 26), size 20 x 12; centre (1.5 * 32, 1 * 32) = (48, 32), size 40 x 24.
    assert rows[0].box == pytest.approx([68, 40, 108, 64], abs=1e-3)
    assert rows[1].box == pytest.approx([56, 40, 136, 88], abs=1e-3)
    pixels = seen[0]
    assert pixels.shape == (1, 3, *SIZE) and pixels.dtype == np.float32
    assert np.abs(pixels[0, :, 20, 40] - [10, 120, 250]).max() < 6  # blue, green, red, 0..255
    assert (pixels[0, :, 48:] == 114).all()  # the picture lies at the top


def test_a_map_is_fastestdets(tmp_path, network):
    """[1, 5 + C, rows, columns]: objectness, tanh of the centre's offset in cells, sigmoid of the sides."""
    output = np.zeros((1, 85, 4, 6), np.float32)
    output[0, :5, 1, 2] = 0.9, np.arctanh(0.5), np.arctanh(-0.25), np.log(1 / 3), 0.0  # sides: 1/4 and 1/2 of the picture
    output[0, 5 + 16, 1, 2] = 0.8
    seen = network(output)
    (row,) = run("onnx:x.onnx", picture(tmp_path))  # 192 x 96: cells of 32 x 24 pixels
    assert row.category == "dog" and row.scores["detector"] == pytest.approx(0.9**0.6 * 0.8**0.4)
    assert row.box == pytest.approx([56, 0, 104, 42], abs=1e-3)  # centre (80, 18), 48 x 48, cut at the top
    assert seen[0].shape == (1, 3, *SIZE) and np.abs(seen[0][0, :, 32, 48] * 255 - [10, 120, 250]).max() < 6
    network(np.zeros((1, 4, 4, 6), np.float32))
    with pytest.raises(DataError, match="is not FastestDet's"):
        run("onnx:x.onnx", picture(tmp_path))


def test_decoded_head_is_recognised(tmp_path, network):
    decoded = np.array(HEAD)
    decoded[0] = onnx.decode(HEAD, SIZE)
    assert (decoded[0, :, 2:4] > 0).all()
    np.testing.assert_array_equal(onnx.decode(decoded, SIZE), decoded[0])
    network(decoded)
    assert run("onnx:x.onnx", picture(tmp_path))[0].box == pytest.approx([68, 40, 108, 64], abs=1e-3)


def test_an_open_input_size_and_the_fourth_stride():
    cells = sum((64 // s) * (128 // s) for s in (8, 16, 32, 64))
    assert onnx.decode(np.zeros((1, cells, 6), np.float32), (64, 128))[-1, :4].tolist() == [64, 0, 64, 64]


def test_class_names_come_from_a_file_beside(tmp_path, network):
    network(raw_head((8, 0, 0, 0.5, 0.5, 30, 30, 1, 0.9), classes=2))
    with pytest.raises(DataError, match="2 classes, its classes are not COCO's 80 .*own.names"):
        run(f"onnx:{tmp_path / 'own.onnx'}", picture(tmp_path))
    (tmp_path / "own.names").write_text("cup\ntea pot\n")
    assert run(f"onnx:{tmp_path / 'own.onnx'}", picture(tmp_path))[0].category == "tea pot"
    (tmp_path / "own.names").write_text("cup\n")
    with pytest.raises(DataError, match="own.names has 1"):
        run(f"onnx:{tmp_path / 'own.onnx'}", picture(tmp_path))


def test_other_networks_are_refused(tmp_path, network):
    network(np.zeros((1, 84, 126), np.float32))
    with pytest.raises(DataError, match="is not YOLOX's"):
        run("onnx:x.onnx", picture(tmp_path))
    network(HEAD, shape=(1, 1000))
    with pytest.raises(DataError, match="not one image"):
        run("onnx:x.onnx", picture(tmp_path))


def test_a_missing_runtime_file_or_content_says_what_to_do(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(CpgrError, match="pip install onnxruntime"):
            build_detector("onnx:x.onnx", ProposalConfig())
    pytest.importorskip("onnxruntime")
    with pytest.raises(DataError, match="missing"):
        build_detector(f"onnx:{tmp_path / 'x.onnx'}", ProposalConfig())
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match="onnxruntime cannot load it"):
        build_detector(f"onnx:{tmp_path / 'x.onnx'}", ProposalConfig())


@pytest.mark.skipif(not (NETWORK.is_file() and REFER.is_dir()), reason="no real photographs (CPGR_REAL_DATA)")
def test_recall_on_real_photographs():
    pytest.importorskip("onnxruntime")
    images, boxes = {}, {}
    for name in ("refcoco", "refcoco+", "refcocog"):
        content = json.loads((REFER / name / "instances.json").read_text())
        for entry in content["images"]:
            path = REFER / "images" / "train2014" / entry["file_name"]
            images[str(entry["id"])] = Image(str(entry["id"]), entry["file_name"], path, entry["width"], entry["height"])
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            boxes[entry["id"]] = str(entry["image_id"]), [x, y, x + w, y + h]
    # Everyone at the table overlaps: YOLOX's own evaluation suppresses above 0.65 only.
    config = ProposalConfig(min_score=0.01, max_regions=300, nms_iou=0.65, across_iou=1, attributes="none")
    table = propose(build_detector(f"onnx:{NETWORK}", config), Split("t", images), config)
    for least, recall in ((0.25, 0.80), (0.01, 1.0)):
        found = table.where(lambda row: row.scores["detector"] > least).by_image()
        hits = [
            bool(box_iou(torch.tensor([row.box for row in found[image]]), torch.tensor([box])).max() >= 0.5)
            for image, box in boxes.values()
        ]
        assert sum(hits) / len(hits) >= recall
