"""No silent nothing: every layer of others' models is adapted rightly, or refused in a sentence."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from adapted_layers import seeded
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError

CONFIG = AdapterConfig(kind="block_lora", rank=2, n_blocks=2, dropout=0.0)
TEXT = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
VISION = dict(image_size=32, patch_size=16, width=16, layers=1, head_width=8)


def pictures(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=seeded(1))


def clip_outputs(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(1, 50, (2, 8), generator=seeded(2))
    size = model.visual.image_size
    images = pictures(size if isinstance(size, int) else size[0])
    if isinstance(model, CoCa):
        return torch.cat([v.flatten() for k, v in sorted(model(images, tokens).items()) if v.dim()])
    return torch.cat([model.encode_image(images).flatten(), model.encode_text(tokens).flatten()])


def classifier_outputs(size: int):
    return lambda model: model(pictures(size))


def timm_model(name: str, **changes):
    import timm

    return timm.create_model(name, num_classes=3, **changes)


def swin(block: str):
    from torchvision.models import swin_transformer as s

    blocks = {
        "v1": (s.SwinTransformerBlock, s.PatchMerging),
        "v2": (s.SwinTransformerBlockV2, s.PatchMergingV2),
    }
    kind, merging = blocks[block]
    return s.SwinTransformer(
        [4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=3, block=kind, downsample_layer=merging,
        stochastic_depth_prob=0.0,
    )  # fmt: skip


def vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=3)


def timm_tower(name: str, text: dict, **tower):
    """open_clip's EVA02 and SigLIP: a small tower of timm's beside open_clip's text."""

    def build():
        import timm

        create, small = timm.create_model, dict(img_size=32, embed_dim=16, depth=1, num_heads=2)
        cfg = dict(timm_model_name=name, timm_model_pretrained=False, image_size=32, **tower)
        with pytest.MonkeyPatch.context() as patch:  # open_clip passes no sizes on
            patch.setattr(
                timm, "create_model", lambda *args, **kwargs: create(*args, **kwargs, **small)
            )
            return CustomTextCLIP(16, cfg, {**TEXT, **text})

    return build


MODELS = {
    "torchvision ViT": (vit, classifier_outputs(32)),
    "torchvision Swin": (lambda: swin("v1"), classifier_outputs(32)),
    "torchvision Swin v2": (lambda: swin("v2"), classifier_outputs(32)),
    "timm Eva, fused qkv": (
        lambda: timm_model(
            "eva_giant_patch14_224", img_size=28, embed_dim=16, depth=1, num_heads=2
        ),
        classifier_outputs(28),
    ),
    "timm Eva02, split qkv": (
        lambda: timm_model(
            "eva02_base_patch14_224", img_size=28, embed_dim=16, depth=1, num_heads=2
        ),
        classifier_outputs(28),
    ),
    "timm BEiT": (
        lambda: timm_model(
            "beit_base_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2
        ),
        classifier_outputs(32),
    ),
    "open_clip ViT": (lambda: CLIP(16, VISION, TEXT), clip_outputs),
    "open_clip CoCa": (
        lambda: CoCa(
            16,
            dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1, mlp_ratio=2),
            {**TEXT, "embed_cls": True, "output_tokens": True},
            {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        ),
        clip_outputs,
    ),
    "open_clip EVA02": (
        timm_tower("eva02_base_patch16_clip_224", {}, timm_pool="token", timm_proj="linear"),
        clip_outputs,
    ),
    "open_clip SigLIP": (
        timm_tower(
            "vit_base_patch16_siglip_224",
            dict(no_causal_mask=True, pool_type="last", proj_bias=True),
            timm_pool="map",
            timm_proj="none",
        ),
        clip_outputs,
    ),
    "open_clip RN50": (
        lambda: CLIP(16, dict(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=8), TEXT),
        clip_outputs,
    ),
}


