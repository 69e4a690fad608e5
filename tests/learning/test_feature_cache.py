"""The feature cache: what it gives, that it encodes once, how it treats files not its own."""

from __future__ import annotations

import hashlib
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.core.seeding import generator
from blocklora_lib.data.augment import augment
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.learning import feature_cache
from blocklora_lib.learning.feature_cache import FeatureCache, Source
from blocklora_lib.learning.feature_files import Encoded, read_features, write_features

N = 230  # images: three batches


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")


@pytest.fixture(scope="module")
def pixels():
    random = torch.Generator().manual_seed(1)
    return torch.randint(256, (N, 3, 40, 36), dtype=torch.uint8, generator=random)


def source(pixels, digest="images", index=None, **kinds):
    return Source(lambda: pixels, digest, index, **kinds)


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def test_rows_are_open_clips(backbone, pixels):
    found = FeatureCache().features(backbone, source(pixels))
    with torch.no_grad():
        theirs = backbone.model.encode_image(backbone.preprocess(pixels))
    torch.testing.assert_close(found.rows, theirs)
    torch.testing.assert_close(found.unit, F.normalize(theirs, dim=-1))
    torch.testing.assert_close(found.pooled @ backbone.model.visual.proj, theirs)


def test_images_are_encoded_once_by_whoever_asks(backbone, pixels, tmp_path):
    cache = FeatureCache(tmp_path)
    index = torch.tensor([5, 3, 200])
    few = cache.features(backbone, source(pixels, index=index))
    assert cache.encoded == N
    whole = cache.features(backbone, source(pixels))
    assert torch.equal(whole.rows[index], few.rows)  # bits do not depend on who asked first
    assert cache.encoded == N
    assert len(files(tmp_path)) == 1

    def never():
        raise AssertionError("decoded again")

    other = FeatureCache(tmp_path)  # as of another process
    again = other.features(backbone, Source(never, "images"))
    assert torch.equal(again.pooled, whole.pooled)
    assert torch.equal(again.rows, whole.rows)
    assert other.encoded == 0


def test_what_was_asked_for_last_stays_in_memory(backbone, pixels, tmp_path, monkeypatch):
    size = FeatureCache().features(backbone, source(pixels)).nbytes
    monkeypatch.setattr(feature_cache, "HELD", 2 * size)  # of two lists
    cache, alone = FeatureCache(tmp_path), FeatureCache()
    for name in "abac":  # so that b goes
        found = cache.features(backbone, source(pixels, name))
        alone.features(backbone, source(pixels, name))
    assert cache.encoded == alone.encoded == 3 * N

    def never():
        raise AssertionError("decoded again")

    for name in "acb":  # b: from its file
        again = cache.features(backbone, Source(never, name))
        assert torch.equal(again.rows, found.rows)
    assert torch.equal(alone.features(backbone, source(pixels, "b")).rows, found.rows)
    assert alone.encoded == 4 * N  # which has no file
    larger = alone.features(backbone, source(torch.cat([pixels] * 3), "larger"))
    assert len(larger) == 3 * N  # though it is more than may be kept


def test_what_is_asked_for_counts_whether_or_not_it_was_kept(backbone, pixels):
    cache = FeatureCache()
    for _ in range(2):
        before = backbone.passes.copy()
        cache.features(backbone, source(pixels, index=torch.tensor([1, 2])))
        cache.features(backbone, source(pixels, index=torch.tensor([1, 2])), views=3)
        tokens = backbone.tokenize(["a cat", "a dog", "a cow"])
        cache.prompts(backbone, tokens)
        assert backbone.passes - before == {"image": 2 + 6, "text": 3}


