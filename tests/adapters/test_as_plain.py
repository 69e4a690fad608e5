"""Adapted modules refuse what plain ones refuse, in every state that a model may be in."""

from __future__ import annotations

import pytest
import torch
from adapted_layers import seeded
from torch import nn
from torch.nn.utils import parametrizations, prune

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear, find_adapters
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError

CONFIG = AdapterConfig(kind="block_lora", rank=4, n_blocks=2, dropout=0.0)
ALL = CONFIG.model_copy(update={"targets": ("q", "k", "v", "o")})


def attention(batch_first: bool = True) -> tuple[nn.Module, nn.Module]:
    """A plain layer, and one of the same weights whose adapters compute W."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    adapted = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    adapted.load_state_dict(plain.state_dict())
    attach(adapted, ALL, seeded(1))
    return plain, adapted


def sequences(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(2))


INTEGERS = [torch.uint8, torch.int32, torch.int64]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_mask_of_integers_is_refused_as_by_plain_attention(dtype, need_weights):
    """A tokenizer's attention_mask says 1 where a token is: added to scores, it bars nothing."""
    x, padding, barred = sequences(2, 5, 16), torch.zeros(2, 5), torch.zeros(5, 5)
    padding[0, 3:], barred[0, 1:] = 1, 1
    for layer in attention():
        for name, mask in (("key_padding_mask", padding), ("attn_mask", barred)):
            given = {name: mask.to(dtype)}
            with pytest.raises((AssertionError, RuntimeError), match=name) as error:
                layer(x, x, x, need_weights=need_weights, **given)
    assert "attention_mask == 0" in str(error.value)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((2, 5, 16), (2, 7, 16), (2, 4, 16)),
        ((2, 5, 16), (2, 4, 16), (2, 7, 16)),
        ((5, 16), (2, 7, 16), (2, 7, 16)),
        ((2, 5, 16), (7, 16), (7, 16)),
        ((1, 5, 16), (3, 7, 16), (3, 7, 16)),
        ((2, 5, 16), (2, 7, 16), (1, 7, 16)),
        ((1, 2, 5, 16),) * 3,
    ],
)
def test_sequences_that_do_not_fit_are_refused_as_by_plain_attention(query, key, value):
    given = [sequences(*shape) for shape in (query, key, value)]
    for layer in attention():
        with pytest.raises((AssertionError, RuntimeError)):
            layer(*given, need_weights=False)
    with pytest.raises(RuntimeError, match=r"do not fit each other.*a value for each key"):
        layer(*given)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shapes", [((5, 16), (7, 16)), ((2, 5, 16), (2, 7, 16))])
def test_sequences_that_fit_are_taken_as_by_plain_attention(shapes, batch_first):
    query, key = (sequences(*shape) for shape in shapes)
    if not batch_first and query.dim() == 3:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    plain, adapted = attention(batch_first)
    for x, w in ((query, key), (query, query)):
        torch.testing.assert_close(adapted(x, w, w)[0], plain(x, w, w)[0])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