def build(which: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[which][0]().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "gamma" in name:  # starts near zero would hide a layer
            nn.init.normal_(parameter, std=0.3)
    return model


def layers_of(model: nn.Module) -> list[tuple[str, str]]:
    kinds = ((nn.MultiheadAttention, "attention"), (nn.Linear, "linear"))
    return [
        (n, kind) for n, m in model.named_modules() for cls, kind in kinds if isinstance(m, cls)
    ]


def put_on(model: nn.Module, name: str, kind: str) -> AdapterSet:
    if kind == "linear":
        return attach_linear(model, name, CONFIG, seeded())
    config = CONFIG.model_copy(update={"targets": ("q", "k", "v", "o")})
    return attach(model.get_submodule(name), config, seeded())


def randomize(adapters: AdapterSet, size: float = 0.3) -> AdapterSet:
    generator = seeded(3)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.normal_(0, size, generator=generator)
    return adapters


def by_hand(model: nn.Module, sets: list[tuple[str, AdapterSet]]) -> nn.Module:
    """A plain model to whose weights s A B was added: no code of the library's forward or merge."""
    plain = copy.deepcopy(model)
    add_by_hand(plain, sets)
    return plain


def add_by_hand(
    plain: nn.Module, sets: list[tuple[str, AdapterSet]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the weights that were changed, each with what it was."""
    weights, before = dict(plain.named_parameters()), []
    with torch.no_grad():
        for prefix, adapters in sets:
            for name, adapter in adapters.adapters.items():
                module, _, target = f"{prefix}.{name}".strip(".").rpartition(".")
                dot, delta = (
                    "." if module else "",
                    adapter.scale * sum(b @ adapter.A_s for b in adapter.B),
                )
                keys = {"weight": "weight", "o": "out_proj.weight"}
                weight = weights.get(f"{module}{dot}{keys.get(target, f'{target}_proj_weight')}")
                if weight is None:
                    first = "qkv".index(target) * len(delta)
                    weight = weights[f"{module}{dot}in_proj_weight"][first : first + len(delta)]
                before.append((weight, weight.clone()))
                weight += delta
    return before


def output_by_hand(output, plain: nn.Module, sets: list[tuple[str, AdapterSet]]) -> torch.Tensor:
    """What the plain model gives with s A B in its weights; it is as it was afterwards."""
    with torch.no_grad():
        changed = add_by_hand(plain, sets)
        found = output(plain)
        for weight, before in reversed(changed):  # a weight may be changed twice
            weight.copy_(before)
    return found


def check(
    model: nn.Module, output, sets: list[tuple[str, AdapterSet]], expected: torch.Tensor, base
) -> None:
    for _, adapters in sets:
        randomize(adapters)
    found = output(model)
    # float32, other orders of summation
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - base).norm() > 1e-4 * base.norm()
    found.square().sum().backward()
    for _, adapters in sets:
        for name, adapter in adapters.adapters.items():
            for key, parameter in adapter.named_parameters():
                assert parameter.grad.isfinite().all(), (name, key)
                assert parameter.grad.abs().max() > 0, (name, key)
        adapters.merge()
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", MODELS)
def test_each_layer_alone_and_all_together_is_adapted_or_refused(which):
    pristine, output = build(which), MODELS[which][1]
    with torch.no_grad():
        base = output(pristine)
    assert base.isfinite().all()
    chosen, taken, model = [], 0, copy.deepcopy(pristine)
    for name, kind in layers_of(pristine):
        if name.endswith("attn.out_proj") or name.endswith("self_attention.out_proj"):
            with pytest.raises(
                AdapterError, match=r"never calls it; use attach with targets=\('o',\)$"
            ):
                put_on(model, name, kind)
            continue
        adapters = put_on(model, name, kind)
        prefix = name if kind == "attention" else ""
        randomize(adapters)
        expected = output_by_hand(output, pristine, [(prefix, adapters)])
        check(model, output, [(prefix, adapters)], expected, base)
        adapters.detach()
        assert [n for n, _ in model.named_parameters()] == [
            n for n, _ in pristine.named_parameters()
        ]
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.parameters(), pristine.parameters(), strict=True)
        )
        with torch.no_grad():
            assert torch.equal(output(model), base)
        chosen.append((name, kind))
        taken += 1
    assert taken >= 3
    sets = [(n if k == "attention" else "", put_on(model, n, k)) for n, k in chosen]
    for _, adapters in sets:
        randomize(adapters)
    check(model, output, sets, output_by_hand(output, pristine, sets), base)


# layers that are not what they seem: adapted rightly, or refused before the model changes


class Extended(nn.Linear):
    """A subclass with methods, a property, state and a slot, and PyTorch's forward."""

    __slots__ = ("slot",)

    def __init__(self, *args):
        super().__init__(*args)
        self.slot, self.state = 3, [1]

    def merged(self):  # a name that others' layers have
        return "mine"

    @property
    def size(self):
        return self.weight.numel()


class Meta(type):
    pass


class WithMetaclass(nn.Linear, metaclass=Meta):
    pass


class Named(nn.MultiheadAttention):
    def hello(self):
        return f"hello {self.num_heads}"


@pytest.mark.parametrize("kind", [Extended, WithMetaclass])
def test_a_subclass_keeps_what_it_has_while_adapted(kind):
    model = nn.Sequential(kind(6, 4))
    plain, x = copy.deepcopy(model), torch.randn(3, 6)
    adapters = randomize(attach_linear(model, "0", CONFIG))
    expected = by_hand(plain, [("", adapters)])(x)
    copied = copy.deepcopy(model)
    if kind is Extended:
        copied[0].slot = 3  # nn.Module copies no slots
    for twin in (model, copied):
        layer = twin[0]
        assert isinstance(layer, kind)
        assert isinstance(layer, nn.Linear)
        torch.testing.assert_close(twin(x), expected)
        if kind is Extended:
            assert (layer.slot, layer.state, layer.merged(), layer.size) == (3, [1], "mine", 24)
            layer.state = [2]
            assert layer.state == [2]
            layer.state = [1]
    adapters.detach()
    assert type(model[0]) is kind
    assert torch.equal(model(x), plain(x))


def test_an_attention_subclass_keeps_its_methods():
    layer, x = Named(8, 2, batch_first=True), torch.randn(2, 3, 8)
    plain = copy.deepcopy(layer)
    adapters = randomize(attach(layer, CONFIG.model_copy(update={"targets": ("q", "o")})))
    assert layer.hello() == "hello 2"
    assert isinstance(layer, Named)
    torch.testing.assert_close(layer(x, x, x)[0], by_hand(plain, [("", adapters)])(x, x, x)[0])
    adapters.detach()
    assert type(layer) is Named


class OwnCall(nn.Linear):
    def __call__(self, x):
        return F.linear(x, self.weight, self.bias)


class OwnForward(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class OwnWeight(nn.Linear):
    @property
    def weight(self):
        return self._parameters["weight"].tanh()


class Final(nn.Linear):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("final")


class OwnAdapters(nn.Linear):
    adapters = ()


def replaced(layer):
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias)


def hooked_by_accelerate(layer):
    layer._old_forward = layer.forward
    layer.forward = lambda *args: layer._old_forward(*args)


def tied_in_a_list(layer):
    layer.cache = [layer.weight]


def buffered(layer):
    layer.register_buffer("again", layer.weight)


def eight_bits(layer):
    layer.weight = nn.Parameter(torch.ones(4, 6, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (nn.utils.weight_norm, "weight of 0 .* computed .*remove_weight_norm"),
        (nn.utils.spectral_norm, "weight of 0 .* computed .*remove_spectral_norm"),
        (nn.utils.parametrizations.weight_norm, "parametrized.*remove_parametrizations"),
        (nn.utils.parametrizations.spectral_norm, "parametrized"),
        (nn.utils.parametrizations.orthogonal, "parametrized"),
        (
            lambda m: nn.utils.parametrize.register_parametrization(m, "bias", nn.ReLU()),
            "parametrized",
        ),
        (lambda m: prune.l1_unstructured(m, "weight", 0.3), r"weight of 0 .*prune\.remove"),
        (lambda m: prune.l1_unstructured(m, "bias", 0.3), r"bias of 0 .*prune\.remove"),
        (replaced, "forward of 0 .*replaced on the instance"),
        (hooked_by_accelerate, "forward of 0 .*remove_hook_from_module"),
        (tied_in_a_list, r"0\.weight is shared with another place, 0\.cache"),
        (buffered, r"0\.weight is shared with another place, 0\.again"),
        (eight_bits, "torch.int8"),
        (lambda m: m.to(torch.complex64), "torch.complex64"),
        *((kind, words) for kind, words in [
            (OwnCall, "__call__ of its own"),
            (OwnForward, "forward of its own"),
            (OwnWeight, "weight of 0 .*computed"),
            (Final, "cannot be of another class .*final"),
            (OwnAdapters, "'adapters' of its own"),
            (nn.LazyLinear, "run one batch"),
            (torch.ao.nn.qat.Linear, "forward of its own"),
        ]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_an_adapter_would_not_reach_is_refused_and_left_alone(change, words):
    layer = nn.Linear(6, 4)
    if change is nn.LazyLinear:
        layer = nn.LazyLinear(4)
    elif change is torch.ao.nn.qat.Linear:
        layer = change(6, 4, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    elif isinstance(change, type):
        layer.__class__ = change
    else:
        change(layer)
    model = nn.Sequential(layer, nn.Linear(4, 2))
    before = [(n, type(m), sorted(vars(m)), m.training) for n, m in model.named_modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(AdapterError, match=words) as error:
        attach_linear(model, ["1", "0"], CONFIG)
    assert "\n" not in str(error.value)
    assert before == [(n, type(m), sorted(vars(m)), m.training) for n, m in model.named_modules()]
    assert flags == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: nn.utils.weight_norm(m.out_proj), "weight of out_proj"),
        (lambda m: nn.utils.parametrizations.spectral_norm(m, "in_proj_weight"), "parametrized"),
        (lambda m: prune.l1_unstructured(m, "in_proj_weight", 0.3), "in_proj_weight of the model"),
        (lambda m: setattr(m, "forward", m.forward), "forward of the model"),
        (lambda m: setattr(m, "out_proj", nn.Sequential()), "Sequential for out_proj"),
        (lambda m: m.to(torch.complex64), "complex"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_attention_that_an_adapter_would_not_reach_is_refused(change, words):
    layer = nn.MultiheadAttention(8, 2)
    change(layer)
    before = [(n, type(m), sorted(vars(m))) for n, m in layer.named_modules()]
    with pytest.raises(AdapterError, match=words):
        attach(layer, CONFIG)
    assert before == [(n, type(m), sorted(vars(m))) for n, m in layer.named_modules()]


def test_a_weight_tied_to_an_embedding_and_an_out_proj_of_two_are_refused():
    model = nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 4))
    model[1].weight = model[0].weight
    with pytest.raises(AdapterError, match=r"1\.weight is shared with another place, 0\.weight"):
        attach_linear(model, "1", CONFIG)
    both = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)])
    both[1].out_proj = both[0].out_proj
    with pytest.raises(AdapterError, match=r"belongs to two attention modules"):
        attach(both, CONFIG.model_copy(update={"targets": ("o",)}))


def test_a_layer_at_two_places_has_one_adapter_that_counts_at_both():
    layer = nn.Linear(4, 4)
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(2, 4)
    adapters = randomize(attach_linear(model, ["2"], CONFIG))
    assert list(adapters.adapters) == ["0.weight"]
    delta = adapters.adapters["0.weight"].delta_weight()
    step = nn.Linear(4, 4)
    step.weight, step.bias = nn.Parameter(layer.weight + delta), layer.bias
    torch.testing.assert_close(model(x), step(step(x).tanh()))
    adapters.merge()
    torch.testing.assert_close(model.eval()(x), step(step(x).tanh()))


def test_wrappers_that_would_not_train_adapters_are_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(AdapterError, match=r"no nn\.Linear"):
        attach_linear(scripted, "*", CONFIG)


# a forward that reads weights


class Reads(nn.Module):
    """Reads its layer's weight, as Swin does; `how` it uses it."""

    def __init__(self, how):
        super().__init__()
        self.fc, self.how = nn.Linear(4, 4), how

    def forward(self, x):
        return self.how(x, self.fc)


READINGS = {
    "linear": lambda x, fc: F.linear(x, fc.weight, fc.bias),
    "keywords": lambda x, fc: F.linear(input=x, bias=fc.bias, weight=fc.weight),
    "matmul": lambda x, fc: x @ fc.weight.T + fc.bias,
    "einsum": lambda x, fc: torch.einsum("bi,oi->bo", x, fc.weight) + fc.bias,
    "rows": lambda x, fc: torch.cat([F.linear(x, w) for w in fc.weight.chunk(2)], -1) + fc.bias,
    "stacked": lambda x, fc: F.linear(x, torch.cat([fc.weight, fc.weight])[:4], fc.bias),
    "norm": lambda x, fc: F.linear(x, fc.weight / fc.weight.norm(), fc.bias),
    "called": lambda x, fc: fc(x.to(fc.weight.dtype)),
    "attribute": lambda x, fc: F.linear(x, getattr(fc, "weight"), getattr(fc, "bias")),  # noqa: B009
    "its forward": lambda x, fc: fc.forward(x),
    "the class's forward": lambda x, fc: nn.Linear.forward(fc, x),
    "checkpoint": lambda x, fc: torch.utils.checkpoint.checkpoint(
        lambda x: F.linear(x, fc.weight, fc.bias), x, use_reentrant=False
    ),
    "old checkpoint": lambda x, fc: torch.utils.checkpoint.checkpoint(
        lambda x: x @ fc.weight.T + fc.bias, x.requires_grad_(), use_reentrant=True
    ),
}


@pytest.mark.parametrize("how", READINGS)
def test_a_weight_that_is_read_is_adapted(how):
    torch.manual_seed(0)
    model, x = Reads(READINGS[how]), torch.randn(3, 4)
    plain = copy.deepcopy(model)
    adapters = randomize(attach_linear(model, "fc", CONFIG))
    reference = by_hand(plain, [("", adapters)])
    torch.testing.assert_close(model(x), reference(x))
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    # by the chain rule from dL/dW
    adapter, grad = adapters.adapters["fc.weight"], reference.fc.weight.grad
    torch.testing.assert_close(
        adapter.B.grad, (adapter.scale * grad @ adapter.A_s.T).expand(2, -1, -1)
    )
    torch.testing.assert_close(adapter.A_s.grad, adapter.scale * adapter.B.sum(0).T @ grad)
    adapters.merge()
    torch.testing.assert_close(model.eval()(x), reference(x))
    adapters.detach()
    assert torch.equal(model(x), plain(x))


def test_dropout_falls_on_what_a_read_weight_is_multiplied_with_or_is_refused():
    config = CONFIG.model_copy(update={"dropout": 0.5})
    x = torch.randn(5, 4)
    model = Reads(READINGS["linear"])
    randomize(attach_linear(model, "fc", config))
    torch.manual_seed(1)
    read = model(x)
    torch.manual_seed(1)
    assert torch.equal(read, model.fc(x))  # the same draw as a call
    assert not torch.equal(read, model.eval()(x))
    other = Reads(READINGS["matmul"])
    randomize(attach_linear(other, "fc", config))
    with pytest.raises(AdapterError, match=r"fc: its weight is read .*dropout=0$"):
        other(x)
    assert other.eval()(x).isfinite().all()
    with torch.no_grad():
        assert other.train()(x).isfinite().all()


def test_weights_are_themselves_for_who_looks_at_a_model():
    model = Reads(READINGS["linear"])
    parameter = model.fc.weight
    randomize(attach_linear(model, "fc", CONFIG))
    model(torch.randn(2, 4))
    assert model.fc.weight is parameter
    assert not model.fc.weight.requires_grad
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3))  # a forward that failed is over, too
    assert model.fc.weight is parameter
    nn.init.zeros_(model.fc.weight)
    assert not parameter.any()
    model.fc.weight.data = torch.ones(4, 4)
    assert parameter.sum() == 16


def test_output_projections_and_packed_weights_that_are_read():
    """As methods of dense prediction do: values alone, through out_proj."""

    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            attn = self.attn
            v = F.linear(x, attn.in_proj_weight[16:], attn.in_proj_bias[16:])
            return attn.out_proj(v) + F.linear(v, attn.out_proj.weight)

    torch.manual_seed(0)
    model, x = Values(), torch.randn(2, 3, 8)
    plain = copy.deepcopy(model)
    adapters = randomize(attach(model, CONFIG.model_copy(update={"targets": ("v", "o")})))
    expected = by_hand(plain, [("", adapters)])(x)
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in adapters.parameters())
    adapters.merge()
    torch.testing.assert_close(model.eval()(x), expected)
    adapters.detach()
    assert torch.equal(model(x), plain(x))


