"""Regions by models, landmarks, masks and motion; models are tiny and random, in the formats of the real ones."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RTDetrImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from motion_predictor.data.build_settings import REGIONS, BuildSettings
from motion_predictor.data.editing_region import (
    FaceLandmarks,
    FaceParsing,
    GivenMasks,
    MovingRegion,
    PersonBox,
    StartFrame,
    WholeFrame,
    make_editing_region,
)
from motion_predictor.data.video import UnusableVideo

CPU = torch.device("cpu")
CELEBAMASK = [
    *("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
]


def start_frame(picture: np.ndarray | None = None, source: str = "talks/anna.mp4", index: int = 12) -> StartFrame:
    if picture is None:
        picture = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    return StartFrame(picture, np.zeros((*picture.shape[:2], 2), np.float32), source, index)


@pytest.fixture(scope="module")
def save_parser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A SegFormer that finds one class everywhere, with an image processor, in a folder as the Hub has them."""

    def save(labels: list[str], found: int) -> str:
        folder = str(tmp_path_factory.mktemp("parser"))
        config = SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        torch.manual_seed(0)
        model = SegformerForSemanticSegmentation(config)
        with torch.no_grad():
            model.decode_head.classifier.weight.zero_()
            model.decode_head.classifier.bias.copy_(torch.eye(len(labels))[found])
        model.save_pretrained(folder)
        SegformerImageProcessorPil(size={"height": 64, "width": 64}, do_reduce_labels=False).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("label", CELEBAMASK)
