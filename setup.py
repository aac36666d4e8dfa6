"""How the package is built: what is installed with it, and what it needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

DEMO = ["matplotlib>=3.8", "scikit-image>=0.22"]
# The motion predictor on videos: reading them, optical flow, shards, configuration and curves of a training run.
TRAINING = [
    "av>=12",
    "filelock>=3.12",
    "matplotlib>=3.8",
    "opencv-python-headless>=4.8.0.76",
    "omegaconf>=2.3",
    "PyYAML>=6",
    "tensorboard>=2.15",
    "webdataset>=0.2.86",
]
# SSIM, LPIPS, FID and KID; `dynadrag build-pairs` needs what training does.
EVALUATION = ["scikit-image>=0.22", "torchmetrics>=1.4", *TRAINING]
# What torchmetrics takes the networks under LPIPS, FID and KID from.
PERCEPTUAL = ["torch-fidelity>=0.3", "torchvision>=0.20"]
# The page of `dynadrag app`, its sample pictures, and films of edits.
APP = ["av>=12", "gradio>=6.29,<7", *DEMO]
# A browser is driven by playwright; it is not among what pip installs.
DEV = [
    "hypothesis>=6.100",
    "mypy>=1.11",
    "playwright>=1.45",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.9",
    "scipy>=1.11.1",
    "setuptools>=69",
]


def long_description() -> str:
    """The README for a package index, which has no files beside it: pictures are left out, links to files are text."""
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    without_pictures = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n+(?:\*[^*]+\*\n+)?", "", readme)  # nor captions
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", without_pictures)


setup(
    name="dynadrag",
    version="0.1.0",
    description="Drag-style image editing by motion prediction (DynaDrag), as a plugin for Hugging Face diffusers",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusers", "image editing", "drag editing", "stable diffusion", "motion prediction"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["dynadrag_pipeline*", "motion_predictor*", "conversion*"]),
    package_data={
        "dynadrag_pipeline": [
            "py.typed",
            *(f"app/*.{suffix}" for suffix in ("html", "css", "js")),
            *(f"weights/**/*.{suffix}" for suffix in ("json", "safetensors", "txt", "md", "jpg")),
        ],
        "conversion": ["py.typed"],
        "motion_predictor": ["py.typed"],
    },
    install_requires=[
        "torch>=2.5",
        "diffusers>=0.40,<0.43",
        "transformers>=5",
        "peft>=0.18",
        "accelerate>=1.2",
        "huggingface_hub>=1.31",
        "safetensors>=0.8",
        "numpy>=1.26",
        "Pillow>=10",
        "tqdm>=4.60",
    ],
    extras_require={
        "app": APP,
        "demo": DEMO,
        "training": TRAINING,
        "evaluation": EVALUATION,
        "perceptual": [*EVALUATION, *PERCEPTUAL],
        "dev": [*APP, *TRAINING, *EVALUATION, *DEV],
    },
    entry_points={"console_scripts": ["dynadrag=dynadrag_pipeline.__main__:run"]},
)
