"""Models that peft names or replaces otherwise than we do: what goes out, comes in, is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_layers import linear, moved, seeded
from torch import nn

from blocklora_lib import AdapterConfig, AdapterSet, attach, attach_linear
from blocklora_lib.adapters.formats.peft_export import export_peft, export_peft_file
from blocklora_lib.adapters.formats.peft_import import import_peft, import_peft_file
from blocklora_lib.core.schema import AdapterError

peft = pytest.importorskip("peft")

C = AdapterConfig(rank=4, n_blocks=2, dropout=0.0)
CLOSE = dict(rtol=1e-6, atol=1e-6)  # float32, sums of at most 8 terms
E = 6


def stock(folder, model: nn.Module) -> nn.Module:
    """What stock peft makes of a folder."""
    return peft.PeftModel.from_pretrained(model, folder).base_model.model


# a fused kernel


@pytest.mark.parametrize("name", ["self_attn", "linear1"])
def test_of_a_fused_kernel_that_passes_peft_by_is_warned(name, tmp_path, recwarn):
    torch.manual_seed(0)
    base = nn.TransformerEncoderLayer(E, 2, E, batch_first=True).eval()
    model, x = copy.deepcopy(base), torch.randn(2, 3, E)
    adapters = moved(attach(model, C) if name == "self_attn" else attach_linear(model, name, C))
    with pytest.warns(UserWarning, match=r"fused kernel .*set_fastpath_enabled\(False\)"):
        export_peft(adapters, tmp_path)
    found, expected = stock(tmp_path, copy.deepcopy(base)).eval(), model.eval()(x)
    torch.testing.assert_close(found(x), base(x), **CLOSE)  # as if there were no adapters
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.testing.assert_close(found(x), expected, **CLOSE)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    recwarn.clear()
    export_peft(moved(attach(nn.TransformerEncoderLayer(E, 2, E), C)), tmp_path)
    assert not recwarn


# a module at two places


class Twice(nn.Module):
    """One module that two places hold: directly, or within a block that they hold (shared)."""

    def __init__(self, kind: str, shared: bool = False) -> None:
        super().__init__()
        self.kind = kind
        torch.manual_seed(0)
        own = nn.Linear(E, E) if kind == "linear" else nn.MultiheadAttention(E, 2, batch_first=True)
        self.a = nn.Sequential(own) if shared else own
        self.b = self.a
        if kind == "out_proj":
            self.a, self.b = own, own.out_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = {"linear": (), "attention": ("a", "b"), "out_proj": ("a",)}[self.kind]
        for name in ("a", "b"):
            place = getattr(self, name)
            inner = place[0] if isinstance(place, nn.Sequential) else place
            x = torch.tanh(inner(x, x, x)[0] if name in attention else inner(x))
        return x


def adapted_twice(kind: str, shared: bool = False) -> AdapterSet:
    settings = C.model_copy(update={"targets": ("q", "v", "o")})
    if kind == "linear":
        return moved(attach_linear(Twice(kind, shared), "a.0" if shared else "a", settings))
    return moved(attach(Twice(kind, shared), settings))


@pytest.mark.parametrize("kind", ["linear", "attention", "out_proj"])
def test_what_two_places_hold_is_not_exported(kind, tmp_path):
    """peft replaces what it adapts at the first name, and the second stays as it was."""
    with pytest.raises(AdapterError, match=r"two places of the model hold a.*merge instead"):
        export_peft(adapted_twice(kind), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_out_proj_at_two_places_goes_out_where_it_is_not_adapted(tmp_path):
    adapters = moved(attach(Twice("out_proj"), C))
    export_peft(adapters, tmp_path)
    x = torch.randn(2, 3, E)
    torch.testing.assert_close(stock(tmp_path, Twice("out_proj"))(x), adapters.model(x), **CLOSE)


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_a_block_at_two_places_holds_its_module_once(kind, tmp_path):
    adapters = adapted_twice(kind, shared=True)
    x, plain = torch.randn(2, 3, E), Twice(kind, shared=True)
    export_peft(adapters, tmp_path)
    assert (adapters.model(x) - plain(x)).abs().max() > 0.01
    torch.testing.assert_close(
        stock(tmp_path, Twice(kind, shared=True))(x), adapters.model(x), **CLOSE
    )
    torch.testing.assert_close(import_peft(tmp_path, plain).model(x), adapters.model(x), **CLOSE)


@pytest.mark.parametrize("kind", ["linear", "attention", "out_proj"])
def test_what_peft_trained_at_one_of_two_places_is_not_imported(kind, tmp_path):
    settings = peft.LoraConfig(r=2, target_modules=["a"])
    wrapped = peft.get_peft_model(Twice(kind), settings)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=seeded())
    wrapped.save_pretrained(tmp_path)
    model = Twice(kind)
    with pytest.raises(AdapterError, match=r"two places of the model hold a.*merge by peft"):
        import_peft(tmp_path, model)
    import_peft_file(tmp_path, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"two places of the model hold a.*merge by peft"):
        AdapterSet.load(tmp_path / "a.safetensors", model)
    own = adapted_twice(kind)
    own.save(tmp_path / "own.safetensors")  # of ours both places were adapted
    x = torch.randn(2, 3, E)
    loaded = AdapterSet.load(tmp_path / "own.safetensors", model)
    assert torch.equal(loaded.model(x), own.model(x))


# depths of attention


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(E, 2, 8, 0.0, batch_first=True)


class Transformer(nn.Module):
    """Encoder and decoder, which number their layers each for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(E, 2, 2, 2, 8, 0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x, x)


