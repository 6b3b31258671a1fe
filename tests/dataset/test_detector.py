import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from headshot_ui.dataset.detector import FirstThatFinds, RetinaFaceDetector, load_detector, merge, suppressed
from headshot_ui.dataset.retinaface import RawFaces, WeightsConfig, anchors, build_net, load_net, look, read_config
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.settings import Settings
from tests.dataset.drawn_faces import face_at


def settings(root: Path) -> Settings:
    return Settings.from_environment(root=root, device="cpu", environment={})


def base(demo: bool) -> BaseInfo:
    return BaseInfo("tiny", "sdxl", "Tiny", Path("tiny"), "Apache-2.0", "", 64, demo=demo)


@pytest.fixture(scope="module")
def random_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_net(WeightsConfig(), "cpu")


@pytest.mark.parametrize(("height", "width"), [(160, 160), (97, 160), (320, 213)])
def test_anchors_are_those_of_facexlib(height, width):
    from facexlib.detection.retinaface_utils import PriorBox

    sizes = ((10, 20), (32, 64), (128, 256))
    config = {"min_sizes": sizes, "steps": [8, 16, 32], "clip": False}
    expected = PriorBox(config, image_size=(height, width)).forward().numpy()
    assert np.abs(anchors(height, width, sizes) - expected).max() < 1e-6


def test_decoding_is_that_of_facexlib(random_net):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    raw = look(random_net, picture, WeightsConfig(), "cpu", threshold=0.0)
    with torch.inference_mode():
        found = random_net.detect_faces(picture, conf_threshold=0.0, nms_threshold=1.0)
    assert len(found) == len(raw.scores) > 400
    order = np.argsort(-raw.scores, kind="stable")
    assert np.abs(np.sort(found[:, 4])[::-1] - raw.scores[order]).max() < 1e-5
    for index in order[:20]:  # facexlib sorts equal scores otherwise, so look each one up
        nearest = np.abs(found[:, :4] - raw.boxes[index]).max(axis=1).argmin()
        assert np.abs(found[nearest, :4] - raw.boxes[index]).max() < 1e-3
        assert np.abs(found[nearest, 5:] - raw.landmarks[index].ravel()).max() < 1e-3


def test_settings_come_from_the_file_beside_the_weights_the_table_or_facexlib(tmp_path):
    assert read_config(tmp_path / "any.pth") == WeightsConfig()
    known = read_config(tmp_path / "mobilenet0.25_Final.pth")
    assert known.min_sizes[0] == (10, 20) and known.negative_slope == 0.0
    (tmp_path / "any.json").write_text(json.dumps({"min_sizes": [[8, 16], [32, 64], [128, 256]], "threshold": 0.7}))
    mine = read_config(tmp_path / "any.safetensors")
    assert (
        mine.min_sizes[0] == (8, 16) and mine.threshold == 0.7 and mine.lone_threshold == WeightsConfig().lone_threshold
    )
    for wrong in ("{", "[]", '{"min_sizes": [[1, 2]]}', '{"unknown": 1}'):
        (tmp_path / "any.json").write_text(wrong)
        with pytest.raises(ModelError, match="any.json"):
            read_config(tmp_path / "any.pth")


def test_weights_are_read_from_both_kinds_of_file(tmp_path, random_net):
    state = {f"module.{name}": value for name, value in random_net.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    save_file({name: value.contiguous() for name, value in random_net.state_dict().items()}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        loaded = load_net(tmp_path / name, WeightsConfig(), "cpu").state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in random_net.state_dict().items())


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_bad_weights_are_named(tmp_path, random_net, capsys):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "damaged.pth").write_bytes(b"not a checkpoint")
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(random_net.state_dict() | {"BboxHead.0.conv1x1.bias": torch.zeros(5)}, tmp_path / "shape.pth")
    for name in ("damaged.safetensors", "damaged.pth", "evil.pth", "other.pth", "shape.pth", "missing.pth"):
        with pytest.raises(ModelError, match=name):
            load_net(tmp_path / name, WeightsConfig(), "cpu")
    assert "never run" not in capsys.readouterr().out