def test_seconds_are_those_of_what_is_asked_for_whether_or_not_it_was_kept(
    backbone, pixels, tmp_path, monkeypatch
):
    """On a clock that a second passes on for each image or prompt that goes through a tower."""
    clock = [0.0]
    pooled, embed = feature_cache._pooled, backbone.embed_prompts

    def ticking(made):
        clock[0] += len(made)
        return made

    monkeypatch.setattr(feature_cache.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(feature_cache, "_pooled", lambda *given: ticking(pooled(*given)))
    monkeypatch.setattr(backbone, "embed_prompts", lambda tokens: ticking(embed(tokens)))
    tokens, index = backbone.tokenize(["a cat", "a dog", "a cow"]), torch.tensor([1, 2])
    for cache in (FeatureCache(tmp_path), FeatureCache(tmp_path)):  # as of two processes
        for _ in range(2):
            start, owed = clock[0], cache.owed
            cache.features(backbone, source(pixels, index=index))
            cache.features(backbone, source(pixels, index=index), views=3)
            cache.prompts(backbone, tokens)
            assert clock[0] - start + cache.owed - owed == pytest.approx(2 + 6 + 3)


def test_a_file_without_its_seconds_is_encoded_again(backbone, pixels, tmp_path):
    FeatureCache(tmp_path).features(backbone, source(pixels))
    (path,) = files(tmp_path)
    pooled = read_features(path, path.stem).rows
    said = {"name": path.stem, "sha256": hashlib.sha256(pooled.numpy().tobytes()).hexdigest()}
    path.write_bytes(save({"pooled": pooled}, said))
    fresh = FeatureCache(tmp_path)
    with pytest.warns(UserWarning, match="encoded again"):
        fresh.features(backbone, source(pixels))
    assert fresh.encoded == N
    assert read_features(path, path.stem).seconds > 0


@pytest.mark.parametrize("change", ["digest", "code", "view", "threads", "precision", "seed"])
def test_all_that_moves_a_bit_names_the_file(change, backbone, pixels, tmp_path, tiny_clip):
    from dataclasses import replace

    cache, kinds = FeatureCache(tmp_path, "code"), dict(views=1, seed=1)
    cache.features(backbone, source(pixels), **kinds)
    other, asked, threads = backbone, source(pixels), torch.get_num_threads()
    if change == "digest":
        asked = source(pixels, "other images")
    elif change == "code":
        cache = FeatureCache(tmp_path, "other code")
    elif change in ("view", "precision"):
        spec = BackboneSpec(
            name=tiny_clip,
            pretrained="none",
            precision="bf16" if change == "precision" else "fp32",
        )
        other = load_backbone(spec, "cpu")
        if change == "view":
            other.view = replace(other.view, interpolation="bilinear")
    elif change == "seed":
        kinds["seed"] = 2
    try:
        torch.set_num_threads(threads + (change == "threads"))
        cache.features(other, asked, **kinds)
    finally:
        torch.set_num_threads(threads)
    assert len(files(tmp_path)) == 2


def test_images_without_a_digest_are_not_kept(backbone, pixels, tmp_path):
    cache = FeatureCache(tmp_path)
    for _ in range(2):
        cache.features(backbone, source(pixels[:5], ""))
    assert cache.encoded == 10
    assert not files(tmp_path)


def test_views_are_the_seeds(backbone, pixels):
    index = torch.tensor([7, 1, 100])
    found = FeatureCache().features(backbone, source(pixels, index=index), views=2, seed=5)
    random, sized = generator(5, "views"), backbone.resize(pixels[index])
    with torch.no_grad():
        expected = [
            backbone.model.encode_image(backbone.normalise(augment(sized, "half", random)))
            for _ in range(2)
        ]
    torch.testing.assert_close(found.rows, torch.cat(expected))
    other = FeatureCache().features(backbone, source(pixels, index=index), views=2, seed=6)
    assert not torch.equal(other.rows, found.rows)


def test_image_files_are_viewed_as_they_are_evaluated(backbone, tmp_path):
    random = np.random.default_rng(1)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    images = ImageFiles(paths)
    found = FeatureCache().features(backbone, Source(lambda: images))
    with torch.no_grad():
        expected = backbone.encode_images(backbone.preprocess(images))
    torch.testing.assert_close(found.unit, expected)
    found = FeatureCache().features(backbone, Source(lambda: images), views=2)
    assert found.rows.shape == (8, 16)


DAMAGE = {
    "is damaged": [
        lambda whole, other: b"",
        lambda whole, other: b"not a file of features",
        lambda whole, other: whole[:-1],
        lambda whole, other: whole[:-4] + bytes(4),
        lambda whole, other: (1 << 60).to_bytes(8, "little") + whole[8:],
    ],
    "other images": [lambda whole, other: other],
}


@pytest.mark.parametrize(
    ("says", "damage"), [(says, damage) for says, many in DAMAGE.items() for damage in many]
)
def test_a_file_that_is_damaged_or_of_other_images_is_refused(
    says, damage, backbone, pixels, tmp_path
):
    cache = FeatureCache(tmp_path)
    expected = cache.features(backbone, source(pixels))
    (path,) = files(tmp_path)
    cache.features(backbone, source(pixels[:3], "three"))
    (other,) = set(files(tmp_path)) - {path}
    path.write_bytes(damage(path.read_bytes(), other.read_bytes()))
    with pytest.raises(ValueError, match=says) as error:
        read_features(path, path.stem)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    fresh = FeatureCache(tmp_path)
    with pytest.warns(UserWarning, match=rf"{says}.*encoded again"):
        found = fresh.features(backbone, source(pixels))
    assert torch.equal(found.rows, expected.rows)
    assert fresh.encoded == N
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureCache(tmp_path).features(backbone, source(pixels))  # whole again


@pytest.mark.parametrize(
    ("name", "pooled"), [({}, torch.zeros(2, 3)), ({"name": "n"}, torch.zeros(2, 3).half())]
)
def test_a_file_without_a_name_or_of_other_numbers_is_damaged(name, pooled, tmp_path):
    path, digest = tmp_path / "n.safetensors", hashlib.sha256(pooled.numpy().tobytes()).hexdigest()
    path.write_bytes(save({"pooled": pooled}, {"sha256": digest, "seconds": "1.0"} | name))
    with pytest.raises(ValueError, match="is damaged"):
        read_features(path, "n")


@pytest.mark.parametrize(
    ("rows", "views"), [((3, None), 0), ((N, 3), 0), ((2, None), 2), ((3, 2, 2), 0)]
)
def test_a_file_of_features_of_another_shape_is_encoded_again(
    rows, views, backbone, pixels, tmp_path
):
    """Under the right name, and whole: it ended in an error of torch, or fewer images counted."""
    index = torch.tensor([5, 3]) if views else None
    asked = source(pixels, index=index, count=N)
    expected = FeatureCache(tmp_path).features(backbone, asked, views)
    (path,) = files(tmp_path)
    other = [expected.pooled.shape[1] if size is None else size for size in rows]
    write_features(path, path.stem, Encoded(torch.zeros(other), 0.0))
    with pytest.warns(UserWarning, match=r"another shape, .*encoded again"):
        found = FeatureCache(tmp_path).features(backbone, asked, views)
    assert torch.equal(found.rows, expected.rows)


def test_two_who_ask_at_once_encode_once(backbone, pixels, tmp_path):
    both, caches = threading.Barrier(2), [FeatureCache(tmp_path) for _ in range(2)]
    found = []

    def slowly():
        time.sleep(0.2)
        return pixels[:5]

    def ask(cache):
        both.wait(10)
        found.append(cache.features(backbone, Source(slowly, "images")).pooled)

    threads = [threading.Thread(target=ask, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*found)
    assert sorted(cache.encoded for cache in caches) == [0, 5]
    assert list(tmp_path.iterdir()) == files(tmp_path)  # no lock is left


def test_images_that_change_while_they_are_encoded_are_not_kept(backbone, pixels, tmp_path):
    def changed():
        raise RuntimeError("an image changed")

    cache = FeatureCache(tmp_path)
    with pytest.raises(RuntimeError, match="an image changed"):
        cache.features(backbone, source(pixels[:5], unchanged=changed))
    assert not files(tmp_path)
    assert cache.features(backbone, source(pixels[:5])).rows.shape == (5, 16)
    assert cache.encoded == 10


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    backbone, pixels, tmp_path, monkeypatch
):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = FeatureCache(tmp_path)
    with pytest.warns(UserWarning, match=r"cannot be written .*No space left.* encode"):
        found = cache.features(backbone, source(pixels[:5]))
    assert not list(tmp_path.iterdir())
    assert torch.equal(cache.features(backbone, source(pixels[:5])).rows, found.rows)
    assert cache.encoded == 5  # kept in memory all the same


def test_features_train_what_is_built_on_them(backbone, pixels):
    with torch.inference_mode():  # asked for first by an evaluation
        found = FeatureCache().features(backbone, source(pixels[:5]))
    weight = torch.zeros(16, requires_grad=True)
    (found.unit @ weight).sum().backward()
    assert weight.grad.abs().max() > 0
