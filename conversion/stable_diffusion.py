"""A DynaDrag pipeline, put together from a Stable Diffusion 1.x or 2.x and a motion predictor."""

from __future__ import annotations

import pickle
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.ddim_inversion import make_ddim_schedulers
from motion_predictor import MotionPredictorModel
from motion_predictor.common.checks import check_choice, got
from motion_predictor.common.output_folder import check_output_folder, output_folder

from .checkpoint_file import check_finite
from .choices import PREDICTION_TYPES
from .single_file import DTYPES, check_unet_inputs, load_single_file

RESULT_NAMES = {
    "model_index.json",
    "pipeline.py",
    "README.md",
    "unet",
    "vae",
    "text_encoder",
    "tokenizer",
    "scheduler",
    "motion_predictor",
}
COMPONENTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}


def convert_pipeline(
    base: str | Path,
    out: str | Path,
    *,
    motion_predictor: str | Path | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    ema: bool = False,
    repository: str | None = None,
    force: bool = False,
) -> list[str]:
    """Put a pipeline together and save it to a folder for `DynaDragPipeline.from_pretrained`.

    The base's scheduler is saved as the DDIM scheduler that edits use, with the base's noise schedule. Its safety
    checker is neither fetched nor copied.

    Args:
        base (`str` or `Path`): folder or Hub id of a diffusers model, or a file that holds all of one.
        out (`str` or `Path`): the new folder.
        motion_predictor (`str` or `Path`, *optional*): folder or Hub id of a [`MotionPredictorModel`], or folder of a
            pipeline with one. Without it, that of `base`, if it has one; else handles will move in straight steps.
        variant (`str`, *optional*): of the base's weights, such as `"fp16"`. Not for a single file.
        dtype (`torch.dtype`, *optional*): of the saved weights: float32, float16 or bfloat16. Without it, that of the
            base: of the UNet of a single file, of the text encoder of a diffusers model.
        prediction_type (`str`, *optional*): for a single file, see [`load_single_file`].
        tokenizer (`str` or `Path`, *optional*): for a single file, see [`load_single_file`].
        ema (`bool`, defaults to `False`): for a single file, see [`load_single_file`].
        repository (`str`, *optional*): of the Hub, that the folder's card shows how to load. Without it, the folder.
        force (`bool`, defaults to `False`): replace the folder of an earlier conversion.

    Returns:
        `list[str]`: what was found and decided, in sentences.

    Raises:
        OSError, ValueError: if something is not there, damaged, of another kind, or does not fit; then nothing is
            written.

    Example:
        >>> import tempfile
        >>> from dynadrag_pipeline import EMBEDDED_CHECKPOINT
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     notes = convert_pipeline(EMBEDDED_CHECKPOINT, f"{folder}/half", dtype=torch.float16)
        >>> notes[-2:]
        ['Weights are saved in float16.', 'Handles will move as the motion predictor says.']
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    check_output_folder(out, RESULT_NAMES, force)
    base = Path(base).expanduser() if _is_path(str(base)) else str(base)
    if isinstance(base, Path) and not base.exists():
        raise FileNotFoundError(
            f"`base` must be a file, a folder or a Hub id, got {got(str(base))}, which is not there."
        )
    predictor = None if motion_predictor is None else _load_predictor(motion_predictor)
    if isinstance(base, Path) and not base.is_dir():
        components, notes = _of_one_file(base, variant, dtype, prediction_type, tokenizer, ema)
    else:
        one_file = {"prediction_type": prediction_type, "tokenizer": tokenizer, "ema": ema or None}
        for name, value in one_file.items():
            if value is not None:
                raise ValueError(f"`{name}` must be left out unless `base` is one file, got {got(value)}.")
        components, notes = _of_diffusers(base, variant, dtype)
    components["scheduler"], changes = ddim_scheduler(components["scheduler"])
    components["motion_predictor"] = predictor = predictor or components.get("motion_predictor")

    pipe = DynaDragPipeline(**components)
    pipe.check_components()
    if not isinstance(base, Path) or base.is_dir():
        pipe.register_to_config(_name_or_path=str(base))  # whence its card takes licence and origin
    with output_folder(out, RESULT_NAMES, force) as folder:
        pipe.model_card(repository or Path(out).name).save(folder / "README.md")
        pipe.save_pretrained(folder)
    precision = str(pipe.unet.dtype).removeprefix("torch.")
    moving = "in straight steps, without a motion predictor" if predictor is None else "as the motion predictor says"
    return [*notes, *changes, f"Weights are saved in {precision}.", f"Handles will move {moving}."]


def check_signed_in() -> None:
    """Ask the Hub whether it knows the user: better now than after the work.

    Raises:
        OSError: if it doesn't, or is not there.
    """
    with _hub_errors("Sign in by `hf auth login`, or leave `push_to_hub` out"):
        HfApi().whoami()


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload a converted folder as it is to a repository of models on the Hub, which is made if it is not there.

    Args:
        folder (`str` or `Path`): what to upload.
        repository (`str`): its id, such as `"my-name/drag"`.
        private (`bool`, defaults to `False`): make that repository a private one, if it is new.

    Returns:
        `str`: its address.

    Raises:
        OSError: if the Hub does not take it.
    """
    hub = HfApi()
    with _hub_errors(f"The folder is complete; upload it by `hf upload {repository} {folder}`"):
        hub.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a DynaDrag pipeline")
    return f"{hub.endpoint}/{repository}"


