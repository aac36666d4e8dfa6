"""The most memory that an edit of 512 x 512 pixels takes, setting by setting, at Stable Diffusion 1.5's size.

python benchmarks/memory.py --device cuda --dtype float16 --steps 50
python benchmarks/memory.py --dtype bfloat16 --rows default "gradient checkpointing"

Random weights: what they take does not depend on their values. Each row runs twice, with and without fitting an
identity LoRA, in processes of their own. On a GPU the figure is the most that torch had allocated there; on the CPU it
is the most that the process held, Python and torch included, so there the rows tell more than the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import skimage.data
import torch
from PIL import Image
from random_networks import forget_peak, peak_memory, random_networks
from speed import in_a_process

from dynadrag_pipeline import DynaDragPipeline

HANDLES, TARGETS = [(227, 115), (200, 90)], [(260, 118), (232, 92)]

ROWS: dict[str, tuple[Callable[[DynaDragPipeline, str], object], dict[str, object]]] = {
    "default": (lambda pipe, device: pipe.to(device), {}),
    "K/V on the host": (lambda pipe, device: pipe.to(device), {"kv_placement": "host"}),
    "gradient checkpointing": (lambda pipe, device: _checkpointed(pipe).to(device), {}),
    "attention slicing": (lambda pipe, device: (pipe.enable_attention_slicing(), pipe.to(device)), {}),
    "checkpointing, K/V on the host": (lambda pipe, device: _checkpointed(pipe).to(device), {"kv_placement": "host"}),
    "model offload": (lambda pipe, device: _checkpointed(pipe).enable_model_cpu_offload(device=device), {}),
    "model offload, K/V on the host": (
        lambda pipe, device: _checkpointed(pipe).enable_model_cpu_offload(device=device),
        {"kv_placement": "host"},
    ),
    "sequential offload, K/V on the host": (
        lambda pipe, device: _checkpointed(pipe).enable_sequential_cpu_offload(device=device),
        {"kv_placement": "host"},
    ),
}
"""Settings by name: what is done to a pipeline, and arguments of its call. Offloading goes with checkpointing."""


def _checkpointed(pipe: DynaDragPipeline) -> DynaDragPipeline:
    pipe.unet.enable_gradient_checkpointing()
    return pipe


def peak(args: argparse.Namespace, row: str, lora_steps: int) -> float:
    """GiB at most, in this process."""
    prepare, options = ROWS[row]
    device = torch.device(args.device)
    pipe = random_networks(device, getattr(torch, args.dtype)).pipeline()
    if "offload" in row:
        pipe.to("cpu")
    prepare(pipe, args.device)
    forget_peak(device)
    pipe(
        Image.fromarray(skimage.data.astronaut()),
        HANDLES,
        TARGETS,
        num_inference_steps=args.steps,
        max_iterations=2,
        supervision_steps=2,
        identity_lora_steps=lora_steps,
        **options,
    )
    return peak_memory(device) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--steps", type=int, default=2, help="DDIM steps, which the K/V bank grows with (default: 2)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    args = parser.parse_args()
    print("| GiB at most | edit | edit with LoRA fit |\n|---|---:|---:|", flush=True)
    for row in args.rows:
        edit, fit = (in_a_process(peak, args, row, steps) for steps in (0, 2))
        print(f"| {row} | {edit:.2f} | {fit:.2f} |", flush=True)


if __name__ == "__main__":
    main()
