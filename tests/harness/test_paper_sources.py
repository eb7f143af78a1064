"""A look at the paper's sources: a replica is found whole, and each thing that is taken away or damaged is
named."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.paper.look import look, render
from harness.paper.sources import NEXT_MIXES, SOURCES, TO_TRAIN, SourcesConfig
from harness.replica.config import ReplicaConfig
from harness.replica.mark import MARK, is_in_replica
from harness.replica.write import write
from tests.harness.damage import cut, replace, see

SMALL = ReplicaConfig(
    num_classes=2, train_pictures=4, val_pictures=3, pretrain_records=4, mix_records=12, questions=1,
    adm_pictures=3, num_shards=2, shard_samples=2, next_records=4,
)  # fmt: skip

EVERY = SOURCES | NEXT_MIXES | TO_TRAIN


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "replica"
    assert list(write(root, SMALL))
    return root


@pytest.fixture
def root(whole, tmp_path) -> Path:
    """The replica once more, by links: a test replaces files, it never writes into one."""
    return Path(shutil.copytree(whole, tmp_path / "data", copy_function=os.link))


def _edit(path: Path, **values: object) -> None:
    replace(path, json.dumps(json.loads(path.read_text()) | values).encode())


def test_a_replica_is_found_whole_and_known_as_one(whole):
    seen = {each.name: each for each in look(SourcesConfig(), whole)}
    assert list(seen) == list(SOURCES)
    assert {name: each.faults for name, each in seen.items() if not each.is_fine} == {}
    assert all(each.is_replica for each in seen.values())
    assert dict(seen["imagenet"].counts) == {"classes": 2, "train pictures": 8, "val pictures": 6}
    assert seen["benchmarks"].counts["MME"] == 28
    assert dict(seen["language_model"].counts) == {"layers": 2, "wide": 64, "pieces": 512}
    assert dict(seen["clip"].counts) == {"tokens": 196, "wide": 48}
    (large,) = look(SourcesConfig(), whole, ["clip"], is_large=True)
    assert dict(large.counts) == {"tokens": 256, "wide": 64}
    trained = {each.name: each for each in look(SourcesConfig(), whole, TO_TRAIN)}
    assert {name: each.faults for name, each in trained.items()} == {"recap_datacomp": (), "bert": ()}
    assert dict(trained["recap_datacomp"].counts) == {"shards": 1, "held-out shards": 1}
    assert trained["bert"].counts["words"] > 999
    assert "wrong" not in render(list(seen.values())) and "missing" not in render(list(seen.values()))


def test_without_its_mark_it_is_no_replica(root):
    (root / MARK).unlink()
    assert not is_in_replica(root / "imagenet")
    assert not see(root, "vae").is_replica


def test_the_hub_s_parquet_and_shards_of_imagenet_are_found_too(root):
    shutil.rmtree(root / "imagenet")
    seen = see(root, "imagenet")
    assert seen.path == root / "imagenet-1k" and dict(seen.counts) == {"train": 8, "validation": 6}
    shards = root / "imagenet"
    for split in ("train", "val"):
        (shards / split).mkdir(parents=True)
        shutil.copy(root / "recap-datacomp/train/00000.tar", shards / split)
    assert dict(see(root, "imagenet").counts) == {"train shards": 1, "val shards": 1}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_missing_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, name):
    seen = see(tmp_path, name)
    assert seen.path is None and not seen.is_fine
    text = render([seen])
    assert text.startswith("missing")
    assert all(str(tmp_path / place) in text for place in EVERY[name].places)
    assert EVERY[name].how in text


def test_each_place_is_settable_alone(whole, tmp_path):
    release = whole / "openvision3/openvision3-vit-base-patch2-28"
    assert see(tmp_path, "openvision3", openvision3=str(release)).counts == {"releases": 1}
    assert see(None, "inception", inception=str(whole / "inception")).is_fine
    assert see(None, "dino", dino=str(whole / "dino/model.safetensors")).is_fine
    nowhere = see(None, "vae")
    assert nowhere.path is None and "give data_root or sources.vae" in render([nowhere])
    # a place of one's own is the only one: what lies under data_root does not stand in for it
    assert see(whole, "vae", vae=str(tmp_path / "other")).path is None


def _flat_val(root: Path) -> None:
    for picture in list((root / "imagenet/val").rglob("*.JPEG")):
        picture.rename(root / "imagenet/val" / picture.name)
    for folder in (root / "imagenet/val").iterdir():
        if folder.is_dir():
            folder.rmdir()


def _lose_a_class(root: Path) -> None:
    shutil.rmtree(root / "imagenet/val/n01443537")


def _lose_a_part(root: Path) -> None:
    (root / "benchmarks/MME/data/test-00001-of-00002.parquet").unlink()


def _lose_a_column(root: Path) -> None:
    path = root / "benchmarks/POPE/data/test-00000-of-00001.parquet"
    table = pq.read_table(path).drop_columns(["category"])
    path.unlink()
    pq.write_table(table, path)


def _sd_vae(root: Path) -> None:
    _edit(root / "FLUX.1-dev/vae/config.json", latent_channels=4, scaling_factor=0.18215)


def _three_channels(root: Path) -> None:
    path = root / "openvision3/openvision3-vit-base-patch2-32/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"].pop("in_channels")
    replace(path, json.dumps(config).encode())


def _other_grid(root: Path) -> None:
    folder = root / "openvision3"
    source = folder / "openvision3-vit-base-patch2-28/open_clip_pytorch_model.bin"
    replace(folder / "openvision3-vit-base-patch2-32/open_clip_pytorch_model.bin", source.read_bytes())


def _alexnet_as_inception(root: Path) -> None:
    path = root / "inception/weights-inception-2015-12-05-6726825d.pth"
    replace(path, (root / "lpips/alexnet-owt-7be5be79.pth").read_bytes())


def _page_as_npz(root: Path) -> None:
    replace(root / "adm/VIRTUAL_imagenet256_labeled.npz", b"<html>404</html>")


def _own_statistics(root: Path) -> None:
    path = root / "adm/VIRTUAL_imagenet256_labeled.npz"
    path.unlink()
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))


def _pointer(root: Path) -> None:
    replace(root / "dino/model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:e1b\n")


def _vgg_as_alexnet(root: Path) -> None:
    path = root / "lpips/alexnet-owt-7be5be79.pth"
    replace(path, (root / "lpips/vgg16-397923af.pth").read_bytes())


def _other_tokenizer(root: Path) -> None:
    vocabulary = {str(number): number for number in range(600)}
    (root / "vicuna-7b-v1.5/tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def _page_as_weights(root: Path) -> None:
    replace(root / "inception/weights-inception-2015-12-05-6726825d.pth", b"<html>404</html>\n")


def _no_width(root: Path) -> None:
    _edit(root / "clip-vit-base-patch16/config.json", vision_config={"patch_size": 16, "image_size": 224})


def _cut_file(place: str) -> Callable[[Path], None]:
    return lambda root: cut(root / place)


def _away(place: str) -> Callable[[Path], None]:
    def take(root: Path) -> None:
        path = root / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return take


def _shard(root: Path, **members: bytes) -> None:
    """The only shard to train on, anew."""
    path = root / "recap-datacomp/train/00000.tar"
    path.unlink()
    with tarfile.open(path, "w") as tar:
        for suffix, content in members.items():
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _no_dense_caption(root: Path) -> None:
    _shard(root, jpg=b"picture", txt=b"a cat", json=b'{"org_caption": "a cat"}')


def _no_picture(root: Path) -> None:
    _shard(root, txt=b"a cat", json=b'{"org_caption": "a cat", "re_caption": "a cat"}')


DAMAGES = {
    "no shards to train on": ("recap_datacomp", _away("recap-datacomp/train/00000.tar"), "no shards"),
    "no held-out shards": ("recap_datacomp", _away("recap-datacomp/held_out"), "in held_out/val"),
    "a shard cut off": ("recap_datacomp", _cut_file("recap-datacomp/train/00000.tar"), "cut off|damaged"),
    "no dense captions": ("recap_datacomp", _no_dense_caption, "JSON has no re_caption; name it"),
    "a shard of texts": ("recap_datacomp", _no_picture, "begins without a picture: it holds 0.txt, 0.json"),
    "no VGG16": ("lpips", _away("lpips/vgg16-397923af.pth"), "no vgg16-397923af.pth beside"),
    "no vocabulary": ("bert", _away("bert-base-uncased/vocab.txt"), "no vocab.txt"),
    "another vocabulary": (
        "bert",
        lambda root: replace(root / "bert-base-uncased/vocab.txt", b"[PAD]\nthe\n"),
        "no vocabulary of BERT: it has no .UNK.",
    ),
    "flat val": ("imagenet", _flat_val, "6 pictures and no class folders: sort them into synsets"),
    "a class in train alone": ("imagenet", _lose_a_class, "1 classes are in one of train and val alone"),
    "no val": ("imagenet", _away("imagenet/val"), "no folder val"),
    "cut parquet": (
        "benchmarks",
        _cut_file("benchmarks/SEED-Bench/data/test-00000-of-00002.parquet"),
        "SEED-Bench: .*test-00000-of-00002.parquet is damaged or cut off",
    ),
    "a part is missing": ("benchmarks", _lose_a_part, "MME: .*1 of 2 files are there"),
    "a column is missing": ("benchmarks", _lose_a_column, "POPE: .*has no column category"),
    "no pictures of GQA": (
        "benchmarks", _away("benchmarks/GQA/testdev_balanced_images"), "GQA pictures: no testdev-"
    ),
    "no tokenizer": ("language_model", _away("vicuna-7b-v1.5/tokenizer.model"), "has no tokenizer"),
    "cut tokenizer": ("language_model", _cut_file("vicuna-7b-v1.5/tokenizer.model"), "is damaged or cut off"),
    "a file of weights is missing": (
        "language_model", _away("vicuna-7b-v1.5/pytorch_model-00002-of-00002.bin"), "1 of 2 files are missing"
    ),
    "cut weights": (
        "language_model", _cut_file("vicuna-7b-v1.5/pytorch_model-00001-of-00002.bin"), "damaged or cut off"
    ),
    "another width": (
        "language_model",
        lambda root: _edit(root / "vicuna-7b-v1.5/config.json", hidden_size=4096),
        r"embeddings are \(512, 64\), config.json says \(512, 4096\)",
    ),
    "more pieces than words": ("language_model", _other_tokenizer, "tokenizer has 600 pieces, the model 512"),
    "a config of something else": (
        "language_model",
        lambda root: replace(root / "vicuna-7b-v1.5/config.json", b"[1]"),
        "config.json holds a list, expected a mapping",
    ),
    "a page as weights": ("inception", _page_as_weights, "is no state dict, damaged or cut off"),
    "no width": ("clip", _no_width, "config.json has no hidden_size"),
    "another VAE": ("vae", _sd_vae, "not FLUX.1's VAE: latent_channels is 4, must be 16"),
    "cut VAE": ("vae", _cut_file("FLUX.1-dev/vae/diffusion_pytorch_model.safetensors"), "is cut off: "),
    "OpenVision 1": ("openvision3", _three_channels, "takes 3 channels, OpenVision 3 takes 16"),
    "another grid": ("openvision3", _other_grid, r"positional_embedding is \(197, 48\), must be \(257, 48\)"),
    "no processor": (
        "clip", _away("clip-vit-base-patch16/preprocessor_config.json"), "no preprocessor_config.json"
    ),
    "no CLIP": (
        "clip",
        lambda root: _edit(root / "clip-vit-base-patch16/config.json", model_type="siglip"),
        "is not CLIP: model_type is 'siglip'",
    ),
    "AlexNet as Inception": ("inception", _alexnet_as_inception, "not the 2015 Inception"),
    "VGG as AlexNet": ("lpips", _vgg_as_alexnet, r"features.0.weight is \(64, 3, 3, 3\)"),
    "a page as statistics": ("adm", _page_as_npz, "is not an .npz"),
    "FID statistics alone": ("adm", _own_statistics, "mu_s is missing"),
    "a pointer of git": ("dino", _pointer, "a pointer in place of the file"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_in_one_line(root, damage):
    name, hurt, message = DAMAGES[damage]
    hurt(root)
    seen = see(root, name)
    assert not seen.is_fine
    assert len(seen.faults) == 1
    assert re.search(message, seen.faults[0]), seen.faults[0]
    assert "\n" not in seen.faults[0] and render([seen]).startswith("wrong")


def test_one_benchmark_that_is_missing_costs_no_other_its_count(root):
    shutil.rmtree(root / "benchmarks/POPE")
    seen = see(root, "benchmarks")
    assert seen.faults == (f"POPE: no folder {root / 'benchmarks/POPE'}",)
    assert {"SEED-Bench", "MME", "GQA", "ScienceQA", "ScienceQA-IMG"} <= seen.counts.keys()