@contextmanager
def _hub_errors(remedy: str) -> Iterator[None]:
    """The Hub's client raises errors of its HTTP library too, which is another in each of its major versions."""
    try:
        yield
    except Exception as error:
        raise OSError(f"The Hub: {str(error).splitlines()[0].rstrip('.')}. {remedy}.") from error


def ddim_scheduler(config: Mapping[str, Any]) -> tuple[DDIMScheduler, list[str]]:
    """The DDIM scheduler that edits make of a scheduler's settings.

    Args:
        config (`Mapping[str, Any]`): of a scheduler of diffusers, as it is in its file.

    Returns:
        `tuple[DDIMScheduler, list[str]]`: the scheduler, and in sentences what of the settings it does not follow.

    Raises:
        ValueError: if DDIM can't follow the noise schedule there and back.

    Example:
        >>> scheduler, notes = ddim_scheduler(DDIMScheduler(beta_end=0.012, timestep_spacing="trailing").config)
        >>> scheduler.config.beta_end, len(notes)
        (0.012, 1)
    """
    name = config.get("_class_name", "the scheduler")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("beta_schedule") is None or not isinstance(config.get("num_train_timesteps"), int):
        raise ValueError(f"The scheduler of `base` must have a noise schedule of betas, got {name} without.")
    if prediction not in PREDICTION_TYPES:
        accepted = " or ".join(map(repr, PREDICTION_TYPES))
        raise ValueError(f"The scheduler of `base` must predict {accepted}, got {got(prediction)}.")
    if config.get("thresholding"):
        raise ValueError("The scheduler of `base` must be without `thresholding`, which can't be inverted, got it on.")
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if zero_snr and prediction == "epsilon":
        raise ValueError(
            "The scheduler of `base` must predict 'v_prediction' with `rescale_betas_zero_snr`, got 'epsilon', which "
            "says nothing where there is only noise: one of them is wrong in its scheduler_config.json."
        )
    sampler, _ = make_ddim_schedulers(config, num_inference_steps=1)
    scheduler = DDIMScheduler.from_config(sampler.config)  # without the state of the one step
    changed = {
        key: (config[key], scheduler.config[key])
        for key in ("clip_sample", "set_alpha_to_one", "timestep_spacing")
        if key in config and config[key] != scheduler.config[key]
    }
    notes = []
    if name not in ("DDIMScheduler", "the scheduler"):
        notes.append(f"The base's {name} is saved as a DDIMScheduler with its noise schedule: edits invert by DDIM.")
    if changed:
        listed = ", ".join(f"`{key}` {new} for {old}" for key, (old, new) in changed.items())
        notes.append(f"Where the base's scheduler could not be inverted, settings were changed: {listed}.")
    if prediction == "v_prediction":
        notes.append("The base predicts v, which edits follow.")
    if zero_snr:
        notes.append("The base ends in pure noise (zero terminal SNR). Edits stop short of its last timesteps.")
    return scheduler, notes


def _is_path(base: str, name: str = "base") -> bool:
    """Whether a base can only be a path, or is there: a Hub id is `name` or `owner/name`."""
    if "://" in base:
        raise ValueError(
            f"`{name}` must be a path or the id of a repository on the Hub, got {got(base)}: download it."
        )
    file = base.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin"))
    return file or Path(base).expanduser().exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) is None


def _load_predictor(source: str | Path) -> MotionPredictorModel:
    folder = Path(source).expanduser()
    if not folder.is_dir() and _is_path(str(source), "motion_predictor"):
        raise ValueError(
            "`motion_predictor` must be the folder or Hub id of a MotionPredictorModel, got "
            f"{got(str(source))}, where there is none. A checkpoint of SimVP becomes one by `dynadrag convert "
            "motion-predictor`."
        )
    part = "motion_predictor" if (folder / "motion_predictor").is_dir() else None
    return _load(MotionPredictorModel, folder if folder.is_dir() else str(source), part)