class Towers(nn.Module):
    """Two towers of unlike depths."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(layer(), layer())
        self.text = nn.Sequential(*(layer() for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) + self.text(x)


MODELS = {
    "among others": lambda: nn.Sequential(nn.Identity(), layer(), nn.ReLU(), layer()),
    "encoder and decoder": Transformer,
    "towers": Towers,
    "in a row": lambda: nn.Sequential(layer(), layer(), layer()),
}
DEPTHS = [
    ("among others", dict(), dict(layers="all")),
    ("among others", dict(layers=(-1,)), dict(layers=(1,))),
    ("encoder and decoder", dict(layers=(2, 3)), dict(layers=(2, 3))),
    ("encoder and decoder", dict(layers=(1, -1)), dict(layers=(1, 3))),
    ("towers", dict(), dict(layers="all", towers=("vision", "text"))),
    ("towers", dict(layers=(1,)), dict(layers=(1,), towers=("vision", "text"))),
    ("towers", dict(layers=(-1,)), dict(layers=(-1,), towers=("vision", "text"))),
    # the first layer of each tower and the last: both of one, and not the middle of the other
    ("towers", dict(layers=(0, -1)), dict(layers=(-1, 0), towers=("vision", "text"))),
    ("towers", dict(towers=("text",)), dict(layers="all", towers=("text",))),
    ("towers", dict(towers=("text",), layers=(2,)), dict(layers=(2,), towers=("text",))),
    ("in a row", dict(layers=(1,)), dict(layers=(1,), towers=("vision", "text"))),
]


@pytest.mark.parametrize(("of", "chosen", "expected"), DEPTHS)
def test_layers_are_those_of_the_model_however_it_names_them(of, chosen, expected, tmp_path):
    torch.manual_seed(0)
    model = MODELS[of]().eval()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, E)
    adapters = moved(attach(model, C.model_copy(update=chosen)))
    export_peft(adapters, tmp_path)
    back = import_peft(tmp_path, plain)
    assert {name: getattr(back.config, name) for name in expected} == expected
    assert dict(back.sites).keys() == dict(adapters.sites).keys()
    torch.testing.assert_close(back.model(x), model(x), **CLOSE)


def test_layers_of_attention_and_of_linear_layers_beside_it(tmp_path):
    """One `attach` of both, as a model that holds both has it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(E, E) for _ in "qkv")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.q_proj(x) + self.k_proj(x) * self.v_proj(x))

    def mixed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(layer(), layer()), nn.Sequential(Block(), Block()))

    model = mixed().eval()
    adapters = moved(attach(model, C.model_copy(update={"layers": (1, 2)})))
    export_peft(adapters, tmp_path)
    back = import_peft(tmp_path, mixed().eval())
    assert {type(module).__name__ for _, module in back.sites} == {
        "AdaptedLinear",
        "AdaptedMultiheadAttention",
    }
    assert back.config.layers == (1, 2)
    x = torch.randn(2, 3, E)
    torch.testing.assert_close(back.model(x), model(x), **CLOSE)


# what is written for peft


class Names(nn.Module):
    """A linear layer and attention, whose name ends like the linear layer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.Linear(E, E)
        inner = nn.MultiheadAttention(E, 2, batch_first=True)
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": inner})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.attn(x))
        return self.blocks[0]["attn"](x, x, x)[0]


def test_a_rank_is_that_of_its_name_and_of_no_longer_one(tmp_path):
    """Attention's pair is as wide as q, k and v together, the linear layer's as one of them."""
    wrapped = peft.get_peft_model(Names(), peft.LoraConfig(r=2, target_modules=["attn"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name and "out_proj" not in name:
            nn.init.normal_(parameter, generator=seeded())
    x = torch.randn(2, 3, E)
    expected = wrapped.base_model.model(x)
    wrapped.save_pretrained(tmp_path / "theirs")
    adapters = import_peft(tmp_path / "theirs", Names())
    torch.testing.assert_close(adapters.model(x), expected, **CLOSE)
    export_peft(adapters, tmp_path / "ours")
    torch.testing.assert_close(stock(tmp_path / "ours", Names())(x), expected, **CLOSE)
    export_peft(import_peft(tmp_path / "ours", Names()), tmp_path / "again")
    torch.testing.assert_close(stock(tmp_path / "again", Names())(x), expected, **CLOSE)


def test_adapters_that_are_off_go_out_as_they_were(tmp_path):
    for name, adapters in (
        ("linear", attach_linear(linear(E, 4, E), "*", C)),
        ("attention", attach(nn.Sequential(layer()), C)),
    ):
        export_peft(moved(adapters), tmp_path / name / "on")
        adapters.detach()
        export_peft(adapters, tmp_path / name / "off")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            on, off = ((tmp_path / name / state / file).read_bytes() for state in ("on", "off"))
            assert on == off


# what is written over


def test_neither_way_destroys_what_it_reads_or_what_was_trained(tmp_path):
    adapters, ours = moved(attach_linear(linear(E, E), "0", C)), tmp_path / "ours.safetensors"
    adapters.save(ours)
    folder = export_peft(adapters, tmp_path / "peft")
    weights = folder / "adapter_model.safetensors"
    kept = {path: path.read_bytes() for path in (ours, weights)}
    for place in kept:  # the checkpoint itself, and an adapter that was trained
        with pytest.raises(ValueError, match=r"no adapter that was imported .* not written over"):
            import_peft_file(folder, place)
    beside = tmp_path / "adapter_model.safetensors"
    beside.write_bytes(kept[ours])
    with pytest.raises(ValueError, match=r"no PEFT checkpoint .* not written over"):
        export_peft_file(beside, tmp_path)
    assert beside.read_bytes() == kept[ours]
    assert {path: path.read_bytes() for path in kept} == kept
    for _ in range(2):  # again is no fault
        import_peft_file(folder, tmp_path / "new.safetensors")
        export_peft(adapters, folder)
