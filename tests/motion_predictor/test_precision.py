"""Casting the motion predictor says nothing of modules that there are not."""

from __future__ import annotations

import logging

import pytest
import torch

from support.tiny_models import make_motion_predictor


@pytest.mark.parametrize("cast", [(torch.float16,), ("cpu", torch.bfloat16)])
def test_casting_warns_of_nothing(caplog, monkeypatch, cast):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    predictor = make_motion_predictor().to(*cast)
    assert {parameter.dtype for parameter in predictor.parameters()} == {cast[-1]}
    assert not caplog.records


def test_the_cast_leaves_the_logger_as_it_was():
    logger = logging.getLogger("diffusers.models.modeling_utils")
    before = list(logger.filters)
    assert make_motion_predictor().to(dtype=torch.float16).dtype == torch.float16
    assert logger.filters == before
