"""Put the trained parts together in the layout that `DynaDragPipeline.from_pretrained` reads, in half precision.

python examples/portraits_128/assemble.py --vae runs/vae/vae --unet runs/unet/unet \\
    --motion-predictor runs/motion_predictor/motion_predictor --out dynadrag_pipeline/weights/portraits-128
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from text_encoder import build_text_encoder, build_tokenizer
from train_unet import build_scheduler

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from dynadrag_pipeline.hub import INSTALLED_PREDICTOR
from dynadrag_pipeline.settings import recommended_settings
from motion_predictor import MotionPredictorModel

MOST_MEGABYTES = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--unet", type=Path, required=True, help="folder of the trained UNet")
    parser.add_argument("--motion-predictor", type=Path, required=True, help="folder of the trained motion predictor")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    args = parser.parse_args()

    pipeline = DynaDragPipeline(
        vae=AutoencoderKL.from_pretrained(args.vae),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        unet=UNet2DConditionModel.from_pretrained(args.unet),
        scheduler=build_scheduler(),
        motion_predictor=MotionPredictorModel.from_pretrained(args.motion_predictor),
        recommended_settings=recommended_settings(
            EMBEDDED_CHECKPOINT
        ),  # those of the weights that it takes the place of
    ).to(dtype=torch.float16)
    for part in (pipeline.vae, pipeline.unet, pipeline.motion_predictor):
        part.register_to_config(_name_or_path="")  # where it was trained is nobody's business
    pipeline.save_pretrained(args.out)
    leave_code_out(args.out)
    megabytes = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file()) / 1e6
    print(f"{args.out}: {megabytes:.1f} MB (at most {MOST_MEGABYTES} MB may be shipped)")


def leave_code_out(folder: Path) -> None:
    """Take the code out of a saved pipeline, and name the classes of the package that these weights come with."""
    for code in folder.rglob("*.py"):
        code.unlink()
    index, config = folder / "model_index.json", folder / "motion_predictor" / "config.json"
    entries, settings = json.loads(index.read_text()), json.loads(config.read_text())
    entries |= {"_class_name": DynaDragPipeline.__name__, "motion_predictor": INSTALLED_PREDICTOR}
    del settings["auto_map"]
    for file, content in ((index, entries), (config, settings)):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
