"""The motion predictor: its architecture as published, its habits as a diffusers model, and `predict_flow`."""

import doctest
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel

from motion_predictor import MotionPredictorModel, MotionPredictorOutput, modeling_motion_predictor
from motion_predictor.conditioning import rasterize_points
from motion_predictor.linear_motion import fit_rigid, linear_flow
from motion_predictor.modeling_motion_predictor import InceptionBlock
from motion_predictor.points import sample_flow
from motion_predictor.spline import spline_flow

TINY = {
    "hidden_channels_spatial": 8,
    "hidden_channels_translator": 16,
    "num_translator_blocks": 2,
    "inception_kernels": (3, 5),
    "inception_groups": 4,
    "sample_size": 16,
}


def tiny_model(**changes):
    torch.manual_seed(0)
    return MotionPredictorModel(**{**TINY, **changes}).eval()


class StubbedModel(MotionPredictorModel):
    """A predictor whose network is a given function from the sample to the flow, and that keeps the sample."""

    def answer_with(self, function):
        self.function = function
        return self

    def forward(self, sample, return_dict=True):
        self.sample = sample
        return MotionPredictorOutput(flow=self.function(sample))


def stubbed_model(function, **changes):
    return StubbedModel(**{**TINY, **changes}).answer_with(function)


def constant_flow(u, v):
    return lambda sample: torch.tensor([u, v]).view(1, 2, 1, 1).expand(len(sample), 2, *sample.shape[-2:])


def noise(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_examples_in_the_docstrings_run():
    results = doctest.testmod(modeling_motion_predictor)
    assert results.attempted > 0
    assert results.failed == 0


class TestNetwork:
    def test_the_default_configuration_has_the_published_13_82_million_parameters(self):
        with torch.device("meta"):
            model = MotionPredictorModel()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert round(parameters / 1e6, 2) == 13.82

    def test_the_strides_are_1_2_1_2_and_mirrored(self):
        model = tiny_model()
        assert [block.conv.stride[0] for block in model.encoder.blocks] == [1, 2, 1, 2]
        assert [block.conv.stride[0] for block in model.decoder.blocks] == [2, 1, 2, 1]

    @pytest.mark.parametrize("size", [(16, 16), (20, 32), (17, 19), (18, 21), (23, 30), (5, 7)])
    def test_any_size_comes_out_as_it_went_in(self, size):
        flow = tiny_model()(noise(2, 6, *size)).flow
        assert flow.shape == (2, 2, *size)
        assert torch.isfinite(flow).all()

    @pytest.mark.parametrize("num_spatial_blocks", [1, 2, 3, 5])
    def test_any_depth_of_the_encoder_is_mirrored(self, num_spatial_blocks):
        flow = tiny_model(num_spatial_blocks=num_spatial_blocks)(noise(1, 6, 18, 25)).flow
        assert flow.shape == (1, 2, 18, 25)

    def test_at_multiples_of_four_the_decoder_doubles_as_with_an_output_padding_of_one(self):
        block = tiny_model().decoder.blocks[0]
        hidden = noise(1, 8, 6, 5)
        plain = torch.nn.functional.conv_transpose2d(
            hidden, block.conv.weight, block.conv.bias, stride=2, padding=1, output_padding=1
        )
        assert torch.equal(block.conv(hidden, output_size=(12, 10)), plain)

    def test_an_inception_block_is_the_sum_of_its_branches_on_one_bottleneck(self):
        torch.manual_seed(0)
        block = InceptionBlock(6, 4, 8, kernels=(1, 3), groups=2)
        hidden = noise(1, 6, 5, 5)
        bottleneck = block.bottleneck(hidden)
        assert torch.equal(block(hidden), block.branches[0](bottleneck) + block.branches[1](bottleneck))

    def test_groups_that_do_not_divide_the_bottleneck_fall_back_to_one(self):
        block = InceptionBlock(8, 6, 8, kernels=(3,), groups=4)
        assert block.branches[0].conv.groups == 1
        assert block(noise(1, 8, 4, 4)).shape == (1, 8, 4, 4)

    def test_the_skips_join_each_block_with_its_mirror(self):
        model, seen = tiny_model(num_translator_blocks=3), {}

        def keep(name):
            return lambda module, inputs, output: seen.update({name: (inputs[0], output)})

        translator = model.translator
        for name, blocks in (("down", translator.down_blocks), ("up", translator.up_blocks)):
            for index, block in enumerate(blocks):
                block.register_forward_hook(keep(f"{name}{index}"))
        model.encoder.blocks[0].register_forward_hook(keep("first"))
        model.decoder.blocks[-1].register_forward_hook(keep("last"))
        model(noise(1, 6, 16, 16))
        inputs = {name: pair[0] for name, pair in seen.items()}
        outputs = {name: pair[1] for name, pair in seen.items()}
        assert torch.equal(inputs["up0"], outputs["down2"])
        assert torch.equal(inputs["up1"], torch.cat([outputs["up0"], outputs["down1"]], dim=1))
        assert torch.equal(inputs["up2"], torch.cat([outputs["up1"], outputs["down0"]], dim=1))
        assert torch.equal(inputs["last"][:, 8:], outputs["first"])

    def test_every_parameter_takes_part(self):
        model = tiny_model()
        model(noise(1, 6, 17, 18)).flow.square().sum().backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert without == []

    def test_the_flow_scale_multiplies_the_output(self):
        plain, scaled = tiny_model(), tiny_model(flow_scale=2.5)
        sample = noise(1, 6, 16, 16)
        torch.testing.assert_close(scaled(sample).flow, 2.5 * plain(sample).flow)

    def test_a_tuple_is_returned_on_request(self):
        model, sample = tiny_model(), noise(1, 6, 16, 16)
        (flow,) = model(sample, return_dict=False)
        assert torch.equal(flow, model(sample).flow)

    def test_pictures_of_a_batch_do_not_touch_each_other(self):
        model, sample = tiny_model(), noise(3, 6, 16, 16)
        alone = torch.cat([model(part).flow for part in sample.split(1)])
        torch.testing.assert_close(model(sample).flow, alone, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(6, 16, 16), (1, 5, 16, 16)])
    def test_a_sample_of_another_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"`sample` must be of .*shape"):
            tiny_model()(torch.zeros(*shape))


