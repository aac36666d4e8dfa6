"""Flow has the right sign, unit and grid, whichever method finds it; networks are asked as their authors ask them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from motion_predictor.data.optical_flow import DISFlow, RaftFlow, UniMatchFlow, make_optical_flow

CPU = torch.device("cpu")


@pytest.mark.parametrize("step", [(2, -1), (-3, 0), (0, 4)])
def test_dis_recovers_a_known_shift(moving_picture: Callable, step: tuple[int, int]):
    first, second = moving_picture(2, step, height=64, width=80)
    flow = DISFlow()(first, second)
    assert flow.shape == (64, 80, 2)
    assert flow.dtype == np.float32
    inner = flow[8:-8, 8:-8]
    assert np.abs(inner - step).mean() < 0.1


def test_dis_recovers_half_a_pixel(moving_picture: Callable, textured_picture: Callable):
    fine = textured_picture(200, 260)
    first, second = (
        fine[:192, offset : 248 + offset].reshape(96, 2, 124, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
        for offset in (1, 0)
    )
    flow = DISFlow()(first, second)
    assert np.abs(flow[10:-10, 10:-10] - (0.5, 0)).mean() < 0.05


def test_dis_gives_the_same_flow_whatever_it_saw_before(moving_picture: Callable):
    frames, others = moving_picture(2), moving_picture(2, (-5, 5), height=72, seed=1)
    fresh = DISFlow()(*frames)
    used = DISFlow()
    used(*others)
    np.testing.assert_array_equal(used(*frames), fresh)


class FakeUniMatch(torch.nn.Module):
    """The interface of UniMatch; answers with a flow of 3 % of the width to the right, 2 % of the height down."""

    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def __init__(
        self,
        num_scales: int = 1,
        feature_channels: int = 128,
        upsample_factor: int = 8,
        num_head: int = 1,
        ffn_dim_expansion: int = 4,
        num_transformer_layers: int = 6,
        reg_refine: bool = False,
        task: str = "flow",
    ):
        super().__init__()
        assert (num_scales, upsample_factor, reg_refine) == (2, 4, True)  # gmflow-scale2-regrefine6
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(
        self,
        img0: torch.Tensor,
        img1: torch.Tensor,
        attn_type: str,
        attn_splits_list: list[int],
        corr_radius_list: list[int],
        prop_radius_list: list[int],
        num_reg_refine: int = 1,
        pred_bidir_flow: bool = False,
        task: str = "flow",
    ) -> dict[str, list[torch.Tensor]]:
        assert not self.training
        options = {"splits": attn_splits_list, "radius": corr_radius_list, "prop": prop_radius_list}
        self.calls.append((img0, {**options, "refine": num_reg_refine, "attention": attn_type}))
        height, width = img0.shape[-2:]
        share = self.weight.view(1, 2, 1, 1) * torch.tensor([width, height]).view(1, 2, 1, 1)
        return {"flow_preds": [torch.full((1, 2, height, width), 99.0), share.expand(1, 2, height, width)]}


class FakeRaft(torch.nn.Module):
    """The interface of torchvision's RAFT; refuses sizes as it does."""

    calls: list[torch.Tensor] = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, image1: torch.Tensor, image2: torch.Tensor, num_flow_updates: int = 12) -> list[torch.Tensor]:
        height, width = image1.shape[-2:]
        if height % 8 or width % 8 or min(height, width) < 128:
            raise ValueError(f"input image H and W should be divisible by 8, got {height} (h) and {width} (w)")
        self.calls.append(image1)
        share = self.weight.view(1, 2, 1, 1) * torch.tensor([width, height]).view(1, 2, 1, 1)
        return [torch.full((1, 2, height, width), 99.0), share.expand(1, 2, height, width)]


