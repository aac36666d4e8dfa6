"""SimVP checkpoints in the layouts that are around, against the forward passes that their papers and code describe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.simvp import convert_motion_predictor, load_simvp
from motion_predictor import MotionPredictorModel
from support.simvp_network import SimVP


def saved(tmp_path: Path, weights: object, name: str = "checkpoint.pth") -> Path:
    torch.save(weights, tmp_path / name)
    return tmp_path / name


def flow(model: MotionPredictorModel, sample: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(sample).flow


# One frame: the same network.


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"spatial": 16, "translator": 32, "n_s": 2, "n_t": 2, "groups": 8},
        {"n_s": 3, "n_t": 2, "groups": 1},
        {"kernels": (3, 5), "groups": 4},
        {"n_s": 1, "n_t": 2},
        {"spatial": 8, "translator": 24, "n_t": 2, "groups": 8},  # 12 channels can't be in 8 groups: one group
    ],
)
def test_a_simvp_of_one_frame_computes_the_same(tmp_path, config):
    simvp = SimVP(**config)
    sample = torch.rand(2, 6, 24, 32)
    converted = load_simvp(saved(tmp_path, simvp.state_dict()))
    assert converted.exact
    torch.testing.assert_close(flow(converted.model, sample), simvp(sample[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_the_configuration_is_told_by_the_shapes(tmp_path):
    simvp = SimVP(spatial=16, translator=48, n_s=2, n_t=4, groups=8, kernels=(3, 7))
    converted = load_simvp(saved(tmp_path, simvp.state_dict()))
    config = converted.model.config
    assert (config.in_channels, config.out_channels) == (6, 2)
    assert (config.hidden_channels_spatial, config.hidden_channels_translator) == (16, 48)
    assert (config.num_spatial_blocks, config.num_translator_blocks) == (2, 4)
    assert (tuple(config.inception_kernels), config.inception_groups) == ((3, 7), 8)
    assert converted.shape.frames == 1


@pytest.mark.parametrize(
    "around",
    [
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"epoch": 2, "state_dict": {f"model.{name}": value for name, value in weights.items()}},
        lambda weights: {"state_dict": {f"model.module.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": {f"_orig_mod.{name}": value.double() for name, value in weights.items()}},
        lambda weights: {"criterion.weight": torch.ones(3), **{f"net.{n}": v for n, v in weights.items()}},
    ],
)
def test_what_trainers_put_around_the_weights_is_taken_off(tmp_path, around):
    simvp = SimVP(n_t=2)
    sample = torch.rand(1, 6, 16, 16)
    converted = load_simvp(saved(tmp_path, around(simvp.state_dict()), "last.ckpt"))
    assert converted.model.dtype == torch.float32
    torch.testing.assert_close(flow(converted.model, sample), simvp(sample[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_safetensors_are_read_too(tmp_path):
    simvp = SimVP(n_t=2)
    save_file(simvp.state_dict(), tmp_path / "simvp.safetensors")
    assert load_simvp(tmp_path / "simvp.safetensors").exact


# Other SimVPs: warm starts.


def layers(names: list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def test_more_frames_are_a_warm_start_of_all_but_the_translators_ends(tmp_path):
    path = saved(tmp_path, SimVP(frames=4).state_dict())
    with pytest.raises(ValueError, match=r"has 4 frames, not 1\. .*pass `warm_start`.*translator\.up_blocks\.2"):
        load_simvp(path)
    converted = load_simvp(path, warm_start=True)
    assert converted.shape.frames == 4
    assert not converted.exact
    ends = {"translator.down_blocks.0.bottleneck"}
    ends |= {f"translator.up_blocks.2.branches.{i}.{part}" for i in range(4) for part in ("conv", "norm")}
    assert layers(converted.reinitialised) == ends
    kept = converted.model.state_dict()
    torch.testing.assert_close(
        kept["translator.up_blocks.1.branches.3.conv.weight"],
        torch.load(path)["hid.dec.1.layers.3.conv.weight"],
    )


def test_other_channels_are_a_warm_start_of_all_but_the_ends(tmp_path):
    path = saved(tmp_path, SimVP(channels=(3, 3)).state_dict())
    with pytest.raises(ValueError, match="has 3 to 3 channels, not 6 to 2"):
        load_simvp(path)
    converted = load_simvp(path, warm_start=True)
    assert layers(converted.reinitialised) == {"encoder.blocks.0.conv", "decoder.readout"}
    assert torch.isfinite(flow(converted.model, torch.rand(1, 6, 16, 16))).all()


def test_a_warm_start_begins_the_same_each_time_and_leaves_the_random_state_alone(tmp_path):
    path = saved(tmp_path, SimVP(frames=2).state_dict())
    state = torch.get_rng_state()
    first = load_simvp(path, warm_start=True).model.state_dict()
    torch.rand(3)
    second = load_simvp(path, warm_start=True).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.set_rng_state(state)
    load_simvp(path, warm_start=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_openstls_incepu_is_a_warm_start_with_its_translator_whole(tmp_path):
    openstl = SimVP(openstl=True)
    path = saved(tmp_path, {"state_dict": openstl.state_dict("model.")}, "best.ckpt")
    with pytest.raises(ValueError, match=r"has OpenSTL's encoder and decoder .*decoder\.blocks\.0\.conv\.weight"):
        load_simvp(path)
    converted = load_simvp(path, warm_start=True)
    assert converted.shape.layout == "OpenSTL"
    assert not converted.exact
    assert layers(converted.reinitialised) == {"decoder.blocks.0.conv", "decoder.blocks.2.conv"}
    hidden = torch.rand(1, 8, 6, 8)
    with torch.no_grad():
        translated = converted.model.translator(hidden)
    torch.testing.assert_close(translated, openstl.translate(hidden), rtol=1e-5, atol=1e-5)


def test_openstls_last_layer_gives_of_both_maps_what_it_gave_of_their_sum(tmp_path):
    openstl = SimVP(openstl=True)
    model = load_simvp(saved(tmp_path, openstl.state_dict()), warm_start=True).model
    one, other = torch.rand(2, 1, 8, 6, 8)
    with torch.no_grad():
        ours = model.decoder.blocks[3].conv(torch.cat([one, other], dim=1))
        theirs = openstl.net["dec"]["dec"]["3"]["conv"]["conv"](one + other)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_openstls_other_activation_alone_makes_a_warm_start(tmp_path):
    path = saved(tmp_path, SimVP(openstl=True, n_s=1).state_dict())
    with pytest.raises(ValueError, match="OpenSTL's encoder and decoder"):
        load_simvp(path)
    converted = load_simvp(path, warm_start=True)
    assert converted.reinitialised == []
    assert not converted.exact


def test_an_openstl_of_frames_and_channels_is_all_warm_starts_at_once(tmp_path):
    path = saved(tmp_path, SimVP(frames=10, channels=(1, 1), openstl=True, n_t=2).state_dict())
    with pytest.raises(ValueError, match=r"OpenSTL's encoder and decoder .*; 10 frames, not 1; 1 to 1 channels"):
        load_simvp(path)
    assert len(layers(load_simvp(path, warm_start=True).reinitialised)) == 2 + 2 + 1 + 8


def test_how_it_was_asked_in_training_is_told_by_options(tmp_path):
    path = saved(tmp_path, SimVP(n_t=2).state_dict())
    model = load_simvp(path, sample_size=None, delta_paint="disc", heatmap_radius=2.0, flow_scale=10.0).model
    assert (model.config.sample_size, model.config.delta_paint, model.config.flow_scale) == (None, "disc", 10.0)
    with pytest.raises(ValueError, match=r"gives no motion predictor: `delta_paint` must be .* got 'dot'"):
        load_simvp(path, delta_paint="dot")
    with pytest.raises(ValueError, match=r"`conditioning` must be one of 'sample_size', .*, got 'in_channels'"):
        load_simvp(path, in_channels=3)


# What is no SimVP.

TRANSLATORS = {
    "gSTA": {"attn.spatial_gating_unit.conv1.weight": (16, 8, 1, 1), "norm1.weight": (8,)},
    "VAN": {"attn.spatial_gating_unit.conv1.weight": (8, 8, 1, 1)},
    "TAU": {"attn.spatial_gating_unit.conv1.weight": (8, 8, 1, 1), "attn.spatial_gating_unit.fc.0.weight": (2, 8)},
    "ConvMixer": {"conv_dw.weight": (8, 1, 11, 11), "conv_pw.weight": (8, 8, 1, 1)},
    "ConvNeXt": {"conv_dw.weight": (8, 1, 7, 7), "gamma": (8,)},
    "HorNet": {"gnconv.proj_in.weight": (16, 8, 1, 1), "gamma1": (8,)},
    "MLP-Mixer": {"mlp_tokens.fc1.weight": (4, 8)},
    "MogaNet": {"attn.gate.weight": (8, 8, 1, 1), "layer_scale_1": (1, 8, 1, 1)},
    "PoolFormer": {"layer_scale_1": (8,), "mlp.fc1.weight": (8, 8, 1, 1)},
    "Swin": {"attn.relative_position_bias_table": (49, 8), "attn.qkv.weight": (24, 8)},
    "UniFormer": {"pos_embed.weight": (8, 1, 3, 3), "attn.weight": (8, 1, 5, 5)},
    "ViT": {"attn.qkv.weight": (24, 8)},
}


@pytest.mark.parametrize("name", TRANSLATORS)
def test_other_translators_of_openstl_are_refused_by_name(tmp_path, name):
    weights = {key: value for key, value in SimVP(openstl=True).state_dict().items() if not key.startswith("hid.")}
    weights |= {f"hid.enc.0.block.{part}": torch.rand(shape) for part, shape in TRANSLATORS[name].items()}
    with pytest.raises(ValueError, match=f"with the translator {re.escape(name)}: that is another network"):
        load_simvp(saved(tmp_path, weights), warm_start=True)


def test_a_translator_that_is_not_known_is_refused(tmp_path):
    weights = {key: value for key, value in SimVP().state_dict().items() if not key.startswith("hid.")}
    with pytest.raises(ValueError, match="must have SimVP's translator of Inception blocks"):
        load_simvp(saved(tmp_path, weights))
    with pytest.raises(ValueError, match="must have SimVP's translator of Inception blocks"):
        load_simvp(saved(tmp_path, {**weights, "hid.enc.0.block.mamba.weight": torch.ones(3)}))


def test_weights_of_something_else_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be a SimVP, got weights without `enc.enc.0.conv.conv.weight`, such as cell_list.0"
    ):
        load_simvp(saved(tmp_path, {"cell_list.0.conv.weight": torch.ones(3)}))


def test_two_networks_in_one_file_are_refused(tmp_path):
    simvp = SimVP(n_t=2)
    with pytest.raises(ValueError, match=r"must hold one network, got 2, under 'model.', 'ema.'"):
        load_simvp(saved(tmp_path, {**simvp.state_dict("model."), **simvp.state_dict("ema.")}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("hid.dec.1.layers.2.conv.bias"), r"up_blocks\.1\.branches\.2\.conv\.weight"),
        (lambda w: w.pop("dec.readout.weight"), r"no weight 'dec\.readout\.weight'"),
        (lambda w: w.update({"hid.enc.0.layers.9.conv.weight": torch.ones(2)}), r"no weight 'hid\.enc"),
        (lambda w: w.update({"hid.enc.7.conv1.weight": torch.ones(2)}), "SimVP"),
        (lambda w: w.update({"enc.extra.weight": torch.ones(2)}), r"enc\.extra\.weight"),
        (lambda w: w.update({"hid.enc.1.conv1.weight": torch.ones(3, 3, 1, 1)}), r"down_blocks\.1\.bottleneck"),
        (lambda w: w.update({"enc.enc.0.conv.conv.weight": torch.ones(8, 6, 5, 5)}), "3x3 kernels, .*, got 5x5"),
        (lambda w: w.update({"hid.enc.0.conv1.weight": torch.ones(7, 8, 1, 1)}), "don't fit together"),
    ],
)
@pytest.mark.parametrize("warm_start", [True, False])
def test_layers_that_are_missing_too_many_or_other_are_named(tmp_path, change, message, warm_start):
    weights = SimVP().state_dict()
    change(weights)
    with pytest.raises(ValueError, match=rf"checkpoint.pth` .*{message}"):
        load_simvp(saved(tmp_path, weights), warm_start=warm_start)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = SimVP(n_t=2).state_dict()
    weights["dec.readout.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"the weight `decoder.readout.bias` is not finite"):
        load_simvp(saved(tmp_path, weights))


# The folder.


def test_the_folder_loads_as_a_motion_predictor_and_says_where_it_comes_from(tmp_path):
    simvp = SimVP(n_t=2)
    path = saved(tmp_path, simvp.state_dict())
    convert_motion_predictor(path, tmp_path / "out", sample_size=32)
    model = MotionPredictorModel.from_pretrained(tmp_path / "out")
    sample = torch.rand(1, 6, 16, 16)
    torch.testing.assert_close(flow(model, sample), simvp(sample[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    assert model.config.sample_size == 32
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["exact"] is True
    assert record["reinitialised"] == []
    assert record["source"]["file"] == "checkpoint.pth"
    assert record["source"]["frames"] == 1
    handles = torch.tensor([[20.0, 20.0]])
    assert model.predict_flow(torch.rand(1, 3, 40, 48), handles, handles + 5).shape == (1, 2, 40, 48)


def test_a_warm_start_says_so_in_its_folder(tmp_path):
    path = saved(tmp_path, SimVP(frames=2, n_t=2).state_dict())
    convert_motion_predictor(path, tmp_path / "out", warm_start=True)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["exact"] is False
    assert "translator.down_blocks.0.bottleneck.weight" in record["reinitialised"]


def test_a_refusal_leaves_nothing(tmp_path):
    path = saved(tmp_path, SimVP(frames=2, n_t=2).state_dict())
    with pytest.raises(ValueError, match="warm_start"):
        convert_motion_predictor(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_an_older_folder_is_kept_without_force(tmp_path):
    path = saved(tmp_path, SimVP(n_t=2).state_dict())
    convert_motion_predictor(path, tmp_path / "out")
    with pytest.raises(ValueError, match="already there"):
        convert_motion_predictor(path, tmp_path / "out")
    convert_motion_predictor(path, tmp_path / "out", force=True, sample_size=64)
    assert MotionPredictorModel.from_pretrained(tmp_path / "out").config.sample_size == 64


def test_the_papers_preset_is_told_by_its_shapes(tmp_path):
    simvp = SimVP(spatial=64, translator=256, n_s=4, n_t=8, groups=8)
    converted = load_simvp(saved(tmp_path, simvp.state_dict()))
    assert converted.exact
    ours = MotionPredictorModel().config
    assert {name: converted.model.config[name] for name in ours if name != "_use_default_values"} == {
        name: value for name, value in ours.items() if name != "_use_default_values"
    }
    assert converted.model.num_parameters() == 13_820_674
