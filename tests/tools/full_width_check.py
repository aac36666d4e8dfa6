"""Convert a checkpoint of Stable Diffusion 1.5's size, with random weights, drag with it, and say what it took.

    python tests/tools/full_width_check.py --work build/full-width [--keep]

Writes a file of 2.1 GB (UNet of 860 M parameters, autoencoder, text encoder, in float16, in the layout of one file),
converts it by `dynadrag convert pipeline` in a process of its own, loads the result in another, and compares the
weights; then drags a picture of 512 x 512 pixels. Fails if a process needs more than 12 GiB. Not a test of the suite:
it takes minutes and gigabytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

MOST_MEMORY = 12 * 2**30
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "full-width", help="folder for the files")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--sample", type=Path, help="a DragBench sample to drag (default: the astronaut's head)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.step is not None:
        STEPS[args.step](args)
        return
    try:
        for step in STEPS:
            run(step, args)
    finally:
        if not args.keep:
            shutil.rmtree(args.work)


def run(step: str, args: argparse.Namespace) -> None:
    """Run a step in a process of its own, and say its time and the most memory that it held."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--work", str(args.work.absolute()), "--step", step]
    if args.sample is not None:
        command += ["--sample", str(args.sample.absolute())]
    process = subprocess.Popen(command, cwd=ROOT)
    most = {"all": 0, "own": 0}
    while process.poll() is None:
        for name, size in memory(process.pid).items():
            most[name] = max(most[name], size)
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    sizes = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in most.items())
    print(f"{step}: {seconds:.0f} s; most memory: {sizes} (all: with pages of files that are mapped)", flush=True)
    if process.returncode:
        raise SystemExit(f"{step} failed.")
    if most["all"] > MOST_MEMORY:
        raise SystemExit(f"{step} took more than {MOST_MEMORY / 2**30:.0f} GiB.")


def memory(process: int) -> dict[str, int]:
    """Bytes of a process in memory, as Linux counts them: all, and without pages that belong to files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = {
        name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines) if "kB" in rest
    }
    return {"all": sizes.get("VmRSS", 0), "own": sizes.get("RssAnon", 0)}


def write(args: argparse.Namespace) -> None:
    """A checkpoint in the layout of one file, a tokenizer of its size, and a motion predictor."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from motion_predictor import MotionPredictorModel

    sys.path.insert(0, str(ROOT / "tests"))
    from support import ldm_layout

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        shapes = ldm_layout.stable_diffusion_1(unet, vae, text)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(value.shape, dtype=torch.float16).normal_(std=0.02, generator=generator)
        for name, value in shapes.items()
        if value.is_floating_point()
    }
    print(f"{sum(value.numel() for value in weights.values()) / 1e6:.0f} M parameters", flush=True)
    save_file(weights, args.work / "model.safetensors")
    write_tokenizer(args.work / "tokenizer", 49408)
    MotionPredictorModel().save_pretrained(args.work / "predictor")


def write_tokenizer(folder: Path, size: int) -> None:
    """CLIP's format with made-up entries, so that there are as many as the text encoder has."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(exist_ok=True)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [f"made-up-{index}</w>" for index in range(size - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def convert(args: argparse.Namespace) -> None:
    """By the command, as a user would."""
    from conversion.command_line import add_convert_command

    parser = argparse.ArgumentParser()
    add_convert_command(parser.add_subparsers())
    options = {
        "base": "model.safetensors",
        "tokenizer": "tokenizer",
        "motion-predictor": "predictor",
        "out": "pipeline",
    }
    paths = [part for name, file in options.items() for part in (f"--{name}", str(args.work / file))]
    command = parser.parse_args(["convert", "pipeline", *paths])
    command.run(command, [])


def load(args: argparse.Namespace) -> None:
    """As an edit would, and compare with the file."""
    import torch
    from safetensors import safe_open

    from dynadrag_pipeline import DynaDragPipeline

    pipe = DynaDragPipeline.from_pretrained(args.work / "pipeline", dtype=torch.float16)
    pipe.check_components()
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    assert parameters == 859_520_964, parameters
    pairs = {
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn1.to_q.weight": (
            pipe.unet.up_blocks[3].attentions[2].transformer_blocks[0].attn1.to_q.weight
        ),
        "first_stage_model.decoder.up.3.block.0.conv1.weight": pipe.vae.decoder.up_blocks[0].resnets[0].conv1.weight,
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (
            pipe.text_encoder.get_input_embeddings().weight
        ),
    }
    with safe_open(args.work / "model.safetensors", framework="pt") as file:
        for name, value in pairs.items():
            assert torch.equal(value, file.get_tensor(name)), name
    print("the weights are those of the file", flush=True)


def drag(args: argparse.Namespace) -> None:
    """Two iterations with few steps, in half precision. Random weights show that it runs, not that it edits."""
    import skimage.data
    import torch
    from PIL import Image

    from dynadrag_pipeline import DynaDragPipeline, load_instruction

    dtype = torch.float16 if torch.cuda.is_available() else torch.bfloat16
    pipe = DynaDragPipeline.from_pretrained(args.work / "pipeline", dtype=dtype)
    if torch.cuda.is_available():
        pipe.to("cuda")
    if args.sample is None:
        picture, mask = Image.fromarray(skimage.data.astronaut()), None
        points = {"handles": [(227, 115)], "targets": [(260, 118)]}
    else:
        picture, mask = (Image.open(args.sample / name) for name in ("original_image.png", "mask.png"))
        given = load_instruction(args.sample / "drag_instruction.json")
        points = {name: given[name] for name in ("handles", "targets")}
    few = {"num_inference_steps": 3, "max_iterations": 2, "supervision_steps": 1, "identity_lora_steps": 1}
    result = pipe(picture, mask=mask, output_type="pt", **points, **few)
    assert result.images.shape == (1, 3, picture.height, picture.width), result.images.shape
    assert torch.isfinite(result.images).all()
    assert len(result.iterations) == 2, result.stop_reason
    size = f"{picture.width} x {picture.height}"
    print(f"dragged {len(points['handles'])} handles of {size} pixels on {pipe.device} in {dtype}", flush=True)


STEPS = {"write": write, "convert": convert, "load": load, "drag": drag}

if __name__ == "__main__":
    main()
