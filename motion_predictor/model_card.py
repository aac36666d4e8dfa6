"""What the card of a repository says that holds a motion predictor alone."""

from __future__ import annotations

from torch import nn

# Not in the text below, where diffusers would take it for an import of the file that travels.
IMPORT_OF_PACKAGE = "from dynadrag_pipeline import DynaDragPipeline, MotionPredictorModel"

TEXT = """\
# {title}

A motion predictor for [DynaDrag](https://arxiv.org/abs/2601.00542), drag-style image editing: from a picture with
handle points and target points to a flow field, whose values at the handles are their next steps. It is SimVP for a
single frame, with {parameters:.2f} M parameters, {size}.

## Use

With the package `dynadrag`, beside a Stable Diffusion 1.x or 2.x checkpoint:

```python
{imported}

pipe = DynaDragPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    motion_predictor=MotionPredictorModel.from_pretrained("{repo_id}"),
    safety_checker=None,
)
```

Alone, and without the package; this runs the code in this repository, so read it first:

```python
from diffusers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
flow = model.predict_flow(image, handles, targets)  # [1, 2, H, W]: u to the right, v down, in pixels of `image`
```

The code is licensed under Apache-2.0.{licence}
"""


def motion_predictor_card_text(model: nn.Module, sample_size: int | None, repo_id: str, license: str | None) -> str:
    """Markdown for [`MotionPredictorModel.model_card`]; `sample_size` is from the model's config."""
    return TEXT.format(
        title=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        imported=IMPORT_OF_PACKAGE,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        size="run at the picture's own size" if sample_size is None else f"run at a short side of {sample_size} px",
        licence=f" Licence of the weights: {license}." if license else "",
    )
