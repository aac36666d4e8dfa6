"""What the motion predictor in the package can do, on a real portrait and at sizes that it was not trained at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from dynadrag_pipeline import EMBEDDED_MOTION_PREDICTOR, MotionPredictorModel
from motion_predictor.points import sample_flow
from motion_predictor.spline import spline_flow

NOSE = torch.tensor([[[63.0, 80.0]]])


@pytest.fixture(scope="module")
def predictor() -> MotionPredictorModel:
    return MotionPredictorModel.from_pretrained(EMBEDDED_MOTION_PREDICTOR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def portrait() -> torch.Tensor:
    """Eileen Collins, `[1, 3, 128, 128]`."""
    picture = Image.fromarray(data.astronaut()).crop((126, 0, 326, 200)).resize((128, 128), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def test_it_is_small_half_precision_safetensors():
    files = [file for file in EMBEDDED_MOTION_PREDICTOR.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8e6
    (weights,) = [file for file in files if file.suffix == ".safetensors"]
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert {file.name for file in files} == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize("direction", [(12.0, 0.0), (-12.0, 0.0), (0.0, 10.0), (0.0, -8.0)])
def test_the_nose_is_sent_where_it_is_asked_to_go_and_the_face_goes_with_it(predictor, portrait, direction):
    way = torch.tensor(direction)
    total = predictor.predict_flow(portrait, NOSE, NOSE + way, horizon="total")
    at_nose = sample_flow(total, NOSE)[0, 0]
    torch.testing.assert_close(at_nose, way, atol=2.0, rtol=0)
    eyes_and_mouth = torch.tensor([[[49.0, 64.5], [77.5, 66.0], [62.0, 95.0]]])
    shares = sample_flow(total, eyes_and_mouth)[0] @ way / way.square().sum()
    assert (shares > 0.5).all()
    step = sample_flow(predictor.predict_flow(portrait, NOSE, NOSE + way), NOSE)[0, 0]
    assert torch.cosine_similarity(step, way, dim=0) > 0.9
    assert 0.03 < step.norm() / way.norm() < 0.3


def test_what_the_mask_leaves_out_stays(predictor, portrait):
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 20:118, 24:106] = 1
    total = predictor.predict_flow(portrait, NOSE, NOSE + torch.tensor([12.0, 0.0]), mask=mask, horizon="total")
    length = total.norm(dim=1)[0]
    assert length[mask[0, 0] == 0].mean() < 0.1 * length[mask[0, 0] == 1].mean()


def test_pictures_of_any_size_are_predicted_alike(predictor, portrait):
    large = torch.nn.functional.interpolate(portrait, size=(384, 384), mode="bicubic", antialias=True).clamp(0, 1)
    way = torch.tensor([12.0, 4.0])
    small = predictor.predict_flow(portrait, NOSE, NOSE + way, horizon="total")
    scaled = (NOSE + 0.5) * 3 - 0.5
    big = predictor.predict_flow(large, scaled, scaled + 3 * way, horizon="total")
    torch.testing.assert_close(big[..., 1::3, 1::3] / 3, small, atol=0.5, rtol=0)
    wide = torch.cat([portrait, portrait.flip(-1)], dim=-1)
    assert torch.isfinite(predictor.predict_flow(wide, NOSE, NOSE + way)).all()


def test_it_is_less_sure_of_what_is_far_from_a_single_handle(predictor, portrait):
    output = predictor.predict(portrait, NOSE, NOSE + torch.tensor([12.0, 0.0]))
    near = output.total_deviation[0, 0, 78:83, 61:66].mean()
    chin = output.total_deviation[0, 0, 110:116, 58:68].mean()
    assert 0 < near < chin


def test_a_head_goes_along_with_a_nose_further_than_a_spline_says(predictor, portrait):
    way = torch.tensor([12.0, 0.0])
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 8:124, 16:112] = 1
    total = predictor.predict_flow(portrait, NOSE, NOSE + way, mask=mask, horizon="total")
    spline = spline_flow(NOSE, NOSE + way, 128, 128, mask=mask)
    brow = torch.tensor([[[63.0, 50.0]]])
    assert sample_flow(total, brow)[0, 0, 0] > sample_flow(spline, brow)[0, 0, 0]