class Holding(nn.Module):
    """A model of which one part is compiled."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


@pytest.mark.slow
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_adapters_on_a_compiled_model_are_trained_merged_and_taken_off(whole, ran_before):
    torch.compiler.reset()
    plain, x = encoder(), sequences(2, 3, 16)
    compiled = torch.compile(encoder(), backend="eager")
    model = compiled if whole else Holding(compiled)
    if ran_before:
        model(x)
    adapters = attach(model, CONFIG, seeded(3))
    for adapter in adapters.adapters.values():
        nn.init.normal_(adapter.B, 0, 0.3, generator=seeded(4))
    adapted = model(x)
    adapted.square().mean().backward()
    assert all(p.grad is not None for p in adapters.parameters())
    assert (adapted - plain(x)).abs().max() > 1e-3
    (found,) = find_adapters(model)
    found.merge()
    torch.testing.assert_close(model.eval()(x), adapted)
    found.unmerge()
    torch.testing.assert_close(model(x), adapted)
    adapters.detach()
    torch.testing.assert_close(model(x), plain.eval()(x))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_that_was_there_before_moves_adapters_alone(make):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), sequences(3, 8)
    optimizer = make(model.parameters(), 1e-2)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # so that momentum and decay would go on
    adapters = attach_linear(model, ["0"], CONFIG, seeded(1))
    optimizer.add_param_group({"params": list(adapters.parameters())})
    before = {name: w.clone() for name, w in model.state_dict().items()}
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    moved = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert moved == {"0.adapters.weight.B", "0.adapters.weight.A_s"} & before.keys()
    assert moved


def test_a_model_made_in_inference_mode_is_given_back():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for back in (AdapterSet.detach, AdapterSet.merge_and_unload):
        assert back(attach_linear(model, "*", CONFIG)) is model
        assert all(p.requires_grad for p in model.parameters())
        assert {type(layer) for layer in model} == {nn.Linear}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("other", [nn.LazyLinear(8), nn.LazyBatchNorm1d()])
def test_a_layer_without_a_shape_anywhere_is_refused_before_the_model_changes(other):
    model = nn.Sequential(nn.Linear(8, 8), other)
    with pytest.raises(AdapterError, match=r"1 \(Lazy\w+\) has no shape yet; run one batch"):
        attach_linear(model, ["0"], CONFIG)
    assert model[0].weight.requires_grad
    assert type(model[0]) is nn.Linear
    assert not [key for key in vars(model[0]) if "adapters" in key]


@pytest.mark.filterwarnings("ignore")
def test_sparse_weights_are_refused():
    for kind in ("to_sparse", "to_sparse_csr"):
        model = nn.Sequential(nn.Linear(8, 8))
        model[0].weight = nn.Parameter(getattr(model[0].weight.detach(), kind)())
        with pytest.raises(AdapterError, match=r"weight of 0 \(Linear\) is stored as torch\.sp"):
            attach_linear(model, ["0"], CONFIG)


COMPUTED = {
    "pruned": lambda adapter: prune.l1_unstructured(adapter, "B", amount=0.5),
    "normed": lambda adapter: parametrizations.weight_norm(adapter, "B"),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_adapters_are_not_saved_over_good_ones(how, tmp_path):
    path, model = tmp_path / "a.safetensors", nn.Sequential(nn.Linear(8, 8))
    adapters = attach_linear(model, "0", CONFIG, seeded(1))
    adapters.save(path)
    good, drawn = path.read_bytes(), torch.get_rng_state()
    COMPUTED[how](adapters.adapters["0.weight"])
    with pytest.raises(AdapterError, match=r"0\.weight has .*B.*computed.*make them plain"):
        adapters.save(path)
    assert path.read_bytes() == good
    assert torch.equal(torch.get_rng_state(), drawn)
    AdapterSet.load(path, nn.Sequential(nn.Linear(8, 8)))


class Block(nn.Module):
    """A block whose attention has linear layers of these names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.attn = nn.Module()
        for name in names:
            self.attn.add_module(name, nn.Linear(8, 8 * len(name)))


def stack(*names: tuple[str, ...]) -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList(Block(*held) for held in names)
    return model


def test_attention_that_is_known_in_some_blocks_alone_is_refused():
    """As in ConViT, whose first blocks name their layers otherwise: depths would be others."""
    model = stack(("qk", "v", "proj"), ("qk", "v", "proj"), ("qkv", "proj"))
    with pytest.raises(
        AdapterError, match=r"blocks\.0\.attn, blocks\.1\.attn .*no adapters.*qk, v, proj"
    ):
        attach(model, CONFIG)
    assert len(attach(stack(*[("q", "k", "v")] * 2), CONFIG).adapters) == 6


def test_a_target_that_no_layer_computes_is_refused():
    model = stack(*[("query", "key", "value", "mix")] * 2)
    with pytest.raises(AdapterError, match=r"targets name o.*beside blocks\.\*\.attn\.query"):
        attach(model, ALL)
    dense = stack(*[("query", "key", "value", "dense")] * 2)  # as ALBERT has it
    assert len(attach(dense, ALL).adapters) == 8
