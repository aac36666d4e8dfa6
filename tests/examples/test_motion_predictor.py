"""What the example of the general motion predictor writes, and that its run is one that can be trained."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from motion_predictor import MotionPredictorModel
from motion_predictor.training_config import load_training_config
from support.tiny_models import make_motion_predictor

EXAMPLE = Path(__file__).parents[2] / "examples" / "motion_predictor"


def store_module():
    spec = importlib.util.spec_from_file_location("store", EXAMPLE / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stored_predictor_is_the_trained_one_in_half_precision_without_code(tmp_path: Path):
    trained = make_motion_predictor()
    trained.save_pretrained(tmp_path / "trained")
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "README.md").write_text("its card")
    store_module().store(tmp_path / "trained", tmp_path / "stored")
    assert {file.name for file in (tmp_path / "stored").iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    weights = load_file(tmp_path / "stored" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    again = MotionPredictorModel.from_pretrained(tmp_path / "stored", dtype=torch.float32)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float(), atol=0, rtol=0)
    for name in ("sample_size", "hidden_channels_translator", "horizons", "inception_kernels"):
        assert again.config[name] == MotionPredictorModel.from_pretrained(tmp_path / "trained").config[name]


def test_a_network_without_its_answer_for_the_next_step_predicts_the_same_whole_way():
    torch.manual_seed(0)
    settings = load_training_config(EXAMPLE / "general.yaml").network
    model = MotionPredictorModel(**settings).eval()
    torch.nn.init.normal_(model.decoder.readout.weight, std=0.1)
    image, handles = torch.rand(1, 3, 64, 64), torch.tensor([[[20.0, 30.0]]])
    before = model.predict(image, handles, handles + 6)
    after = store_module().without_step(model, 0.1).eval().predict(image, handles, handles + 6)
    torch.testing.assert_close(after.total_flow, before.total_flow)
    torch.testing.assert_close(after.total_deviation, before.total_deviation)
    torch.testing.assert_close(after.flow, before.total_flow / 10)


def test_the_run_makes_a_dense_network_of_less_than_half_a_million_parameters():
    config = load_training_config(EXAMPLE / "general.yaml")
    network = MotionPredictorModel(**config.network)
    assert network.horizons == ("step", "total")
    assert 400_000 < sum(parameter.numel() for parameter in network.parameters()) < 500_000


def test_the_script_of_the_data_is_sound_and_says_what_it_wants():
    script = EXAMPLE / "build_data.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    asked = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert asked.stdout.startswith("The datasets of general.yaml")
    assert "held_out.txt" in asked.stdout