class TestDiffusersModel:
    def test_what_was_saved_is_loaded_bit_for_bit(self, tmp_path):
        model = tiny_model(delta_paint="disc", delta_scale=0.1, sample_size=None)
        model.save_pretrained(tmp_path)
        loaded = MotionPredictorModel.from_pretrained(tmp_path)
        sample = noise(1, 6, 17, 16)
        assert torch.equal(loaded(sample).flow, model(sample).flow)
        kept = {name: loaded.config[name] for name in ("delta_paint", "delta_scale", "sample_size")}
        assert kept == {"delta_paint": "disc", "delta_scale": 0.1, "sample_size": None}

    def test_the_saved_configuration_names_every_argument(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert TINY.keys() <= saved.keys()
        assert saved["_class_name"] == "MotionPredictorModel"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_loads_and_predicts_nearly_the_same(self, tmp_path, dtype):
        model = tiny_model()
        model.save_pretrained(tmp_path)
        half = MotionPredictorModel.from_pretrained(tmp_path, dtype=dtype)
        assert {weight.dtype for weight in half.parameters()} == {dtype}
        arguments = (noise(1, 3, 16, 16), torch.tensor([[4.0, 4.0]]), torch.tensor([[9.0, 4.0]]))
        flow = half.predict_flow(*arguments)
        assert flow.dtype == torch.float32
        torch.testing.assert_close(flow, model.predict_flow(*arguments), rtol=0.1, atol=0.1)

    def test_gradient_checkpointing_runs_blocks_again_and_leaves_the_gradients_as_they_are(self):
        sample = noise(1, 6, 17, 18)

        def gradients_and_calls(model):
            calls = []
            block = model.translator.down_blocks[0]
            block.register_forward_pre_hook(lambda *_: calls.append(1))
            model.train()(sample).flow.square().sum().backward()
            return [weight.grad for weight in model.parameters()], len(calls)

        checkpointed = tiny_model()
        checkpointed.enable_gradient_checkpointing()
        plain_gradients, plain_calls = gradients_and_calls(tiny_model())
        gradients, calls = gradients_and_calls(checkpointed)
        assert (plain_calls, calls) == (1, 2)
        for left, right in zip(gradients, plain_gradients, strict=True):
            torch.testing.assert_close(left, right)

    def test_gradient_checkpointing_covers_every_block_and_rests_without_gradients(self):
        model = tiny_model()
        model.enable_gradient_checkpointing()
        calls = []
        blocks = [*model.encoder.blocks, *model.translator.down_blocks, *model.translator.up_blocks]
        blocks += [*model.decoder.blocks]
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            model(noise(1, 6, 16, 16))
        assert len(calls) == len(blocks)
        model(noise(1, 6, 16, 16)).flow.sum().backward()
        assert len(calls) == 3 * len(blocks)

    def test_what_is_saved_holds_all_that_remote_code_needs(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "path", [*sys.path])
        model, folder = tiny_model(), tmp_path / "repository"
        model.save_pretrained(folder)
        loaded = AutoModel.from_pretrained(str(folder), trust_remote_code=True)
        assert type(loaded) is not MotionPredictorModel
        arguments = (noise(1, 3, 20, 33), torch.tensor([[4.0, 4.0]]), torch.tensor([[9.0, 4.0]]))
        assert torch.equal(loaded.predict_flow(*arguments), model.predict_flow(*arguments))

    def test_layerwise_casting_keeps_the_norms_and_predicts(self):
        model = tiny_model()
        expected = model(noise(1, 6, 16, 16)).flow
        model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        assert model.encoder.blocks[0].conv.weight.dtype == torch.bfloat16
        assert model.encoder.blocks[0].norm.weight.dtype == torch.float32
        torch.testing.assert_close(model(noise(1, 6, 16, 16)).flow, expected, rtol=0.1, atol=0.1)

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("in_channels", 0),
            ("out_channels", 0),
            ("hidden_channels_spatial", 6),
            ("hidden_channels_translator", 0),
            ("num_spatial_blocks", 0),
            ("num_translator_blocks", 1),
            ("inception_kernels", (3, 4)),
            ("inception_kernels", ()),
            ("inception_groups", 0),
            ("sample_size", 0),
            ("heatmap_radius", -1.0),
            ("delta_paint", "square"),
            ("delta_convention", "up"),
            ("delta_scale", 0.0),
            ("flow_scale", float("nan")),
        ],
    )
    def test_a_configuration_that_cannot_work_is_refused_by_name(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}` must be .* got"):
            MotionPredictorModel(**{**TINY, argument: value})


class TestPredictFlow:
    HANDLES = torch.tensor([[10.0, 20.0], [50.0, 30.0]])
    TARGETS = torch.tensor([[14.0, 20.0], [50.0, 10.0]])

    def test_a_constant_flow_grows_with_the_picture_on_each_axis(self):
        model = stubbed_model(constant_flow(1.0, -2.0))
        flow = model.predict_flow(torch.rand(1, 3, 48, 65), self.HANDLES, self.TARGETS)
        assert model.sample.shape[-2:] == (16, 22)  # 65 * 16 / 48 = 21.7
        torch.testing.assert_close(flow[0, 0], torch.full((48, 65), 65 / 22))
        torch.testing.assert_close(flow[0, 1], torch.full((48, 65), -2.0 * 48 / 16))

    def test_a_flow_that_copies_the_delta_map_hands_each_handle_its_own_displacement(self):
        def painted_displacement(sample):
            return -sample[:, 3:5]

        model = stubbed_model(painted_displacement, sample_size=None, delta_paint="disc", heatmap_radius=3)
        flow = model.predict_flow(torch.rand(1, 3, 40, 60), self.HANDLES, self.TARGETS)
        assert torch.equal(sample_flow(flow, self.HANDLES[None])[0], self.TARGETS - self.HANDLES)

    def test_the_network_sees_the_picture_and_the_maps_at_its_own_size_as_configured(self):
        maps = {
            "delta_scale": 0.5,
            "delta_paint": "disc",
            "delta_convention": "target_minus_handle",
        }
        model = stubbed_model(constant_flow(0.0, 0.0), heatmap_radius=2, **maps)
        model.predict_flow(torch.full((1, 3, 32, 64), 0.25), torch.tensor([[20.5, 8.5]]), torch.tensor([[28.5, 8.5]]))
        delta_map, heatmap = rasterize_points(
            torch.tensor([[[10.0, 4.0]]]), torch.tensor([[[14.0, 4.0]]]), 16, 32, radius=2, **maps
        )
        expected = torch.cat([torch.full((1, 3, 16, 32), 0.25), delta_map, heatmap], dim=1)
        torch.testing.assert_close(model.sample, expected)

    def test_at_the_trained_size_nothing_is_resized(self):
        model, image = stubbed_model(lambda sample: sample[:, :2]), noise(1, 3, 16, 16)
        flow = model.predict_flow(image, torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
        assert torch.equal(flow, image[:, :2])

    def test_one_picture_takes_points_without_a_batch_dimension(self):
        model, image = tiny_model(), noise(1, 3, 40, 60)
        unbatched = model.predict_flow(image, self.HANDLES, self.TARGETS)
        assert torch.equal(unbatched, model.predict_flow(image, self.HANDLES[None], self.TARGETS[None]))

    def test_padding_by_valid_changes_nothing(self):
        model, image = tiny_model(), noise(1, 3, 40, 60)
        expected = model.predict_flow(image, self.HANDLES[:1], self.TARGETS[:1])
        padded = model.predict_flow(image, self.HANDLES, self.TARGETS, valid=torch.tensor([True, False]))
        assert torch.equal(padded, expected)

    def test_the_points_make_a_difference(self):
        model, image = tiny_model(), noise(1, 3, 40, 60)
        flow = model.predict_flow(image, self.HANDLES, self.TARGETS)
        assert not torch.equal(flow, model.predict_flow(image, self.HANDLES, self.HANDLES))

    def test_no_gradient_is_recorded(self):
        assert not tiny_model().predict_flow(noise(1, 3, 40, 60), self.HANDLES, self.TARGETS).requires_grad

    def test_a_prediction_that_is_not_finite_is_an_error(self):
        model = stubbed_model(constant_flow(float("nan"), 0.0))
        with pytest.raises(FloatingPointError, match="not finite"):
            model.predict_flow(torch.rand(1, 3, 40, 60), self.HANDLES, self.TARGETS)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image": torch.rand(3, 40, 60)}, "`image` must be of .*shape"),
            ({"image": torch.rand(1, 1, 40, 60)}, "`image` must be of .*shape"),
            ({"image": torch.rand(1, 3, 40, 60) * 2 - 1}, "`image` must have values from 0 to 1"),
            ({"image": torch.full((1, 3, 40, 60), float("nan"))}, "`image` must have values from 0 to 1"),
            ({"image": torch.zeros(1, 3, 40, 60, dtype=torch.uint8)}, "`image` must be of a floating-point dtype"),
            ({"handles": torch.zeros(1, 2, 3)}, "`handles` must be of .*shape"),
            ({"targets": torch.zeros(3, 2)}, "`targets` must be of .*shape"),
            ({"image": torch.rand(2, 3, 40, 60)}, "`handles` must be of .*shape"),
            ({"handles": torch.tensor([[10.0, 20.0], [60.0, 30.0]])}, "`handles` must have .* got a point at"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, change, message):
        arguments = {"image": torch.rand(1, 3, 40, 60), "handles": self.HANDLES, "targets": self.TARGETS} | change
        with pytest.raises(ValueError, match=message):
            tiny_model().predict_flow(**arguments)

    def test_as_many_pictures_as_sets_of_points_are_accepted_only(self):
        with pytest.raises(ValueError, match=r"`image` holds 2 pictures"):
            tiny_model().predict_flow(torch.rand(2, 3, 40, 60), self.HANDLES[None], self.TARGETS[None])


@pytest.mark.parametrize("convention", ["handle_minus_target", "target_minus_handle"])
def test_an_untrained_network_with_a_straight_share_predicts_that_share_of_the_displacement(convention: str):
    model = tiny_model(
        sample_size=32, delta_paint="disc", delta_scale=0.1, delta_convention=convention, straight_share=0.125
    )
    handles, targets = torch.tensor([[8.3, 9.6], [20.0, 21.4]]), torch.tensor([[16.3, 1.6], [20.0, 29.4]])
    flow = model.predict_flow(torch.rand(1, 3, 32, 32), handles, targets)
    torch.testing.assert_close(sample_flow(flow, handles[None])[0], 0.125 * (targets - handles))


@pytest.mark.parametrize(("share", "paint"), [(0.1, "pixel"), (-0.1, "disc"), (1.5, "disc")])
def test_a_straight_share_out_of_range_or_without_discs_is_refused(share: float, paint: str):
    with pytest.raises(ValueError, match=f"`straight_share` must be .* got {share}"):
        tiny_model(straight_share=share, delta_paint=paint)


def dense_model(**changes: Any) -> MotionPredictorModel:
    """A network with all that a dense prediction wants: mask, spread deltas, the whole way, deviations."""
    torch.manual_seed(0)
    arguments = {
        "in_channels": 10,
        "hidden_channels_spatial": 8,
        "hidden_channels_translator": 16,
        "num_translator_blocks": 2,
        "sample_size": 32,
        "delta_paint": "spread",
        "straight_share": 0.1,
        "flow_unit": "displacement",
        "takes_mask": True,
        "takes_rigid": True,
        "horizons": ("step", "total"),
        "predicts_deviation": True,
    }
    return MotionPredictorModel(**{**arguments, **changes}).eval()


def drag(side: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    handles = torch.tensor([[[0.4, 0.5], [0.6, 0.5]]]) * side
    return torch.rand(1, 3, side, side), handles, handles + torch.tensor([[[0.1, 0.05], [0.1, 0.0]]]) * side


def test_an_untrained_dense_network_answers_with_the_spline_and_a_tenth_of_it():
    model = dense_model()
    image, handles, targets = drag()
    total = model.predict_flow(image, handles, targets, horizon="total")
    spline = spline_flow(handles, targets, 64, 64)
    torch.testing.assert_close(total, spline, atol=0.5, rtol=0)
    torch.testing.assert_close(model.predict_flow(image, handles, targets), total / 10, atol=1e-4, rtol=0)


def test_the_mask_pins_down_what_may_not_change():
    model = dense_model()
    image, handles, targets = drag()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    free = model.predict_flow(image, handles, targets, horizon="total")
    pinned = model.predict_flow(image, handles, targets, mask=mask, horizon="total")
    assert pinned[..., :10, :].norm(dim=1).max() < 0.5 < free[..., 10:16, :].norm(dim=1).max()
    empty = model.predict_flow(image, handles, targets, mask=torch.zeros_like(mask), horizon="total")
    torch.testing.assert_close(empty, free, atol=0.6, rtol=0)


def test_ways_twice_as_long_are_predicted_twice_as_long_but_for_what_the_unit_channel_says():
    model = dense_model(takes_rigid=False, in_channels=8)
    torch.nn.init.normal_(model.decoder.readout.weight, std=0.1)
    with torch.no_grad():  # blind to the length of the unit
        model.encoder.blocks[0].conv.weight[:, -1] = 0
    image, handles, targets = drag()
    single = model.predict(image, handles, targets)
    double = model.predict(image, handles, handles + 2 * (targets - handles))
    for name in ("flow", "total_flow", "deviation", "total_deviation"):
        torch.testing.assert_close(2 * getattr(single, name), getattr(double, name), atol=1e-3, rtol=1e-3)


def test_deviations_are_lengths_in_pixels_of_the_picture():
    model = dense_model()
    image, handles, targets = drag()
    unit = (targets - handles).square().sum(dim=-1).mean().sqrt()
    output = model.predict(image, handles, targets)
    torch.testing.assert_close(output.total_deviation, unit.expand(1, 1, 64, 64), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(output.deviation, (unit / 10).expand(1, 1, 64, 64), atol=1e-3, rtol=1e-3)


def test_a_mask_of_another_size_is_refused():
    image, handles, targets = drag()
    with pytest.raises(ValueError, match=r"`mask` must be of shape \(1, 1, 64, 64\)"):
        dense_model().predict_flow(image, handles, targets, mask=torch.ones(1, 1, 32, 32))


def test_a_network_without_the_whole_way_says_so():
    image, handles, targets = drag()
    with pytest.raises(ValueError, match="`horizon` must be"):
        dense_model(horizons=("step",)).predict_flow(image, handles, targets, horizon="total")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 6}, "`in_channels` must be 10"),
        ({"horizons": ("total",)}, "`horizons` must be"),
        ({"flow_unit": "metre"}, "`flow_unit` must be"),
        ({"delta_paint": "pixel"}, "`straight_share` must be 0 unless"),
        ({"straight_share": 0.0}, "`straight_share` must be above 0 with `takes_rigid`"),
    ],
)
def test_dense_settings_that_do_not_fit_are_refused(changes: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        dense_model(**changes)


def test_a_dense_network_comes_back_from_disk_as_it_was(tmp_path: Path):
    model = dense_model()
    torch.nn.init.normal_(model.decoder.readout.weight, std=0.1)
    model.save_pretrained(tmp_path)
    image, handles, targets = drag()
    again = MotionPredictorModel.from_pretrained(tmp_path)
    assert again.horizons == ("step", "total")
    for name, value in model.predict(image, handles, targets).items():
        torch.testing.assert_close(again.predict(image, handles, targets)[name], value, atol=0, rtol=0)


def test_a_network_may_answer_with_the_rigid_motion_in_place_of_the_spline():
    model = dense_model()
    with torch.no_grad():
        model.decoder.readout.bias.view(2, 4)[:, 2] = 1.0  # u, v, the rigid motion's share, the deviation
    image, handles, targets = drag()
    rigid = linear_flow(fit_rigid, handles, targets, 64, 64)[..., 1:-1, 1:-1]  # resizing repeats the border
    for horizon, share in (("total", 1.0), ("step", 0.1)):
        flow = model.predict_flow(image, handles, targets, horizon=horizon)[..., 1:-1, 1:-1]
        torch.testing.assert_close(flow, share * rigid, atol=0.01, rtol=0.01)


def test_a_step_may_be_a_share_of_the_whole_way():
    model = dense_model(step_share=0.1)
    torch.nn.init.normal_(model.decoder.readout.weight, std=0.1)
    image, handles, targets = drag()
    output = model.predict(image, handles, targets)
    torch.testing.assert_close(output.flow, output.total_flow / 10)
    torch.testing.assert_close(output.deviation, output.total_deviation / 10)
    assert model.horizons == ("step", "total")
    with pytest.raises(ValueError, match="`step_share` must be 0 without the horizon 'total'"):
        dense_model(step_share=0.1, horizons=("step",))


def test_a_network_that_takes_no_mask_is_not_shown_it_by_the_rigid_motion_either():
    model = dense_model(takes_mask=False, in_channels=9)
    with torch.no_grad():
        model.decoder.readout.bias.view(2, 4)[:, 2] = 1.0  # the rigid motion in place of the spline
    image, handles, targets = drag()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    torch.testing.assert_close(
        model.predict_flow(image, handles, targets, mask=mask), model.predict_flow(image, handles, targets)
    )


def test_an_empty_mask_is_none_to_the_network():
    model = dense_model()
    with torch.no_grad():
        model.decoder.readout.bias.view(2, 4)[:, 2] = 1.0
    image, handles, targets = drag()
    empty = model.predict_flow(image, handles, targets, mask=torch.zeros(1, 1, 64, 64))
    torch.testing.assert_close(empty, model.predict_flow(image, handles, targets))
