"""LoRAs of other programs, in their layouts: the UNet must compute what the old layers did, W x + s B A x."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from conversion.foreign_lora import convert_identity_lora, load_foreign_lora
from dynadrag_pipeline.identity_lora import IdentityLora, attached_identity_lora
from support.lora_layouts import LAYOUTS, PROJECTIONS, Matrices, attention, in_layout, random_matrices
from support.tiny_models import make_unet

HANDLES, TARGETS = [(40, 40), (20, 50)], [(50, 40), (15, 45)]


@torch.no_grad()
def output(unet: nn.Module) -> torch.Tensor:
    """In double precision: a random network makes much of how float32 rounds a sum of products."""
    generator = torch.Generator().manual_seed(0)
    latents, prompt = (torch.randn(shape, generator=generator).double() for shape in ((1, 4, 16, 16), (1, 7, 16)))
    return unet.double()(latents, 501, prompt).sample


def old_output(matrices: Matrices, scales: dict[str, float] | float = 1.0) -> torch.Tensor:
    """What the layers of the old program gave: W x + s up(down(x)), for the layers that have matrices."""
    unet = make_unet()
    for name, (down, up) in matrices.items():
        scale = scales if isinstance(scales, (int, float)) else scales[name]

        def add(module, inputs, result, down=down, up=up, scale=scale):
            return result + scale * (inputs[0] @ down.T.double() @ up.T.double())

        attention(unet)[name].register_forward_hook(add)
    return output(unet)


def new_output(lora: IdentityLora) -> torch.Tensor:
    unet = make_unet().double()
    with attached_identity_lora(unet, lora):
        return output(unet)


def saved(folder: Path, weights: dict[str, torch.Tensor], name: str = "pytorch_lora_weights.bin", **metadata) -> Path:
    if name.endswith(".safetensors"):
        save_file(weights, folder / name, {key: json.dumps(value) for key, value in metadata.items()})
    else:
        torch.save(weights, folder / name)
    return folder / name


# The same output.


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_unet_computes_what_it_did(tmp_path, layout, name):
    matrices = random_matrices(make_unet())
    convert_identity_lora(saved(tmp_path, in_layout(layout, matrices), name), tmp_path / "out")
    lora = IdentityLora.load(tmp_path / "out")
    assert (lora.rank, lora.alpha) == (4, 4)
    expected = old_output(matrices)
    assert (expected - output(make_unet())).abs().max() > 1e-2
    torch.testing.assert_close(new_output(lora), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_alpha_and_rank_are_kept(tmp_path, layout):
    matrices = random_matrices(make_unet(), rank=6)
    convert_identity_lora(saved(tmp_path, in_layout(layout, matrices, alpha=2.5)), tmp_path / "out")
    lora = IdentityLora.load(tmp_path / "out")
    assert (lora.rank, lora.alpha) == (6, 2.5)
    torch.testing.assert_close(new_output(lora), old_output(matrices, 2.5 / 6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "scale"),
    [({"r": 4, "lora_alpha": 10}, 2.5), ({"r": 4, "lora_alpha": 10, "use_rslora": True}, 5.0)],
)
def test_pefts_settings_in_the_header_are_followed(tmp_path, config, scale):
    matrices = random_matrices(make_unet())
    settings = {f"unet.{name}": value for name, value in config.items()}
    path = saved(
        tmp_path, in_layout("peft", matrices), "pytorch_lora_weights.safetensors", lora_adapter_metadata=settings
    )
    lora = load_foreign_lora(path)
    assert lora.alpha == 4 * scale
    torch.testing.assert_close(new_output(lora), old_output(matrices, scale), rtol=1e-5, atol=1e-5)


def test_a_folder_that_peft_itself_saved_gives_the_same_output(tmp_path):
    torch.manual_seed(0)
    wrapped = get_peft_model(
        make_unet(),
        LoraConfig(
            r=3, lora_alpha=6, target_modules=list(PROJECTIONS), init_lora_weights=False, alpha_pattern={"to_k": 1}
        ),
    ).eval()
    expected = output(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    lora = load_foreign_lora(tmp_path / "adapter")
    torch.testing.assert_close(new_output(lora), expected, rtol=1e-5, atol=1e-5)


def test_what_load_lora_weights_of_diffusers_makes_of_the_file_is_the_same(tmp_path, pipe):
    matrices = random_matrices(make_unet())
    path = saved(tmp_path, in_layout("kohya", matrices, alpha=2.0), "kohya.safetensors")
    pipe.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    torch.testing.assert_close(new_output(load_foreign_lora(path)), output(pipe.unet), rtol=1e-5, atol=1e-5)


def test_ranks_and_alphas_that_differ_are_made_one_that_computes_the_same(tmp_path):
    unet = make_unet()
    small, large = random_matrices(unet, rank=2), random_matrices(unet, rank=5)
    mixed = {name: (small if ".attn1." in name else large)[name] for name in small}
    alphas = {name: 1.0 if name.endswith("to_v") else 4.0 for name in mixed}
    weights = in_layout("diffusers", mixed) | {f"unet.{name}.alpha": torch.tensor(a) for name, a in alphas.items()}
    lora = load_foreign_lora(saved(tmp_path, weights))
    assert (lora.rank, lora.alpha) == (5, 5)
    scales = {name: alphas[name] / len(down) for name, (down, _) in mixed.items()}
    torch.testing.assert_close(new_output(lora), old_output(mixed, scales), rtol=1e-5, atol=1e-5)


def test_half_precision_becomes_single(tmp_path):
    matrices = {name: (down.half(), up.half()) for name, (down, up) in random_matrices(make_unet()).items()}
    lora = load_foreign_lora(saved(tmp_path, in_layout("DragDiffusion", matrices)))
    assert {value.dtype for value in lora.state_dict.values()} == {torch.float32}
    single = {name: (down.float(), up.float()) for name, (down, up) in matrices.items()}
    torch.testing.assert_close(new_output(lora), old_output(single), rtol=1e-5, atol=1e-5)


# With the model that it is for.


def test_layers_that_it_leaves_alone_are_filled_with_zeros(tmp_path, base):
    matrices = {name: value for name, value in random_matrices(make_unet()).items() if ".attn1." in name}
    path = saved(tmp_path, in_layout("DragDiffusion", matrices))
    with pytest.raises(ValueError, match=r"leaves 16 attention layers alone, such as \S+attn2.to_k.*pass `base`"):
        load_foreign_lora(path)
    lora = load_foreign_lora(path, base)
    torch.testing.assert_close(new_output(lora), old_output(matrices), rtol=1e-5, atol=1e-5)


def test_it_is_checked_to_fit_its_model(tmp_path, base):
    matrices = random_matrices(make_unet())
    assert load_foreign_lora(saved(tmp_path, in_layout("kohya", matrices)), base).rank == 4
    wide = {name: (torch.rand(4, 48), torch.rand(48, 4)) for name in matrices}
    with pytest.raises(ValueError, match=r"must fit the UNet of .*base`: `\S+` must be \[16, 16\], got \[48, 48\]"):
        load_foreign_lora(saved(tmp_path, in_layout("kohya", wide)), base)
    deeper = {name.replace("down_blocks.0", "down_blocks.2"): value for name, value in matrices.items()}
    with pytest.raises(ValueError, match=r"`down_blocks\.2\S+` must not be there, got \[16, 16\]"):
        load_foreign_lora(saved(tmp_path, in_layout("kohya", deeper)), base)


def test_a_base_that_is_no_model_is_named(tmp_path):
    path = saved(tmp_path, in_layout("kohya", random_matrices(make_unet())))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty"):
        load_foreign_lora(path, tmp_path / "empty")


# In the pipeline, and bound to a picture.


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    from dynadrag_pipeline import session

    fits: list[object] = []
    fit = session.fit_identity_lora
    monkeypatch.setattr(session, "fit_identity_lora", lambda *a, **k: fits.append(a) or fit(*a, **k))
    return fits


def as_file(picture: torch.Tensor, path: Path) -> Image.Image:
    Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(path)
    return Image.open(path)


def test_without_a_picture_it_is_used_for_every_picture(tmp_path, pipe, quick, picture, monkeypatch):
    convert_identity_lora(saved(tmp_path, in_layout("kohya", random_matrices(make_unet()))), tmp_path / "out")
    assert IdentityLora.load(tmp_path / "out").picture is None
    fits = count_fits(monkeypatch)
    plain = pipe(picture, HANDLES, TARGETS, output_type="pt", **(quick | {"identity_lora_steps": 0})).images
    pipe.load_identity_lora(tmp_path / "out")
    edited = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    pipe(picture.flip(-1), HANDLES, TARGETS, **quick)
    assert not fits
    assert (edited - plain).abs().max() > 1e-3


@pytest.mark.parametrize("resolution", [None, 72])
@pytest.mark.parametrize("with_base", [True, False])
def test_with_a_picture_it_is_used_for_that_picture_alone(
    tmp_path, pipe, base, quick, picture, monkeypatch, caplog, resolution, with_base
):
    if not with_base and resolution is None:
        monkeypatch.setattr("conversion.foreign_lora.STABLE_DIFFUSION_1", (64, 4))  # the tiny pipeline's
    elif not with_base:
        monkeypatch.setattr("conversion.foreign_lora.STABLE_DIFFUSION_1", (512, 4))
    image = as_file(picture, tmp_path / "picture.png")
    convert_identity_lora(
        saved(tmp_path, in_layout("DragDiffusion", random_matrices(make_unet()))),
        tmp_path / "out",
        image=tmp_path / "picture.png",
        base=base if with_base else None,
        processing_resolution=resolution,
    )
    call = quick if resolution is None else quick | {"processing_resolution": resolution}
    fits = count_fits(monkeypatch)
    pipe.load_identity_lora(tmp_path / "out")
    pipe(image, HANDLES, TARGETS, **call)
    assert not fits
    assert "another picture" not in caplog.text
    pipe(picture.flip(-1), HANDLES, TARGETS, **call)
    assert len(fits) == 1
    assert "another picture" in caplog.text


def test_a_resolution_without_a_picture_is_refused(tmp_path):
    path = saved(tmp_path, in_layout("kohya", random_matrices(make_unet())))
    with pytest.raises(ValueError, match="`processing_resolution` must be left out without an `image`, got 768"):
        convert_identity_lora(path, tmp_path / "out", processing_resolution=768)


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_an_image_that_is_none_is_refused_and_nothing_is_left(tmp_path, content):
    path = saved(tmp_path, in_layout("kohya", random_matrices(make_unet())))
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"`image` must be a readable picture, got '.*picture.png': "):
        convert_identity_lora(path, tmp_path / "out", image=tmp_path / "picture.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["picture.png", "pytorch_lora_weights.bin"]


# What is refused.


def test_layers_besides_the_attention_are_refused(tmp_path):
    weights = in_layout("kohya", random_matrices(make_unet()))
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"
    weights |= {f"{name}.lora_down.weight": torch.ones(4, 16), f"{name}.lora_up.weight": torch.ones(128, 4)}
    with pytest.raises(
        ValueError, match=r"change the UNet's attention alone, got 1 other layers, such as down_blocks\.0\S+ff"
    ):
        load_foreign_lora(saved(tmp_path, weights))


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_a_text_encoders_lora_is_refused(tmp_path, name):
    weights = in_layout("kohya" if name.startswith("lora") else "peft", random_matrices(make_unet()))
    with pytest.raises(ValueError, match=r"attention alone, got 1 weights of the text encoder, such as "):
        load_foreign_lora(saved(tmp_path, {**weights, name: torch.ones(4, 4)}))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "LoCon"),
        ("diff", "full"),
    ],
)
def test_adapters_of_other_formulas_are_refused_by_name(tmp_path, suffix, kind):
    weights = in_layout("kohya", random_matrices(make_unet()))
    stem = next(iter(weights)).split(".")[0]
    with pytest.raises(
        ValueError, match=f"must be a LoRA of two matrices for each layer, got an adapter of the kind {kind}"
    ):
        load_foreign_lora(saved(tmp_path, {**weights, f"{stem}.{suffix}": torch.ones(4)}))


def test_pefts_dora_is_refused(tmp_path):
    weights = in_layout("peft", random_matrices(make_unet()))
    path = saved(tmp_path, weights, "x.safetensors", lora_adapter_metadata={"unet.r": 4, "unet.use_dora": True})
    with pytest.raises(ValueError, match="DoRA"):
        load_foreign_lora(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, n: w.pop(f"unet.{n}.lora_B.weight"), r"matrices of the shapes .*, got \[\[4, 16\], None\]"),
        (lambda w, n: w.update({f"unet.{n}.lora_B.weight": torch.ones(16, 5)}), r"\[\[4, 16\], \[16, 5\]\]"),
        (
            lambda w, n: w.update({f"unet.{n}.weight": torch.ones(16, 5)}),
            "must be one LoRA of a UNet, in a layout that is known, got ",
        ),
        (lambda w, n: w.update({f"unet.{n}.lora_A.other.weight": torch.ones(4, 16)}), "must be one LoRA"),
        (lambda w, n: w.update({f"unet.{n}.lora_A.weight": torch.full((4, 16), torch.inf)}), "is not finite"),
        (lambda w, n: w.update({f"unet.{n}_lora.alpha": torch.tensor(4.0)}), "has an alpha for `.*, but no matrices"),
        (lambda w, n: w.clear() or w.update({"betas": torch.ones(3)}), "must be one LoRA of a UNet.* betas"),
    ],
)
def test_a_file_that_is_no_whole_lora_is_refused_and_leaves_nothing(tmp_path, change, message):
    matrices = random_matrices(make_unet())
    weights = in_layout("peft", matrices)
    change(weights, next(iter(matrices)))
    with pytest.raises(ValueError, match=rf"pytorch_lora_weights.bin`.*{message}"):
        convert_identity_lora(saved(tmp_path, weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["lora_up.weight", "lora_down.weight"])
def test_a_matrix_that_is_missing_in_kohyas_names_is_named(tmp_path, suffix):
    weights = in_layout("kohya", random_matrices(make_unet()), alpha=2.0)
    stem = next(iter(weights)).split(".")[0]
    del weights[f"{stem}.{suffix}"]
    with pytest.raises(ValueError, match=rf"bin` is no whole LoRA in kohya's names: [^$]*{stem}"):
        load_foreign_lora(saved(tmp_path, weights))


def test_settings_that_are_not_json_are_refused(tmp_path):
    weights = in_layout("peft", random_matrices(make_unet()))
    save_file(weights, tmp_path / "x.safetensors", {"lora_adapter_metadata": "{r: 4"})
    with pytest.raises(ValueError, match=r"x.safetensors` has settings that are not JSON"):
        load_foreign_lora(tmp_path / "x.safetensors")


def test_a_folder_must_leave_no_doubt(tmp_path):
    with pytest.raises(ValueError, match=r"must hold one of pytorch_lora_weights.safetensors, .*, got none"):
        load_foreign_lora(tmp_path)
    weights = in_layout("kohya", random_matrices(make_unet()))
    saved(tmp_path, weights, "pytorch_lora_weights.bin")
    assert load_foreign_lora(tmp_path).rank == 4
    saved(tmp_path, weights, "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match=r"got pytorch_lora_weights.safetensors and pytorch_lora_weights.bin"):
        load_foreign_lora(tmp_path)


def test_our_own_file_comes_out_as_it_went_in(tmp_path):
    own = {}
    for name, (down, up) in random_matrices(make_unet()).items():
        own |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    IdentityLora(own, 4, 8, "0123abc").save(tmp_path / "own")
    convert_identity_lora(tmp_path / "own", tmp_path / "out")
    converted = IdentityLora.load(tmp_path / "out")
    assert (converted.rank, converted.alpha, converted.picture) == (4, 8, "0123abc")
    assert converted.state_dict.keys() == own.keys()
    assert all(torch.equal(converted.state_dict[name], value) for name, value in own.items())
