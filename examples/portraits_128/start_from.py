"""Beginning with a trained network whose first or last layer has another width."""

from __future__ import annotations

import torch


def load_matching(model: torch.nn.Module, trained: torch.nn.Module) -> list[str]:
    """Copy the parameters that have the same name and shape in both; return the names of those that begin anew."""
    wanted = model.state_dict()
    known = {name: value for name, value in trained.state_dict().items() if value.shape == wanted[name].shape}
    model.load_state_dict(known, strict=False)
    anew = [name for name in wanted if name not in known]
    print(f"Beginning with trained weights; anew: {', '.join(anew) or 'nothing'}")
    return anew