def _of_one_file(
    path: Path,
    variant: str | None,
    dtype: torch.dtype | None,
    prediction_type: str | None,
    tokenizer: str | Path | None,
    ema: bool,
) -> tuple[dict[str, Any], list[str]]:
    if variant is not None:
        raise ValueError(f"`variant` must be left out where `base` is one file, got {got(variant)}: pass `dtype`.")
    model = load_single_file(path, prediction_type=prediction_type, tokenizer=tokenizer, ema=ema, dtype=dtype)
    components = {name: getattr(model, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    return {**components, "scheduler": model.scheduler.config}, model.notes


def _of_diffusers(
    base: str | Path, variant: str | None, dtype: torch.dtype | None
) -> tuple[dict[str, Any], list[str]]:
    """Components of a diffusers model. The small files are looked at before weights are fetched or read."""
    index = _index(base)
    kind = _check_kind(index, base)
    latents = AutoencoderKL.load_config(base, subfolder="vae").get("latent_channels", 4)
    check_unet_inputs(UNet2DConditionModel.load_config(base, subfolder="unet").get("in_channels", 4), base, latents)
    scheduler = DDIMScheduler.load_config(base, subfolder="scheduler")
    ddim_scheduler(scheduler)

    vae_class = AutoencoderTiny if index["vae"][1] == "AutoencoderTiny" else AutoencoderKL
    text_encoder = _load(CLIPTextModel, base, "text_encoder", variant=variant, dtype=dtype or "auto")
    dtype = dtype or text_encoder.dtype
    components: dict[str, Any] = {
        "scheduler": scheduler,
        "tokenizer": _load_tokenizer(base, text_encoder.config.vocab_size),
        "text_encoder": text_encoder,
        "vae": _load(vae_class, base, "vae", variant=variant, dtype=dtype),
        "unet": _load(UNet2DConditionModel, base, "unet", variant=variant, dtype=dtype),
    }
    for name in ("text_encoder", "vae", "unet"):
        check_finite(components[name].state_dict(), f"{base}/{name}")
    if (index.get("motion_predictor") or [None])[0]:
        components["motion_predictor"] = _load(MotionPredictorModel, base, "motion_predictor")
    return components, [f"The base is a {kind} of diffusers."]


def _load_tokenizer(base: str | Path, vocabulary: int) -> CLIPTokenizer:
    words = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    if not 2 < len(words) <= vocabulary:  # the library makes one of two tokens of a folder without a vocabulary
        raise ValueError(f"`{base}/tokenizer` must be of 3 to {vocabulary} tokens, got {len(words)}.")
    return words


def _load(model_class: Any, base: str | Path, part: str | None, **options: Any) -> Any:
    """A model by its library, in evaluation mode; refused where the library would fill gaps with random weights."""
    name = base if part is None else f"{base}/{part}"
    try:
        model, found = model_class.from_pretrained(base, subfolder=part or "", output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = textwrap.shorten(str(error), 400)
        raise ValueError(f"`{name}` can't be loaded as a {model_class.__name__}: {reason}") from error
    missing = sorted(map(str, found["missing_keys"]))
    if missing:
        raise ValueError(f"`{name}` lacks {len(missing)} weights, such as {', '.join(missing[:3])}.")
    return model.eval()


def _index(base: str | Path) -> dict[str, Any]:
    if isinstance(base, Path) and not (base / "model_index.json").is_file():
        raise ValueError(
            f"`base` must be a folder in diffusers' layout, or one file of weights, got {got(str(base))}, a folder "
            "without model_index.json."
        )
    return DiffusionPipeline.load_config(base)


def _check_kind(index: dict[str, Any], base: str | Path) -> str:
    """Refuse pipelines that are not of Stable Diffusion 1.x or 2.x, by what their index names."""
    kind = index.get("_class_name", "pipeline")
    kind = kind[-1] if isinstance(kind, list) else kind
    found = f"`base` must be Stable Diffusion 1.x or 2.x, got {got(str(base))}, a {kind}"
    if "text_encoder_2" in index or "transformer" in index or "unet" not in index:
        raise ValueError(f"{found}.")
    for name, classes in COMPONENTS.items():
        component = (index.get(name) or [None, None])[1]
        if component not in classes:
            raise ValueError(f"{found} whose `{name}` is {component}, not {classes[0]}.")
    return kind
