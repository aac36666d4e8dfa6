"""float16: no gradient step is lost to an overflow, of supervision or of the identity LoRA."""

from __future__ import annotations

import pytest
import torch

from dynadrag_pipeline import latent_optimizer
from dynadrag_pipeline.loss_scale import FIRST_SCALE, LossScale

HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]


def test_an_overflow_lowers_the_scale_and_the_gradient_is_taken_again():
    """The gradient of 100 x, times the first scale, is beyond float16's 65,504; at a quarter of it it is not."""
    at = torch.ones(1, dtype=torch.float16, requires_grad=True)
    scale = LossScale(is_half=True)
    (gradient,) = scale.gradients((100 * at).sum().float(), [at])
    assert gradient.item() == 100
    assert scale.retries == 1
    assert scale.scale == FIRST_SCALE / 4
    scale.gradients((100 * at).sum().float(), [at])
    assert scale.retries == 1, "the scale stays low"


def test_a_gradient_that_is_finite_at_no_scale_is_an_error_and_a_loss_that_is_not_is_the_caller_s():
    at = torch.zeros(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="not finite in float16"):
        LossScale(is_half=True).gradients(at.sqrt().sum(), [at])
    (gradient,) = LossScale(is_half=True).gradients((at * torch.inf).sum(), [at])
    assert not gradient.isfinite().all()


def test_other_precisions_are_not_scaled():
    at = torch.full((1,), 1e30, requires_grad=True)
    scale = LossScale(is_half=False)
    assert scale.gradients((3 * at).sum(), [at])[0].item() == 3
    assert (scale.scale, scale.retries) == (1.0, 0)


@pytest.fixture
def steps_taken(monkeypatch) -> list[bool]:
    """Whether each Adam step changed the latent."""
    taken: list[bool] = []
    step = latent_optimizer.LatentOptimizer.step

    def counted(self: latent_optimizer.LatentOptimizer, loss: torch.Tensor) -> None:
        before = self.latents.detach().clone()
        step(self, loss)
        taken.append(bool((self.latents != before).any()))

    monkeypatch.setattr(latent_optimizer.LatentOptimizer, "step", counted)
    return taken


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel_reduction": "sum"},
        {"supervision_radius": 8},
        {"channel_reduction": "sum", "supervision_radius": 8},
        {"mask_weight": 10.0, "mask": torch.cat([torch.ones(40, 96), torch.zeros(40, 96)])},
    ],
    ids=["defaults", "sum", "radius 8", "sum and radius 8", "mask weight 10"],
)
def test_every_supervision_step_of_an_edit_in_float16_is_taken(pipe, picture, quick, steps_taken, options):
    output = pipe.to(dtype=torch.float16)(picture, HANDLES, TARGETS, **quick, **options)
    assert output.stop_reason == "reached"
    assert steps_taken == 3 * 2 * [True]


def test_retries_are_in_the_record(pipe, picture, quick, monkeypatch):
    """With a scale that overflows at first; then it stays where it does not."""
    monkeypatch.setattr("dynadrag_pipeline.loss_scale.FIRST_SCALE", 2.0**30)
    output = pipe.to(dtype=torch.float16)(picture, HANDLES, TARGETS, channel_reduction="sum", **quick)
    assert output.iterations[0].gradient_retries > 0
    assert [record.gradient_retries for record in output.iterations[1:]] == [0, 0]


def test_no_step_of_the_identity_lora_is_lost(pipe, picture, quick, monkeypatch):
    """From a scale at which its first gradients overflow, it is fitted by as many steps as were asked for."""
    monkeypatch.setattr("dynadrag_pipeline.loss_scale.FIRST_SCALE", 2.0**30)
    taken = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW) -> None:
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        taken.append(all(bool(each.isfinite().all()) for each in gradients))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    pipe.to(dtype=torch.float16).open_session(picture, **(quick | {"identity_lora_steps": 4}))
    assert taken == 4 * [True]
