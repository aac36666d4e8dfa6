"""The words that options of a conversion may be, without torch, so that help can list them at once."""

from __future__ import annotations

PREDICTION_TYPES = ("epsilon", "v_prediction")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