def test_replicas_of_data_parallel_read_the_adapted_weights():
    """torch.nn.parallel.replicate, stated again: copies whose parameters are attributes."""

    def replica(module):
        twin = module._replicate_for_data_parallel()
        for key, child in module._modules.items():
            setattr(twin, key, replica(child))
        for key, parameter in module._parameters.items():
            setattr(twin, key, None if parameter is None else parameter * 1.0)
        return twin

    for how in ("linear", "called", "matmul"):
        model, x = Reads(READINGS[how]), torch.randn(3, 4)
        adapters = randomize(attach_linear(model, "fc", CONFIG))
        twin = replica(model)
        assert torch.equal(twin(x), model(x))
        twin(x).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in adapters.parameters())


# a forward that passes adapters by


class PassesBy(nn.Module):
    """Took the weight out of everyone's sight."""

    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        weight = self.fc.weight
        self.product = lambda x: x @ weight.T

    def forward(self, x, fully=False):
        return self.other(self.product(x)) if fully else self.product(x)


def test_a_training_forward_that_reached_no_adapter_is_an_error():
    model, x = PassesBy(), torch.randn(2, 4)
    adapters = attach_linear(model, "fc", CONFIG)
    with pytest.raises(
        AdapterError, match=r"PassesBy ran in training and reached none .*\(fc\)"
    ) as error:
        model(x)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        model(x)
    model.eval()(x)
    outer = nn.Sequential(model.train())
    with pytest.raises(AdapterError, match="PassesBy"):
        outer(x)
    adapters.merge()
    model.eval()(x)
    adapters.detach()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    model.train()(x)
    attach_linear(model, ["fc", "other"], CONFIG)
    model(x, fully=True)  # it reached one of two
    with pytest.raises(AdapterError, match="fc, other"):
        model(x)