@pytest.fixture
def fake_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unimatch` and `torchvision` as far as they are used."""
    FakeUniMatch.calls, FakeRaft.calls = [], []

    def raft_large(*, weights: Any = None, progress: bool = True) -> FakeRaft:
        model = FakeRaft()
        if weights == "DEFAULT":
            model.load_state_dict({"weight": torch.tensor([0.03, 0.02])})
        return model

    modules = {
        "unimatch": {},
        "unimatch.unimatch": {"UniMatch": FakeUniMatch},
        "torchvision": {},
        "torchvision.models": {},
        "torchvision.models.optical_flow": {
            "raft_large": raft_large,
            "Raft_Large_Weights": types.SimpleNamespace(DEFAULT="DEFAULT"),
        },
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def weights_file(path: Path, **extra: Any) -> str:
    torch.save(extra or {"weight": torch.tensor([0.03, 0.02])}, path)
    return str(path)


@pytest.mark.usefixtures("fake_packages")
def test_unimatch_is_asked_as_its_demo_asks_it(tmp_path: Path, moving_picture: Callable):
    first, second = moving_picture(2, height=64, width=100)
    checkpoint = weights_file(tmp_path / "gmflow.pth", model={"weight": torch.tensor([0.03, 0.02])}, epoch=7)
    flow = make_optical_flow("unimatch", checkpoint, CPU)(first, second)
    np.testing.assert_allclose(flow, np.broadcast_to([3.0, 1.28], (64, 100, 2)), rtol=1e-5)  # of 100 and 64 pixels
    image, options = FakeUniMatch.calls[0]
    assert options == {"splits": [2, 8], "radius": [-1, 4], "prop": [-1, 1], "refine": 6, "attention": "swin"}
    assert image.shape == (1, 3, 256, 416)  # enlarged to 256 x 400, then to multiples of 32
    assert 200 < image.max() <= 255  # it normalises pictures itself


@pytest.mark.usefixtures("fake_packages")
def test_raft_is_asked_with_pictures_from_minus_one_to_one(tmp_path: Path, moving_picture: Callable):
    first, second = moving_picture(2, height=260, width=340)
    for checkpoint in (None, weights_file(tmp_path / "raft.pth")):
        flow = make_optical_flow("raft", checkpoint, CPU)(first, second)
        np.testing.assert_allclose(flow, np.broadcast_to([10.2, 5.2], (260, 340, 2)), rtol=1e-5)
    image = FakeRaft.calls[0]
    assert image.shape == (1, 3, 264, 344)
    assert -1 <= image.min() < -0.5
    assert 0.5 < image.max() <= 1


def test_networks_that_are_not_installed_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch):
    for name in ("unimatch", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"`flow` is 'unimatch'.*github\.com/autonomousvision/unimatch"):
        UniMatchFlow("weights.pth", CPU)
    with pytest.raises(ValueError, match=r"`flow` is 'raft'.*pip install torchvision"):
        RaftFlow(None, CPU)


@pytest.mark.usefixtures("fake_packages")
def test_checkpoints_that_are_none_are_refused_by_name(tmp_path: Path):
    (tmp_path / "text.pth").write_text("no weights")
    others = weights_file(tmp_path / "others.pth", other=torch.zeros(3))
    with pytest.raises(ValueError, match=r"`flow_checkpoint` must be .*gmflow-scale2-regrefine6, got None"):
        UniMatchFlow(None, CPU)
    for path in (tmp_path / "missing.pth", tmp_path / "text.pth", others):
        for kind in (UniMatchFlow, RaftFlow):
            with pytest.raises(ValueError, match=r"`flow_checkpoint` must be .* got '.*\.pth'"):
                kind(str(path), CPU)


@pytest.mark.usefixtures("fake_packages")
def test_a_checkpoint_cannot_run_code(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="`flow_checkpoint`"):
        UniMatchFlow(str(tmp_path / "trap.pth"), CPU)
    assert not (tmp_path / "sprung").exists()


def test_an_unknown_flow_is_refused():
    with pytest.raises(ValueError, match=r"`flow` must be .* got 'farneback'"):
        make_optical_flow("farneback", None, CPU)
