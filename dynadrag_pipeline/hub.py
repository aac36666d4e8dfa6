"""A pipeline in a folder or on the Hub, with an index that loads where this package is installed and where it is not.

Where it is not, the index has to name the files that the code is in (`pipeline.py`, and one beside the predictor's
weights), and loading asks for `trust_remote_code`. Where it is, these entries stand for the installed classes, and no
code of a repository is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.utils import logging
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.json_file import read_json
from motion_predictor.common.travelling import CARD_FILE, REMOTE_CODE, TravellingMixin

from .components import check_unet_config

logger = logging.get_logger(__name__)

PIPELINE = ("pipeline", "DynaDragPipeline")
PREDICTOR = ("modeling_motion_predictor", "MotionPredictorModel")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
NETWORKS = ("text_encoder", "vae", "unet", "motion_predictor")
INSTALLED_PREDICTOR = ("motion_predictor.modeling_motion_predictor", "MotionPredictorModel")

# Not in the text below, where diffusers would take it for an import of the file that travels.
IMPORT_OF_PACKAGE = "from dynadrag_pipeline import DynaDragPipeline"

CARD_TEXT = """\
# {title}

A [DynaDrag](https://arxiv.org/abs/2601.00542) pipeline for [diffusers](https://github.com/huggingface/diffusers): put
handle points on a picture, say where they should go, and the content moves there. A motion predictor says where the
points go next{predicted}

## Use

```python
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
result = pipe(Image.open("photo.png"), handles=[(210, 180)], targets=[(250, 180)])
result.images[0].save("dragged.png")
```

Points are (x, y) in pixels of the picture. This needs `diffusers`, `transformers`, `peft` and `accelerate`, and runs
the code in this repository: read it first. With the package `dynadrag` installed, no code of the repository is run:

```python
{imported}

pipe = DynaDragPipeline.from_pretrained("{repo_id}")
```

## Parts

| part | class | parameters |
| --- | --- | --- |
{parts}

The code is licensed under Apache-2.0. {licence}
"""


class HubMixin(TravellingMixin):
    """Saves and loads [`DynaDragPipeline`] with such an index."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or from the Hub, and refuse networks with gaps.

        The libraries would fill these at random, and say so in their log alone. What is not a Stable Diffusion 1.x or
        2.x is refused by its index, before any weights are read or downloaded.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or the id of a repository on the Hub.
            kwargs (`Any`): components that are passed, and options, as of diffusers' `DiffusionPipeline`.

        Returns:
            The pipeline.

        Raises:
            OSError: if something is not there.
            ValueError:
                if it is another kind of pipeline, or the weights of a network are not all there, or are not its own.
        """
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        index = find_json(pretrained_model_name_or_path, "model_index.json", options)
        if index is not None:
            check_index(index, pretrained_model_name_or_path, kwargs)
            warn_of_unused(
                cls, [name for name in components_of(index) if name not in kwargs], index.get("_class_name")
            )
        if "unet" not in kwargs:
            config = find_json(pretrained_model_name_or_path, "unet/config.json", options)
            if config is not None:
                check_unet_config(config)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in NETWORKS:
            network = pipe.components.get(name)
            if name not in kwargs and isinstance(network, (ModelMixin, PreTrainedModel)):
                check_loaded_weights(name, network, kwargs.get("variant"), kwargs.get("use_safetensors"))
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make a pipeline of the models of another, as diffusers does, and warn of those that have no part in it."""
        others = [name for name, component in pipeline.components.items() if component is not None]
        warn_of_unused(cls, others, type(pipeline).__name__)
        return super().from_pipe(pipeline, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the index, the code and, if the folder has none, a card."""
        super().save_config(save_directory, *args, **kwargs)
        card = Path(save_directory) / CARD_FILE
        if not card.exists():
            self.model_card(Path(save_directory).absolute().name).save(card)

    def to_json_file(self, json_file_path: Any) -> None:
        """Write the index, naming the files of code that travel along."""
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)  # where it was loaded from is no one else's business
        index["_class_name"] = PIPELINE
        if is_predictor(index):
            index["motion_predictor"] = PREDICTOR
        with atomic_file(json_file_path) as file:
            file.write(f"{json.dumps(index, indent=2, sort_keys=True)}\n".encode())

    @classmethod
    def _dict_from_json_file(cls, json_file: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read an index as `download` needs it, which knows no libraries but its own and files of code."""
        index = super()._dict_from_json_file(json_file, *args, **kwargs)
        if not is_remote(cls):
            index["_class_name"] = cls.__name__
            if is_predictor(index):
                index["motion_predictor"] = ["diffusers", ModelMixin.__name__]
        return index

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read an index as `from_pretrained` needs it, which is to load the installed predictor."""
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        if not is_remote(cls) and index.get("motion_predictor") == ["diffusers", ModelMixin.__name__]:
            index["motion_predictor"] = list(INSTALLED_PREDICTOR)
        return loaded

    def model_card(
        self,
        repo_id: str,
        license: str | None = None,
        base_model: str | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> ModelCard:
        """The card of a repository that holds this pipeline; see [`TravellingMixin.model_card`].

        What is not given is taken from where the pipeline was loaded from: from the card of a folder, or the name of a
        repository.
        """
        source = str(self.name_or_path or "")
        card = Path(source) / CARD_FILE
        if source and card.is_file():
            known = ModelCard.load(card, ignore_metadata_errors=True).data
            license, base_model = license or known.license, base_model or known.base_model
        elif source.count("/") == 1 and not Path(source).exists():
            base_model = base_model or source
        return super().model_card(repo_id, license, base_model, figures)

    def _card_text(self, repo_id: str, license: str | None) -> str:
        return CARD_TEXT.format(
            title=repo_id.rpartition("/")[2],
            repo_id=repo_id,
            imported=IMPORT_OF_PACKAGE,
            predicted="." if self.motion_predictor else ", if you pass one; without, they go straight.",
            parts="\n".join(_parts(self.components)),
            licence=f"Licence of the weights: {license}." if license else "The weights have licences of their own.",
        )


def find_json(source: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """A JSON file of a folder, or of a repository on the Hub; `None` if there is none: diffusers will say so."""
    folder = Path(source)
    try:
        file = folder / name if folder.is_dir() else Path(hf_hub_download(str(source), name, **options))
        return read_json(file, "load from a folder or repository that is whole")
    except (OSError, HFValidationError):
        return None


def check_index(index: Mapping[str, Any], source: Any, passed: Mapping[str, Any]) -> None:
    """Raise a ValueError if an index is of another pipeline than a Stable Diffusion 1.x or 2.x.

    Args:
        index (`Mapping`): of `model_index.json`.
        source (`str` or `os.PathLike`): where it is.
        passed (`Mapping`): components that don't come from there, among others.
    """
    named = components_of(index)
    second = [name for name in named if name in ("text_encoder_2", "text_encoder_3", "transformer")]
    missing = [name for name in ("vae", "text_encoder", "unet") if name not in named and name not in passed]
    unet = [] if "unet" in passed or missing else [named["unet"]]
    if second or missing or unet not in ([], [UNet2DConditionModel.__name__]):
        what = f"with a {second[0]}" if second else f"without a {missing[0]}" if missing else f"with a {unet[0]}"
        raise ValueError(
            f"`pretrained_model_name_or_path` must be a Stable Diffusion 1.x or 2.x, got `{source}`, a "
            f"{index.get('_class_name')} {what}."
        )


def components_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """The components of an index, and the names of their classes; without those that are not there."""
    entries = {name: entry for name, entry in index.items() if not name.startswith("_")}
    return {
        name: entry[1] for name, entry in entries.items() if isinstance(entry, (list, tuple)) and entry[-1] is not None
    }


def warn_of_unused(cls: Any, names: Sequence[str], whose: Any) -> None:
    """Warn of components of another pipeline that have no place in ours, such as the network that controls it."""
    expected, _ = cls._get_signature_keys(cls)
    unused = [name for name in names if name not in expected]
    if unused:
        logger.warning(
            f"{cls.__name__} takes nothing over of `{'`, `'.join(unused)}` of the {whose}: edits go without."
        )


def check_loaded_weights(
    name: str, network: ModelMixin | PreTrainedModel, variant: str | None, use_safetensors: bool | None
) -> None:
    """Raise unless a network was given all weights of its folder, and no other.

    Its library is asked once more, for a network without memory: it alone knows how names of older versions are read,
    and what may be missing. Nothing but the names of safetensors is read for that.
    """
    folder = Path(network.config._name_or_path)
    if not folder.is_dir() or getattr(network, "hf_quantizer", None) is not None:
        return
    _, found = type(network).from_pretrained(
        folder,
        variant=variant if variant and any(folder.glob(f"*.{variant}*")) else None,  # as diffusers: else the plain one
        use_safetensors=use_safetensors,
        dtype=network.dtype,
        device_map="meta",
        output_loading_info=True,
    )
    others = [key for key in found["unexpected_keys"] if not key.endswith("position_ids")]  # counts that are made anew
    differences = {"lacks": found["missing_keys"], "has others,": others}
    listed = [
        f"{verb} {len(keys)}, such as {', '.join(sorted(keys)[:3])}" for verb, keys in differences.items() if keys
    ]
    if listed:
        whose = type(network).__name__
        raise ValueError(f"`{name}` must be all weights of a {whose}, got `{folder}`, which {' and '.join(listed)}.")


def is_predictor(index: Mapping[str, Any]) -> bool:
    """Whether the motion predictor of an index is this project's, wherever its class was loaded from."""
    entry = index.get("motion_predictor")
    return isinstance(entry, (list, tuple)) and entry[1] == PREDICTOR[1]


def is_remote(cls: type) -> bool:
    """Whether a class was loaded from the code of a repository."""
    return cls.__module__.split(".")[0] == REMOTE_CODE


def _parts(components: Mapping[str, Any]) -> list[str]:
    """Rows of a table of the components that are there, with the sizes of the networks."""
    rows = []
    for name, component in components.items():
        if component is not None:
            is_network = isinstance(component, torch.nn.Module)
            size = f"{sum(each.numel() for each in component.parameters()) / 1e6:.2f} M" if is_network else ""
            rows.append(f"| `{name}` | `{type(component).__name__}` | {size} |")
    return rows
