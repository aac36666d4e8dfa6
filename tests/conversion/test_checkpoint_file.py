"""Files of weights from anywhere: what is read, and what is refused, with its name and the remedy."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.checkpoint_file import check_finite, read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model"])
def test_safetensors_are_read_whatever_the_file_is_called(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name, {"modelspec.title": "x"})
    checkpoint = read_checkpoint(tmp_path / name)
    assert_same(checkpoint.tensors, WEIGHTS)
    assert checkpoint.metadata == {"modelspec.title": "x"}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "around",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 3, "global_step": 7, "state_dict": weights, "optimizer_states": [{"state": {}}]},
        lambda weights: {"model": {"state_dict": weights}, "rng_state": torch.zeros(3)},
        lambda weights: {"model_state_dict": weights, "loss": 0.5},
        lambda weights: {**weights, "epoch": 3},
    ],
)
def test_weights_of_torch_save_are_found_in_what_is_around_them(tmp_path, zipped, around):
    torch.save(around(WEIGHTS), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "model.pth").tensors, WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, zipped):
    trace = tmp_path / "it-ran"
    torch.save(
        {"state_dict": WEIGHTS, "callbacks": RunsCode(trace)},
        tmp_path / "model.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=r"model.ckpt` holds more than tensors \(\S+\).*Use a safetensors file"):
        read_checkpoint(tmp_path / "model.ckpt")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_never_run(tmp_path):
    trace = tmp_path / "it-ran"
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"weight": RunsCode(trace)}))
    with pytest.raises(ValueError, match=r"model.bin` (is damaged or cut short, or not of torch.save|holds more)"):
        read_checkpoint(tmp_path / "model.bin")
    assert not trace.exists()


def test_a_pickle_that_is_called_safetensors_is_refused_with_the_remedy(tmp_path):
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"called safetensors, but is a file of torch.save: rename it to .ckpt"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.ckpt", b"<!DOCTYPE html><html>404</html>", "a web page"),
        ("model.safetensors", b"\n <html><body>please log in</body></html>", "a web page"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a pointer of Git LFS: .*git lfs pull",
        ),
        ("model.ckpt", b"GGUF\x03\x00\x00\x00" + bytes(40), "the quantised format GGUF"),
        ("model.ckpt", b"hello, world, this is a letter", "one that begins with b'hello, world"),
        ("model.safetensors", b"hello, world, this is a letter", "one that begins with b'hello"),
        ("model.ckpt", b"PK\x05\x06" + bytes(18), "a broken or empty zip"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}` must be a file of safetensors or of torch.save, got {message}"):
        read_checkpoint(tmp_path / name)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"model.ckpt` is empty: download it again"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("index.html", "<html>")
    with pytest.raises(ValueError, match=r"model.ckpt` is damaged or cut short, or not of torch.save"):
        read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("share", [0.999, 0.5, 0.1])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kind, share):
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    weights = {"weight": torch.rand(5000)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut short|holds more"):
        read_checkpoint(path)


def test_a_safetensors_header_that_lies_is_refused(tmp_path):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dictionary of tensors, got a list"),
        (torch.ones(2), "got a Tensor"),
        ({"epoch": 3, "lr": 0.1}, r"must hold tensors, got the entries \['epoch', 'lr'\] alone"),
        ({"state_dict": {}}, "must hold tensors"),
    ],
)
def test_a_file_without_weights_by_name_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "model.pt")


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors \(torch.nn.modules.linear.Linear\)"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"model.pt` must hold weights alone, got a program of TorchScript"):
        read_checkpoint(tmp_path / "model.pt")


def test_folders_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="must be a file of weights, got a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file `.*nothing.ckpt`"):
        read_checkpoint(tmp_path / "nothing.ckpt")


def test_weights_that_are_not_finite_are_named():
    overflown = {"good": torch.ones(2), "bad": torch.tensor([1e5]).half(), "count": torch.tensor(3)}
    with pytest.raises(ValueError, match=r"`x.ckpt`: the weight `bad` is not finite in float16"):
        check_finite(overflown, "x.ckpt")
    check_finite({"good": torch.ones(2), "count": torch.tensor(3)}, "x.ckpt")
