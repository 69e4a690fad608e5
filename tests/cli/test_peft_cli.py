"""`blocklora peft`: an adapter file to a PEFT checkpoint and back, and what is refused."""

from __future__ import annotations

import torch
from torch import nn
from typer.testing import CliRunner

from blocklora_lib.adapters.attach import AdapterSet, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.cli.app import app


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def blocklora(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["peft", *map(str, words)])
    return done.exit_code, done.output


def test_out_and_in_again(tmp_path):
    adapters = attach_linear(model(), "*", AdapterConfig(rank=4, n_blocks=2))
    for adapter in adapters.adapters.values():
        nn.init.normal_(adapter.B)
    first, folder, second = tmp_path / "a.safetensors", tmp_path / "p", tmp_path / "b.safetensors"
    adapters.save(first)
    assert blocklora("export", first, folder) == (0, f"{folder}\n")
    assert blocklora("import", folder, second) == (0, f"{second}\n")
    x = torch.randn(3, 8)
    found, expected = AdapterSet.load(second, model()).model.eval()(x), adapters.model.eval()(x)
    # float32, sums of at most 16 terms
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_what_is_wrong_is_one_sentence(tmp_path):
    for words in (("export", tmp_path / "no", tmp_path / "p"), ("import", tmp_path, "b")):
        code, told = blocklora(*words)
        assert code == 2
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    assert not (tmp_path / "p").exists()
