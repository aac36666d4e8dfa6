"""The words that settings of motion prediction may be, without torch, so that help can list them at once."""

from __future__ import annotations

from typing import Literal, get_args

DeltaPaint = Literal["pixel", "disc"]
DeltaConvention = Literal["handle_minus_target", "target_minus_handle"]
MotionGuard = Literal["none", "clamp", "project"]

DELTA_PAINTS: tuple[DeltaPaint, ...] = get_args(DeltaPaint)
DELTA_CONVENTIONS: tuple[DeltaConvention, ...] = get_args(DeltaConvention)
MOTION_GUARDS: tuple[MotionGuard, ...] = get_args(MotionGuard)