def test_a_face_is_its_skin_and_features_without_hair_ears_and_neck(save_parser: Callable, label: str):
    region = FaceParsing(save_parser(CELEBAMASK, CELEBAMASK.index(label)), None, CPU)(start_frame())
    assert region.shape == (48, 80)
    assert region.dtype == bool
    is_face = label not in ["background", "l_ear", "r_ear", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"]
    assert region.all() if is_face else not region.any()


@pytest.mark.parametrize(("found", "is_face"), [(0, False), (1, True), (9, True), (10, False)])
def test_a_parser_with_eleven_nameless_classes_is_the_papers(save_parser: Callable, found: int, is_face: bool):
    parser = FaceParsing(save_parser([f"LABEL_{number}" for number in range(11)], found), None, CPU)
    assert parser(start_frame()).all() == is_face


def test_classes_are_chosen_by_name_or_number(save_parser: Callable):
    folder = save_parser(CELEBAMASK, CELEBAMASK.index("hair"))
    assert FaceParsing(folder, ["Hair", "skin"], CPU)(start_frame()).all()
    assert FaceParsing(folder, ["13"], CPU)(start_frame()).all()
    assert not FaceParsing(folder, ["skin"], CPU)(start_frame()).any()
    with pytest.raises(ValueError, match=r"`region_labels` must be .* got \['hair', 'wig'\].*cloth"):
        FaceParsing(folder, ["hair", "wig"], CPU)


def test_a_parser_of_other_things_asks_for_labels(save_parser: Callable):
    with pytest.raises(ValueError, match=r"`region_labels` must be .* got None.*road"):
        FaceParsing(save_parser(["sky", "road"], 0), None, CPU)


def test_a_parser_sees_where_the_face_is(save_parser: Callable):
    folder = save_parser(["background", "skin"], 0)
    parser = FaceParsing(folder, None, CPU)
    with torch.no_grad():  # the class follows the brightness of the picture
        parser.model.decode_head.classifier.bias.zero_()
        parser.model.decode_head.classifier.weight.normal_(generator=torch.Generator().manual_seed(3))
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:, 40:] = 255
    left, right = parser(start_frame(picture))[:, :24].mean(), parser(start_frame(picture))[:, 56:].mean()
    mirrored = parser(start_frame(np.ascontiguousarray(picture[:, ::-1])))
    assert abs(left - right) > 0.5
    assert abs(mirrored[:, 56:].mean() - left) < 0.2


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny random detectors: a D-FINE and a YOLOS, with COCO-like labels."""
    labels = {"id2label": {0: "person", 1: "bicycle"}, "label2id": {"person": 0, "bicycle": 1}}
    torch.manual_seed(0)
    dfine = DFineConfig(
        backbone_config=_tiny_hgnet(),
        encoder_in_channels=[16, 32],
        feat_strides=[16, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        encode_proj_layers=[1],
        num_feature_levels=2,
        d_model=32,
        decoder_in_channels=[32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_n_points=[4, 4],
        num_queries=6,
        num_denoising=0,
        **labels,
    )
    yolos = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=5,
        **labels,
    )
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("d_fine", "yolos")}
    DFineForObjectDetection(dfine).save_pretrained(folders["d_fine"])
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folders["d_fine"])
    YolosForObjectDetection(yolos).save_pretrained(folders["yolos"])
    YolosImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folders["yolos"])
    return folders


def _tiny_hgnet() -> HGNetV2Config:
    return HGNetV2Config(
        embedding_size=8,
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, False, False],
        stage_kernel_size=[3, 3, 3, 3],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage3", "stage4"],
    )


def boxes_of(detector: PersonBox, picture: np.ndarray) -> np.ndarray:
    """The region of all boxes that the model predicts, whatever they hold, drawn pixel by pixel."""
    inputs = detector.processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        boxes = detector.model(**inputs).pred_boxes[0].numpy() * np.tile(picture.shape[1::-1], 2)
    region = np.zeros(picture.shape[:2], dtype=bool)
    for x, y, width, height in boxes:
        left, right, top, bottom = (
            round(edge) for edge in (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
        )
        for row in range(max(top, 0), min(bottom, region.shape[0])):
            for column in range(max(left, 0), min(right, region.shape[1])):
                region[row, column] = True
    return region


def make_sure(detector: PersonBox, number: int) -> None:
    """All queries find the class of a number."""
    head = getattr(detector.model, "class_labels_classifier", None)  # YOLOS
    layers = [head.layers[-1]] if head is not None else list(detector.model.model.decoder.class_embed)
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.fill_(-20)
            layer.bias[number] = 20


@pytest.mark.parametrize("name", ["d_fine", "yolos"])
def test_a_person_region_is_the_boxes_of_the_persons_found(detectors: dict[str, str], name: str):
    detector, start = PersonBox(detectors[name], None, CPU), start_frame()
    make_sure(detector, 0)
    region = detector(start)
    assert 0 < region.mean() <= 1
    np.testing.assert_array_equal(region, boxes_of(detector, start.picture))
    make_sure(detector, 1)
    assert not detector(start).any()  # bicycles
    detector.classes = PersonBox(detectors[name], ["bicycle"], CPU).classes
    np.testing.assert_array_equal(detector(start), region)


def test_a_detector_that_knows_no_persons_asks_for_labels(detectors: dict[str, str]):
    with pytest.raises(ValueError, match=r"`region_labels` must be .* got \['horse'\].*bicycle"):
        PersonBox(detectors["yolos"], ["horse"], CPU)


def test_models_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in (FaceParsing, PersonBox):
        with pytest.raises(ValueError, match=r"`region_model` must be .* got '.*nothing'"):
            kind(str(tmp_path / "nothing"), None, CPU)


def marks(*points: tuple[float, float]) -> list[types.SimpleNamespace]:
    return [types.SimpleNamespace(x=x, y=y) for x, y in points]


DIAMOND = marks((0.5, 0.25), (0.25, 0.5), (0.5, 0.5), (0.75, 0.5), (0.5, 0.75))
DOT = marks((0.05, 0.05), (0.1, 0.05), (0.1, 0.1))


@pytest.fixture
def fake_mediapipe(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Both interfaces of MediaPipe: the old one with its model inside, and tasks with a file."""

    class FaceMesh:
        def __init__(self, static_image_mode: bool = False, max_num_faces: int = 1):
            assert static_image_mode
            assert max_num_faces > 1

        def process(self, image: np.ndarray) -> types.SimpleNamespace:
            faces = [types.SimpleNamespace(landmark=face) for face in (DIAMOND, DOT)]
            return types.SimpleNamespace(multi_face_landmarks=faces if image.any() else None)

    class FaceLandmarker:
        @staticmethod
        def create_from_options(options: types.SimpleNamespace) -> FaceLandmarker:
            assert options.base_options.model_asset_path.endswith(".task")
            return FaceLandmarker()

        def detect(self, image: types.SimpleNamespace) -> types.SimpleNamespace:
            assert image.image_format == "srgb"
            return types.SimpleNamespace(face_landmarks=[DIAMOND, DOT] if image.data.any() else [])

    module: Any = types.ModuleType("mediapipe")
    module.solutions = types.SimpleNamespace(face_mesh=types.SimpleNamespace(FaceMesh=FaceMesh))
    module.Image, module.ImageFormat = types.SimpleNamespace, types.SimpleNamespace(SRGB="srgb")
    vision = types.SimpleNamespace(FaceLandmarkerOptions=types.SimpleNamespace, FaceLandmarker=FaceLandmarker)
    module.tasks = types.SimpleNamespace(BaseOptions=types.SimpleNamespace, vision=vision)
    monkeypatch.setitem(sys.modules, "mediapipe", module)
    return module


