"""The editing region of a start frame: the part of the picture that handles are drawn from (Sec. 3.2.1 and 8)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ..common.checks import got
from ..common.mask_picture import painted_region
from ..common.picture_files import open_picture
from .build_settings import BuildSettings
from .video import UnusableVideo

if TYPE_CHECKING:
    import torch

FACE_PARSING_MODEL = "jonathandinu/face-parsing"
PERSON_MODEL = "ustc-community/dfine-small-coco"

# A face without hair, ears and neck, by the names of CelebAMask-HQ, LaPa and Helen; glasses hide what they cover.
FACE_LABELS = frozenset(
    [
        *(
            "skin",
            "face",
            "facial skin",
            "face skin",
            "nose",
            "eye_g",
            "glasses",
            "mouth",
            "inner mouth",
            "inner_mouth",
        ),
        *(
            "l_brow",
            "r_brow",
            "left brow",
            "right brow",
            "left eyebrow",
            "right eyebrow",
            "left_eyebrow",
            "right_eyebrow",
        ),
        *("l_eye", "r_eye", "left eye", "right eye", "left_eye", "right_eye"),
        *("u_lip", "l_lip", "upper lip", "lower lip", "upper_lip", "lower_lip"),
    ]
)
# The paper's parser names none: background, nine parts of the face, hair.
ELEVEN_CLASSES, FACE_CLASSES_OF_ELEVEN = 11, range(1, 10)

PERSON_LABELS = ("person",)
LEAST_SCORE = 0.5  # of a detection
LONGEST_LIST = 1000  # letters of a model's labels in a message
MOST_FACES = 8  # that landmarks are looked for


@dataclass(frozen=True, eq=False)
class StartFrame:
    """What an editing region may be told by.

    Attributes:
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
        flow (`np.ndarray` of shape `(height, width, 2)`): float32, the flow to the next frame in pixels.
        source (`str`): path of the video, relative to the folder that holds all videos, with `/` as separator.
        index (`int`): number of the frame in its video, from 0.
    """

    picture: np.ndarray
    flow: np.ndarray
    source: str
    index: int


class EditingRegion(Protocol):
    """Anything that tells which pixels of a start frame may be dragged.

    Attributes:
        name (`str`): kept with the records.
    """

    name: str

    def __call__(self, start: StartFrame) -> np.ndarray:
        """The region as `[H, W]` bool; all False if the frame has none."""
        ...


class WholeFrame:
    """Every pixel."""

    name = "whole"

    def __call__(self, start: StartFrame) -> np.ndarray:
        return np.ones(start.picture.shape[:2], dtype=bool)


class MovingRegion:
    """What moves faster than a threshold, without specks and small holes.

    Args:
        threshold (`float`): in pixels per frame.

    Example:
        >>> flow = np.zeros((32, 32, 2), np.float32)
        >>> flow[8:24, 8:24] = 1
        >>> flow[15, 15] = 0
        >>> region = MovingRegion(0.5)(StartFrame(np.zeros((32, 32, 3), np.uint8), flow, "clip.mp4", 0))
        >>> int(region.sum()), bool(region[15, 15])
        (256, True)
    """

    name = "motion"

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, start: StartFrame) -> np.ndarray:
        import cv2

        moving = (np.linalg.norm(start.flow, axis=-1) > self.threshold).astype(np.uint8)
        side = max(min(moving.shape) // 32, 1) * 2 + 1
        element = np.ones((side, side), np.uint8)
        opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, element)
        return cv2.morphologyEx(opened, cv2.MORPH_CLOSE, element).astype(bool)


class GivenMasks:
    """Masks that the user has drawn.

    Args:
        folder (`str` or `None`): with `VIDEO.png` for all frames of a video, or `VIDEO/000012.png` for its frame 12,
            from 0, where VIDEO is the video's path without its suffix, relative to the folder that holds all videos.
            What is painted belongs to the region, as in the mask of an edit: what is opaque, or bright. Masks are
            resized to the frames; a frame without one gives no record.

    Raises:
        ValueError: if the folder does not exist.
    """

    name = "masks"

    def __init__(self, folder: str | None):
        if folder is None or not Path(folder).is_dir():
            raise ValueError(f"`masks` must be a folder with VIDEO.png or VIDEO/000012.png, got {got(folder)}.")
        self.folder = Path(folder)

    def __call__(self, start: StartFrame) -> np.ndarray:
        video = self.folder / Path(start.source).with_suffix("")
        height, width = start.picture.shape[:2]
        for path in (video / f"{start.index:06d}.png", video.with_name(f"{video.name}.png")):
            if path.exists():
                try:
                    region = painted_region(open_picture(path))
                except (OSError, ValueError) as error:
                    raise UnusableVideo("mask cannot be read", f"{path}: {error}") from error
                return np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.NEAREST))
        return np.zeros((height, width), dtype=bool)


class FaceParsing:
    """The face, by a semantic segmentation model of transformers (the paper's region for FaceForensics++).

    Args:
        model (`str` or `None`): name on the Hugging Face Hub, or a folder; None for `FACE_PARSING_MODEL`.
        labels (`Sequence[str]` or `None`): classes that make up the face, by name or number. None: the parts of a face
            without hair, by `FACE_LABELS`, or classes 1 to 9 of a model with 11 classes and no such names.
        device (`torch.device`): that the model runs on.

    Raises:
        ValueError: if the model can't be had, or has no such classes.
    """

    name = "face-parsing"

    def __init__(self, model: str | None, labels: Sequence[str] | None, device: torch.device):
        from transformers import AutoModelForSemanticSegmentation

        self.device = device
        self.processor, self.model = _load_network(
            AutoModelForSemanticSegmentation, model or FACE_PARSING_MODEL, device
        )
        self.classes = _classes(self.model.config.id2label, labels, FACE_LABELS)

    def __call__(self, start: StartFrame) -> np.ndarray:
        outputs = _outputs(self.processor, self.model, start.picture, self.device)
        sizes = [start.picture.shape[:2]]
        (parts,) = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return np.isin(parts.cpu().numpy(), self.classes)


class PersonBox:
    """The boxes of all persons, by an object detector of transformers (the paper's region for TED talks).

    Args:
        model (`str` or `None`): name on the Hugging Face Hub, or a folder; None for `PERSON_MODEL`.
        labels (`Sequence[str]` or `None`): classes to detect, by name or number; None for `PERSON_LABELS`.
        device (`torch.device`): that the model runs on.

    Raises:
        ValueError: if the model can't be had, or has no such classes.
    """

    name = "person"

    def __init__(self, model: str | None, labels: Sequence[str] | None, device: torch.device):
        from transformers import AutoModelForObjectDetection

        self.device = device
        self.processor, self.model = _load_network(AutoModelForObjectDetection, model or PERSON_MODEL, device)
        self.classes = _classes(self.model.config.id2label, labels, PERSON_LABELS)

    def __call__(self, start: StartFrame) -> np.ndarray:
        outputs = _outputs(self.processor, self.model, start.picture, self.device)
        height, width = start.picture.shape[:2]
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=LEAST_SCORE, target_sizes=[(height, width)]
        )
        region = np.zeros((height, width), dtype=bool)
        for label, box in zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True):
            if label in self.classes:
                left, top, right, bottom = (max(round(edge), 0) for edge in box)
                region[top:bottom, left:right] = True
        return region


class FaceLandmarks:
    """The convex hulls of all faces, by MediaPipe's face mesh.

    Args:
        model (`str` or `None`): a `face_landmarker.task` file; None for the model that comes with MediaPipe up to
            0.10.14.

    Raises:
        ValueError: if MediaPipe is not installed, or comes without a model and none is given.
    """

    name = "face-landmarks"

    def __init__(self, model: str | None):
        try:
            import mediapipe
        except ImportError as error:
            raise ValueError(
                "`region` is 'face-landmarks', which needs MediaPipe: pip install mediapipe, or choose another region."
            ) from error
        self.mediapipe: Any = mediapipe
        if model is not None:
            self._landmarks = self._task(model)
        elif hasattr(mediapipe, "solutions"):
            self._landmarks = self._bundled()
        else:
            raise ValueError(
                "`region_model` must be the path of a face_landmarker.task file, got None: this version of MediaPipe "
                "comes without a model."
            )

    def __call__(self, start: StartFrame) -> np.ndarray:
        import cv2

        height, width = start.picture.shape[:2]
        region = np.zeros((height, width), dtype=np.uint8)
        for face in self._landmarks(start.picture):
            points = np.array([(mark.x * width - 0.5, mark.y * height - 0.5) for mark in face])
            hull = cv2.convexHull(np.rint(points).astype(np.int32))
            cv2.fillConvexPoly(region, hull, 1)
        return region.astype(bool)

    def _bundled(self) -> Any:
        mesh = self.mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=MOST_FACES)

        def landmarks(picture: np.ndarray) -> list[Any]:
            return [face.landmark for face in mesh.process(picture).multi_face_landmarks or []]

        return landmarks

    def _task(self, model: str) -> Any:
        if not Path(model).is_file():
            raise ValueError(f"`region_model` must be the path of a face_landmarker.task file, got {got(model)}.")
        tasks = self.mediapipe.tasks
        options = tasks.vision.FaceLandmarkerOptions(
            base_options=tasks.BaseOptions(model_asset_path=model), num_faces=MOST_FACES
        )
        landmarker = tasks.vision.FaceLandmarker.create_from_options(options)

        def landmarks(picture: np.ndarray) -> list[Any]:
            image = self.mediapipe.Image(image_format=self.mediapipe.ImageFormat.SRGB, data=picture)
            return list(landmarker.detect(image).face_landmarks)

        return landmarks


def make_editing_region(settings: BuildSettings, device: torch.device) -> EditingRegion:
    """The editing region that the settings of a dataset name.

    Args:
        settings (`BuildSettings`): of the dataset.
        device (`torch.device`): that its model runs on, if it has one.

    Raises:
        ValueError: where what it needs is missing.
    """
    if settings.region == "motion":
        return MovingRegion(settings.region_threshold)
    if settings.region == "whole":
        return WholeFrame()
    if settings.region == "masks":
        return GivenMasks(settings.masks)
    if settings.region == "face-parsing":
        return FaceParsing(settings.region_model, settings.region_labels, device)
    if settings.region == "face-landmarks":
        return FaceLandmarks(settings.region_model)
    return PersonBox(settings.region_model, settings.region_labels, device)


def _load_network(kind: Any, model: str, device: torch.device) -> tuple[Any, Any]:
    """Image processor and model, of the Hub or a folder."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(model), kind.from_pretrained(model).to(device).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            "`region_model` must be a model of the Hugging Face Hub that can be reached, or a folder with "
            f"config.json, preprocessor_config.json and model.safetensors, got {got(model)} ({reason})."
        ) from error


def _outputs(processor: Any, model: Any, picture: np.ndarray, device: torch.device) -> Any:
    import torch

    with torch.no_grad():
        return model(**processor(images=picture, return_tensors="pt").to(device))


def _classes(
    names: Mapping[int, str], labels: Sequence[str] | None, usual: frozenset[str] | Sequence[str]
) -> list[int]:
    """The numbers of the classes of a region; `labels` holds names or numbers, `usual` names."""
    numbers = {name.lower(): int(number) for number, name in names.items()}
    if labels is None:
        classes = [number for name, number in numbers.items() if name in usual]
        if not classes and usual is FACE_LABELS and len(names) == ELEVEN_CLASSES:
            return list(FACE_CLASSES_OF_ELEVEN)
    else:
        known = {**numbers, **{str(number): int(number) for number in names}}
        classes = [known[label.lower()] for label in labels if label.lower() in known]
    if not classes or (labels is not None and len(classes) < len(labels)):
        shown = got(None if labels is None else list(labels))
        known_names = textwrap.shorten(", ".join(names.values()), LONGEST_LIST, placeholder=" ...")
        raise ValueError(f"`region_labels` must be classes of the model, got {shown}: it knows {known_names}.")
    return classes