class KeepsItsLoss(PassesBy):
    """Returns nothing, as the training steps of some trainers do."""

    def forward(self, x, fully=False):
        self.loss = super().forward(x, fully).sum()


def test_a_training_forward_that_returns_nothing_is_looked_at_too():
    model, x = KeepsItsLoss(), torch.randn(2, 4)
    attach_linear(model, ["fc", "other"], CONFIG)
    with pytest.raises(AdapterError, match="KeepsItsLoss ran in training and reached none"):
        model(x)
    model(x, fully=True)
    with pytest.raises(RuntimeError, match="shapes"):  # an error of its own has priority
        model(torch.randn(2, 3))


def test_a_part_that_is_called_by_itself_says_so_too():
    model = CLIP(16, VISION, TEXT)
    attach_linear(model, "visual.*.c_fc", CONFIG)
    block = model.visual.transformer.resblocks[0]
    block.forward = lambda x, **kwargs: x
    with pytest.raises(AdapterError, match=r"visual \(VisionTransformer\) ran in training"):
        model.encode_image(pictures())
    model.encode_text(torch.randint(1, 50, (2, 8)))  # has no adapters, and nothing to say


def test_parts_of_a_model_can_be_trained_by_themselves():
    model = CLIP(16, VISION, TEXT)
    adapters = attach(model, CONFIG)
    tokens = torch.randint(1, 50, (2, 8), generator=seeded())
    model.encode_text(tokens).sum().backward()
    model(pictures(), None)
    model(None, tokens)
    model.visual(pictures())
    model.transformer.resblocks[0](torch.randn(2, 8, 16)).sum().backward()
    assert adapters.adapters["transformer.resblocks.0.attn.v"].B.grad is not None


