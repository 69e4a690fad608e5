"""The table of architectures: its record, and that it would see what goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from blocklora_lib.adapters.attention import AdaptedLinear
from blocklora_lib.cli.app import app
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.display.architectures import architectures
from blocklora_lib.measure import architectures as measured
from blocklora_lib.measure.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}
QUICK = ["EVA01", "timm Swin", "ConvNeXt"]


@pytest.fixture(scope="module")
def quick():
    return measured.architecture_table([BY_NAME[name] for name in QUICK])


def test_families_are_open_clips_smallest_configs():
    assert len(BY_NAME) == len(FAMILIES) >= 10
    assert {family.config for family in FAMILIES} <= set(open_clip.list_models())
    asked = "ViT ResNet ConvNeXt SigLIP CoCa EVA MobileCLIP NLLB xlm-roberta timm".split()
    for name in asked:
        assert any(family.startswith(name) for family in BY_NAME), name


def test_every_model_that_open_clip_lists_has_its_kind_among_them():
    """Its image tower's trunk, and its text tower's model."""

    def kinds(name):
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        own = "ResNet" if isinstance(vision.get("layers"), list) else "ViT"
        trunk = re.split(r"[_\d]", vision.get("timm_model_name") or own)[0]
        words = (text.get("hf_model_name") or "open_clip's").split("/")[-1].split("-")[0]
        return {f"trunk {trunk}", f"text {words}"}

    files = Path(open_clip.__file__).parent.glob("model_configs/*.json")  # its own, not tests'
    shown = set().union(*(kinds(family.config) for family in FAMILIES))
    assert set().union(*(kinds(file.stem) for file in files)) == shown
    assert {"trunk ResNet", "trunk ViT", "trunk convnext", "text mt5"} <= shown


def test_the_record_is_of_all_families_and_all_is_right_in_it():
    frame = measured.read_record()
    assert set(frame["family"]) == set(BY_NAME)
    assert len(frame) == 2 * len(BY_NAME)
    assert frame.loc[~frame["right"].eq(True), "family"].tolist() == []
    for sentence in frame.loc[frame["how"] != "attach", "refusal"]:
        assert "\n" not in sentence
        assert sentence.endswith("with attach_linear")
    assert {"open_clip_torch", "timm", "transformers"} <= set(frame.attrs["packages"])


def test_the_record_says_what_is_computed_now(quick):
    kept = measured.read_record().set_index(["family", "tower"])
    assert len(quick) == 2 * len(QUICK)
    for row in quick.to_dict("records"):
        assert row["right"]
        told = kept.loc[(row["family"], row["tower"])]
        for column in ("config", "how", "where", "adapters", "gradients", "moved", "refusal"):
            assert row[column] == told[column], (row["family"], column)


def test_fused_layers_whose_weight_is_read_are_adapted(quick):
    swin = quick[(quick["family"] == "timm Swin") & (quick["tower"] == "vision")].iloc[0]
    assert "attn.qkv" in swin["where"]
    assert swin["changed"] > 1e-3


@pytest.mark.parametrize("broken", ["a wrong update", "a layer without a gradient"])
def test_what_goes_wrong_is_seen(broken, monkeypatch):
    forward = AdaptedLinear.forward

    def wrong(self, x):
        right = forward(self, x)
        if broken == "a layer without a gradient":
            return right.detach() if self.attached.name.endswith("0.attn.q_proj") else right
        base = nn.functional.linear(x, self._parameters["weight"], self.bias)
        return base + 1.001 * (right - base)

    monkeypatch.setattr(AdaptedLinear, "forward", wrong)
    assert measured.examine(BY_NAME["EVA02"], "vision")["right"] is False


def test_adapters_that_do_nothing_are_an_error_in_training(monkeypatch):
    def passes_by(self, x):
        return nn.functional.linear(x, self._parameters["weight"], self.bias)

    monkeypatch.setattr(AdaptedLinear, "forward", passes_by)
    with pytest.raises(AdapterError, match="reached none of its adapted layers"):
        measured.examine(BY_NAME["EVA02"], "vision")


def test_the_table_shows_all_rows(quick):
    table = architectures(quick)
    assert table.shown["with gradient, moved by a step"].tolist()[0] == "4, 4 of 4"
    assert set(table.shown["all right"]) == {"yes"}
    refused = {**dict.fromkeys(quick.columns), "family": "none", "how": "refused"}
    refused |= dict(refusal="why not", right=None, config="x", tower="vision")
    whole = architectures(pd.concat([quick, pd.DataFrame([refused])], ignore_index=True)).shown
    last = whole.iloc[-1]
    assert (last["all right"], last["with gradient, moved by a step"]) == ("no", "–")
    assert last["why attach refuses"] == "why not"


def test_the_command_writes_the_record(monkeypatch, tmp_path, quick):
    def table(on_row):
        for row in quick.to_dict("records"):
            on_row(row)
        return quick

    monkeypatch.setattr(measured, "architecture_table", table)
    done = CliRunner().invoke(app, ["architectures", "--record", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    assert "EVA01, vision tower: right; 4 adapters by attach" in done.output
    kept = measured.read_record(tmp_path / "r.json")
    assert kept["merged"].tolist() == pytest.approx(quick["merged"].tolist(), rel=1e-9)
    assert kept["where"].tolist() == quick["where"].tolist()
    assert kept.attrs["packages"]["torch"] == torch.__version__.partition("+")[0]