@pytest.mark.parametrize("with_file", [False, True])
def test_a_face_is_the_hull_of_its_landmarks(fake_mediapipe: types.ModuleType, tmp_path: Path, with_file: bool):
    model = tmp_path / "face_landmarker.task"
    model.write_bytes(b"")
    face = FaceLandmarks(str(model) if with_file else None)
    region = face(start_frame(np.full((101, 201, 3), 9, np.uint8)))
    y, x = np.mgrid[:101, :201]
    distance = np.abs(x - 100) / 50 + np.abs(y - 50) / 25  # 1 on the diamond's edge
    assert region[distance < 0.95].all()
    assert region[(distance > 1.1) & (x > 30)].sum() == 0
    assert region[5:10, 10:20].any()  # the second face
    assert not face(start_frame(np.zeros((64, 64, 3), np.uint8))).any()


def test_mediapipe_without_a_model_asks_for_one(fake_mediapipe: types.ModuleType, tmp_path: Path):
    del fake_mediapipe.solutions
    with pytest.raises(ValueError, match=r"`region_model` must be .*face_landmarker\.task.* got None"):
        FaceLandmarks(None)
    with pytest.raises(ValueError, match=r"`region_model` must be .* got '.*nowhere\.task'"):
        FaceLandmarks(str(tmp_path / "nowhere.task"))


def test_without_mediapipe_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match="pip install mediapipe"):
        FaceLandmarks(None)


def test_masks_are_those_of_the_frame_or_of_the_video(tmp_path: Path):
    left = np.zeros((24, 40), np.uint8)
    left[:, :20] = 255
    (tmp_path / "talks" / "anna").mkdir(parents=True)
    Image.fromarray(left).save(tmp_path / "talks" / "anna.png")
    Image.fromarray(255 - left).save(tmp_path / "talks" / "anna" / "000007.png")
    masks = GivenMasks(str(tmp_path))
    for index, white in ((12, np.s_[:, :40]), (7, np.s_[:, 40:])):
        region = masks(start_frame(index=index))  # 48 x 80: twice as large
        assert region.shape == (48, 80)
        assert region[white].all()
        assert region.sum() == 48 * 40
    assert not masks(start_frame(source="talks/ben.mp4")).any()


@pytest.mark.parametrize(
    ("mode", "paint", "ground"),
    [
        ("L", 1, 0),
        ("RGB", (255, 0, 0), (0, 0, 0)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        ("RGBA", (0, 0, 0, 255), (255, 255, 255, 0)),
        ("I;16", 40000, 300),
        ("1", 1, 0),
    ],
)
def test_a_mask_selects_what_is_painted_whatever_its_colour_and_depth(tmp_path: Path, mode: str, paint, ground):
    picture = Image.new(mode, (80, 48), ground)
    picture.paste(Image.new(mode, (40, 48), paint), (0, 0))
    picture.save(tmp_path / "clip.png")
    region = GivenMasks(str(tmp_path))(start_frame(source="clip.mp4"))
    assert region.dtype == bool
    assert region[:, :40].all()
    assert not region[:, 40:].any()


def test_an_empty_mask_selects_nothing(tmp_path: Path):
    Image.new("L", (80, 48)).save(tmp_path / "clip.png")
    assert not GivenMasks(str(tmp_path))(start_frame(source="clip.mp4")).any()


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "clip.png").write_bytes(b"no picture")
    with pytest.raises(UnusableVideo, match=r"mask cannot be read.*clip\.png"):
        GivenMasks(str(tmp_path))(start_frame(source="clip.mp4"))


def test_masks_need_a_folder(tmp_path: Path):
    for folder in (None, str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="`masks` must be a folder"):
            GivenMasks(folder)


def test_what_moves_is_a_region_without_specks(textured_picture: Callable):
    flow = np.zeros((64, 96, 2), np.float32)
    flow[16:48, 20:70, 1] = -0.5
    flow[5, 5] = flow[30, 90] = 9
    flow[30, 40] = 0
    start = StartFrame(textured_picture(64, 96), flow, "clip.mp4", 0)
    region = MovingRegion(0.25)(start)
    assert region[16:48, 20:70].all()
    assert region.sum() == 32 * 50
    assert not MovingRegion(0.6)(start)[16:48, 20:70].any()
    assert WholeFrame()(start).all()


def test_the_settings_name_the_region(tmp_path: Path, save_parser: Callable, detectors: dict[str, str]):
    models = {"face-parsing": save_parser(["background", "skin"], 1), "person": detectors["yolos"]}
    for name in sorted({*REGIONS} - {"face-landmarks"}):
        settings = BuildSettings(region=name, region_model=models.get(name), masks=str(tmp_path))
        assert make_editing_region(settings, CPU).name == name