def test_the_fast_path_counts_as_reaching():
    from blocklora_lib.clip.towers import encode_images

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = CLIP(16, VISION, TEXT).eval()

        def forward(self, images):
            return encode_images(self.clip, images)

    model = Wrapper()
    adapters = attach(model, CONFIG.model_copy(update={"towers": ("vision",)}))
    for adapter in adapters.adapters.values():
        adapter.train()
    model(pictures()).sum().backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("merged", [False, True])
def test_a_read_weight_is_adapted_in_graphs_too(merged):
    model, output = build("timm BEiT"), MODELS["timm BEiT"][1]
    adapters = randomize(attach_linear(model, ["*qkv", "*head"], CONFIG))
    expected = output(model).detach()
    if merged:
        adapters.merge()
    images = pictures()
    traced = torch.jit.trace(model, images, check_trace=False)
    exported = torch.export.export(model, (images,)).module(check_guards=False)
    for graph in (traced, exported):
        torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
    if not merged:  # the compiler's front end, with eager kernels
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)
        compiled(images).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in adapters.parameters())


def test_fake_tensors_go_through_a_model_that_reads_weights():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for how in ("linear", "matmul", "rows"):
        model = Reads(READINGS[how])
        adapters = attach_linear(model, "fc", CONFIG)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake:
            output = torch.func.functional_call(
                model,
                {n: fake.from_tensor(p) for n, p in model.named_parameters()},
                torch.empty(2, 4),
            )
        assert output.shape == (2, 4)
        assert output.requires_grad
        adapters.detach()


