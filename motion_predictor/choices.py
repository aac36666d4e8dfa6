"""The words that settings of motion prediction may be, without torch, so that help can list them at once."""

from __future__ import annotations

from typing import Literal, get_args

DeltaPaint = Literal["pixel", "disc", "spread"]
DeltaConvention = Literal["handle_minus_target", "target_minus_handle"]
FlowUnit = Literal["pixel", "displacement"]
Horizon = Literal["step", "total"]
MotionGuard = Literal["none", "clamp", "project"]

DELTA_PAINTS: tuple[DeltaPaint, ...] = get_args(DeltaPaint)
DELTA_CONVENTIONS: tuple[DeltaConvention, ...] = get_args(DeltaConvention)
FLOW_UNITS: tuple[FlowUnit, ...] = get_args(FlowUnit)
HORIZONS: tuple[Horizon, ...] = get_args(Horizon)
MOTION_GUARDS: tuple[MotionGuard, ...] = get_args(MotionGuard)