def test_load_detector_prefers_weights_for_photographs(tmp_path, random_net):
    with pytest.raises(ModelError, match=r"demo.*retinaface_mobile025\.safetensors"):
        load_detector(settings(tmp_path))
    demo = tmp_path / "models" / "demo" / "detector" / "retinaface_mobile025.safetensors"
    demo.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in random_net.state_dict().items()}, demo)
    assert load_detector(settings(tmp_path)).config == WeightsConfig()
    real = tmp_path / "models" / "retinaface" / "mobilenet0.25_Final.pth"
    real.parent.mkdir()
    torch.save(random_net.state_dict(), real)
    assert load_detector(settings(tmp_path)).config.negative_slope == 0.0
    assert load_detector(settings(tmp_path), base(demo=False)).config.negative_slope == 0.0
    both = load_detector(settings(tmp_path), base(demo=True))
    assert [d.config.negative_slope for d in both.detectors] == [None, 0.0]


class Finds:
    def __init__(self, *faces):
        self.faces = list(faces)

    def detect(self, image):
        return self.faces


def test_the_second_detector_is_asked_when_the_first_finds_nothing():
    mine, other = face_at(0, 0, 8, 10), face_at(5, 5, 8, 10)
    picture = Image.new("RGB", (20, 20))
    assert FirstThatFinds((Finds(), Finds(other))).detect(picture) == [other]
    assert FirstThatFinds((Finds(mine), Finds(other))).detect(picture) == [mine]


def raw(*faces: tuple[float, float, float, float, float]) -> RawFaces:
    rows = np.array(faces, np.float32).reshape(-1, 5)
    marks = np.tile(rows[:, None, :2], (1, 5, 1))
    return RawFaces(rows[:, :4], marks, rows[:, 4])


def test_faces_seen_at_several_scales_become_one():
    (face,) = merge([raw((100, 100, 200, 220, 0.95)), raw((104, 102, 204, 222, 0.95))], 0.9, 0.98)
    assert np.allclose(face.box, (102, 101, 202, 221)) and np.allclose(face.landmarks[0], (102, 101))


def test_what_one_scale_alone_sees_must_be_surer():
    assert merge([raw((0, 0, 50, 60, 0.95))], 0.9, 0.98) == []
    assert len(merge([raw((0, 0, 50, 60, 0.99))], 0.9, 0.98)) == 1
    assert len(merge([raw((0, 0, 50, 60, 0.95)), raw((0, 0, 50, 60, 0.6))], 0.9, 0.98)) == 1
    assert merge([raw((0, 0, 50, 60, 0.8)), raw((0, 0, 50, 60, 0.8))], 0.9, 0.98) == []
    assert merge([], 0.9, 0.98) == []


def test_an_eye_is_no_second_face_and_the_largest_comes_first():
    found = merge([raw((300, 0, 340, 50, 0.99), (100, 100, 200, 220, 0.99), (120, 120, 150, 150, 0.995))], 0.9, 0.98)
    assert [face.box[0] for face in found] == [100, 300]


def test_of_overlapping_boxes_the_best_stays():
    boxes = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (30, 0, 40, 10)], np.float32)
    assert suppressed(boxes, np.array([0.8, 0.9, 0.7])).tolist() == [1, 2]


def test_a_picture_of_any_shape_can_be_looked_at(random_net):
    detector = RetinaFaceDetector(random_net, WeightsConfig(), "cpu")
    for size in ((1, 1), (7, 300), (2000, 9), (64, 64)):
        detector.detect(Image.new("RGB", size))


def test_detection_needs_neither_face_tracking_nor_the_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    build_net(WeightsConfig(), "cpu")
    assert not {"numba", "filterpy", "facexlib.tracking.sort"} & set(sys.modules)