@pytest.mark.parametrize("which", ["torchvision ViT", "torchvision Swin"])
def test_torch_fx_is_refused_until_the_adapters_are_merged_for_good(which):
    """Its graph would hold W for a weight that is read, and adapted attention is no leaf of it."""
    model, output = build(which), MODELS[which][1]
    adapters = randomize(
        attach(model, CONFIG) if "ViT" in which else attach_linear(model, "*qkv", CONFIG)
    )
    expected = output(model)
    for step in (lambda: None, adapters.merge):
        step()
        with pytest.raises(
            AdapterError, match=r"which torch\.fx .*cannot follow; call merge_and_unload"
        ):
            torch.fx.symbolic_trace(model)
    adapters.merge_and_unload()
    torch.testing.assert_close(
        output(torch.fx.symbolic_trace(model)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("merged", [False, True])
def test_a_weight_that_became_computed_is_named_until_that_is_undone(merged):
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 4)
    plain = copy.deepcopy(model)
    adapters = randomize(attach_linear(model, "0", CONFIG))
    expected = model(x)
    if merged:
        adapters.merge()
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    for use in (lambda: model(x), adapters.unmerge if merged else adapters.merge, adapters.detach):
        with pytest.raises(
            AdapterError, match=r"^0.*weight (is no parameter any more|was changed)"
        ):
            use()
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(model(x), expected)
    adapters.detach()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("kind", ["block_lora", "frozen_a", "dora", "pissa", "vera"])
def test_one_of_several_that_was_passed_by_is_told_when_they_are_saved(tmp_path, kind):
    model = PassesBy()
    adapters = attach_linear(model, ["fc", "other"], AdapterConfig(kind=kind, rank=2, dropout=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.save(tmp_path / "new.safetensors")  # none has learned yet: nothing is odd
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(2, 4), fully=True).square().sum().backward()
    optimizer.step()
    with pytest.warns(
        UserWarning, match=r"1 of 2 adapters have .* as it began \(fc.weight\): no grad"
    ):
        adapters.save(tmp_path / "one.safetensors")
    passed_by = adapters.adapters["fc.weight"]
    getattr(passed_by, "b", passed_by.B).data.fill_(1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.save(tmp_path / "both.safetensors")
