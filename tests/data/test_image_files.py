"""Images in files: CLIP-LoRA's views exactly, a sentence for a bad file, a run on a miniature."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import eurosat_profile
from PIL import Image
from torchvision import transforms

from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.data.image_files import ImageFiles, ahead, crop_box
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.data.roots import checksum
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import train
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.runs.execute import run_or_load
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench

BICUBIC = transforms.InterpolationMode.BICUBIC


@pytest.fixture
def photos(tmp_path):
    """Three files of different shapes, one of them grey."""
    random, paths = np.random.default_rng(0), []
    for i, shape in enumerate([(60, 90, 3), (120, 40, 3), (50, 50)]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


def test_evaluation_views_are_clips(photos):
    clips = transforms.Compose(
        [transforms.Resize(32, BICUBIC), transforms.CenterCrop(32), transforms.PILToTensor()]
    )
    views = ImageFiles(photos).at(32, "cpu").evaluation_views()
    expected = torch.stack([clips(Image.open(path).convert("RGB")) for path in photos])
    assert torch.equal(views, expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 40), (40, 300), (50, 50)])
def test_boxes_are_those_of_torchvision(seed, height, width):
    torch.manual_seed(seed)  # torchvision draws from the global generator
    image = torch.zeros(3, height, width)
    theirs = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    ours = crop_box(height, width, 0.08, torch.Generator().manual_seed(seed))
    assert tuple(theirs) == ours


def test_training_views_are_torchvisions_crop_and_flip(photos):
    views = (
        ImageFiles(photos)
        .at(32, "cpu")
        .training_views("clip_lora", torch.Generator().manual_seed(3))
    )
    draw, expected = torch.Generator().manual_seed(3), []
    for path in photos:
        image = Image.open(path).convert("RGB")
        box = crop_box(image.height, image.width, 0.08, draw)
        cut = transforms.functional.resized_crop(image, *box, [32, 32], BICUBIC)
        flip = torch.rand(1, generator=draw).item() < 0.5
        expected.append(
            transforms.functional.pil_to_tensor(transforms.functional.hflip(cut) if flip else cut)
        )
    assert torch.equal(views, torch.stack(expected))
    plain = ImageFiles(photos).at(32, "cpu")
    assert torch.equal(plain.training_views("none", draw), plain.evaluation_views())


def test_parts_share_what_was_decoded_and_keep_their_order(photos):
    files = ImageFiles(photos).at(16, "cpu")
    files[torch.tensor([2, 0])].training_views("light", torch.Generator().manual_seed(0))
    assert set(files._held.images) == {photos[2], photos[0]}
    assert [len(part) for part in files.split(2)] == [2, 1]
    assert files[torch.tensor([1])].paths == [photos[1]]
    upright = ImageFiles(photos, loading="upright").at(16, "cpu")
    assert {part.loading for part in (upright, upright[torch.tensor([1])], *upright.split(2))} == {
        "upright"
    }


def test_decoded_images_take_no_more_memory_than_may_be_kept(photos):
    sizes = [3 * width * height for width, height in (Image.open(p).size for p in photos)]
    for room in (0, max(sizes), sum(sizes) - 1, sum(sizes)):
        files = ImageFiles(photos).at(16, "cpu")
        files._held.room = room
        for _ in range(2):
            files.training_views("light", torch.Generator().manual_seed(0))
        kept = [sizes[photos.index(path)] for path in files._held.images]
        assert sum(kept) + files._held.room == room
        assert files._held.room >= 0
        left = set(sizes) - set(kept)
        assert all(size > files._held.room for size in left)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_bad_file_is_named_with_the_way_out(photos, damage):
    if damage == "missing":
        photos[1].unlink()
    elif damage == "text":
        photos[1].write_text("not an image")
    else:
        photos[1].write_bytes(photos[1].read_bytes()[:200])
    for look in (
        lambda files: files.evaluation_views(),
        lambda files: files.training_views("clip_lora", torch.Generator()),
    ):
        with pytest.raises(
            ValueError,
            match=r"image .*1\.png (is missing|cannot be decoded).*blocklora data verify",
        ):
            look(ImageFiles(photos).at(16, "cpu"))


def test_the_next_value_is_made_while_one_is_in_use_and_no_more():
    made, threads = [threading.Event() for _ in range(4)], set()

    def values():
        for i, event in enumerate(made):
            event.set()
            threads.add(threading.current_thread())
            yield i

    with closing(ahead(values())) as shown:
        assert next(shown) == 0
        assert made[1].wait(10)
        assert not made[2].is_set()
        assert [next(shown), next(shown), next(shown)] == [1, 2, 3]
        assert list(shown) == []
    assert threading.current_thread() not in threads
    with closing(ahead(values())) as shown:
        next(shown)
    assert list(ahead([])) == []


def test_an_error_is_raised_where_its_value_is_asked_for():
    shown = ahead(1 / x for x in (2, 1, 0, 1))
    assert [next(shown), next(shown)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(shown)


def trained(paths, monkeypatch, reads_ahead: bool):
    """(losses, weights) of a linear classifier of channel means with dropout, trained on files."""
    from blocklora_lib.learning import loop as training

    monkeypatch.setattr(training, "ahead", ahead if reads_ahead else lambda made: made)
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    spec = TrainingSpec(steps_per_shot=12, batch_size=2, lr=0.1)
    dropout = torch.nn.functional.dropout
    losses, _ = train(
        Context(None, None, ImageFiles(paths, 16), torch.arange(3), spec, shots=1, seed=1),
        [{"params": [weight], "lr": spec.lr, "weight_decay": 0.0}],
        lambda pixels: dropout((pixels / 255).mean((2, 3)), 0.25) @ weight.T,
    )
    return losses, weight.detach()


def test_reading_ahead_changes_no_bit(photos, monkeypatch):
    plain, early = (trained(photos, monkeypatch, reads_ahead) for reads_ahead in (False, True))
    assert plain[0] == early[0]
    assert torch.equal(plain[1], early[1])


def test_views_are_made_in_inference_mode_too(photos):
    """The workers are in none, whatever their caller is in."""
    images = ImageFiles(photos, 16)
    plain, crops = images.evaluation_views(), views_of(images)
    with torch.inference_mode():
        assert torch.equal(ImageFiles(photos, 16).evaluation_views(), plain)
        assert torch.equal(views_of(ImageFiles(photos, 16)), crops)


def views_of(images):
    return images.training_views("clip_lora", torch.Generator().manual_seed(0))


def test_a_bad_file_stops_training_by_name(photos, monkeypatch):
    photos[2].write_text("no image")
    with pytest.raises(ValueError, match=r"image .*2\.png cannot be decoded"):
        trained(photos, monkeypatch, reads_ahead=True)


@pytest.mark.slow
def test_a_miniature_runs_from_file_to_record(eurosat, tmp_path, tiny_clip):
    changes = dict(shots=[1], draw="clip_lora", methods=[{"name": "block_lora"}])
    training = {"steps_per_shot": 2, "batch_size": 4, "lr": 1e-2}
    profile = eurosat_profile(tiny_clip, training=training, **changes)
    spec = make_spec(profile, "eurosat", "block_lora", 1, 1)
    store, bench = RunStore(tmp_path / "runs"), Workbench("cpu")
    record = run_or_load(spec, store, bench)
    assert record.status == "done", record.error
    assert record.provenance["miniature"] is True
    assert record.result.accuracy["eurosat"].total == len(load_dataset("eurosat").labels("test"))
    again = run_or_load(spec, RunStore(tmp_path / "again"), Workbench("cpu"))
    assert again.result == record.result  # threads decode, generators decide


def test_a_result_on_a_miniature_is_never_taken_for_a_real_one(eurosat, monkeypatch, tmp_path):
    manifests = [load_manifest("eurosat")]
    fake = checksum(manifests)
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path / "elsewhere"))
    assert checksum(manifests) != fake
    with pytest.raises(FileNotFoundError, match=r"eurosat.* is missing"):
        load_dataset("eurosat")
