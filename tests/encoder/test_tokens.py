"""The stage that writes every picture's tokens once."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.data.account import TooManyBadSamples
from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder
from encoder.models.clip import Clip
from encoder.models.shapes import ClipShape, ViTShape
from encoder.options import TokensConfig
from encoder.runtime.checkpoint import load_tensors
from encoder.runtime.config import ROOT, dump, load
from encoder.token_store import TokenStore
from encoder.tokens import ShardEncoder, run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "head_width": 16, "embed_dim": 8}
    tower = ViTShape(image_size=32, patch_size=16, in_channels=3, **sizes)
    Clip(ClipShape(encoder=tower)).save_pretrained(folder)
    return folder


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder, count: int, *, per_tar: int = 1000, labels=None, broken=None) -> None:
    """Tar files of pictures in classes 0, 1, 2, or in those given; `broken`: other bytes for some."""
    (folder / "val").mkdir(parents=True)
    for start in range(0, count, per_tar):
        with tarfile.open(folder / "val" / f"{start // per_tar:05}.tar", "w") as tar:
            for index in range(start, min(start + per_tar, count)):
                write_sample(tar, index, labels[index] if labels else index % 3, broken or {})


def write_sample(tar, index: int, label, broken) -> None:
    record = json.dumps({"label": label, "org_caption": "a"}).encode()
    pixels = broken[index] if index in broken else png(picture(index))
    for suffix, data in (("png", pixels), ("txt", b"a"), ("json", record)):
        info = tarfile.TarInfo(f"{index:03}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def test_tokens_of_shards_are_those_of_the_encoder_in_order_with_labels(encoder, tmp_path):
    write_shards(tmp_path / "data", 7)
    values = {"encoder": str(encoder), "data": str(tmp_path / "data"), "split": "val", "batch_size": 3}
    result = run(load(TokensConfig, values | {"dtype": "fp32", "features": "penultimate"}), tmp_path)
    written = load_tensors(tmp_path / "tokens.safetensors")
    index = json.loads((tmp_path / "index.json").read_text())
    frozen = load_encoder(encoder, features="penultimate")
    pixels = torch.stack([torch.from_numpy(picture(i)) for i in range(7)]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(written["tokens"], frozen.encode(pixels))
    assert written["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert index["keys"] == [f"{i:03}" for i in range(7)] and index["fingerprint"] == frozen.fingerprint
    assert result["num_pictures"] == 7
    run(load(TokensConfig, values | {"limit": 5}), tmp_path)
    assert load_tensors(tmp_path / "tokens.safetensors")["tokens"].shape == (5, 4, 32)


def test_tokens_of_llava_records_are_keyed_by_picture_name(encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for index, side in enumerate((32, 32, 48)):  # sizes may differ
        Image.fromarray(picture(index, side)).save(tmp_path / "images" / f"{index}.png")
    talk = [{"id": str(i), "image": f"images/{i}.png", "conversations": []} for i in (1, 0, 1)]
    (tmp_path / "talk.json").write_text(json.dumps([*talk, {"id": "text", "conversations": []}]))
    (tmp_path / "more.jsonl").write_text(json.dumps({"image": ["images/2.png", "images/0.png"]}) + "\n")
    records = [str(tmp_path / name) for name in ("talk.json", "more.jsonl")]
    values = {"encoder": str(encoder), "data": str(tmp_path), "records": records, "dtype": "fp32"}
    run(load(TokensConfig, values), tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["keys"] == ["images/1.png", "images/0.png", "images/2.png"]
    pixels = torch.from_numpy(picture(2, 48)).permute(2, 0, 1)[None] / 255
    tokens = load_tensors(tmp_path / "tokens.safetensors")
    torch.testing.assert_close(tokens["tokens"][2:], load_encoder(encoder).encode(pixels))
    assert tokens["labels"].tolist() == [-1, -1, -1]


def test_too_many_unreadable_pictures_stop_it_and_are_named(encoder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "talk.json").write_text(json.dumps([{"image": "bad.png"}]))
    values = {"encoder": str(encoder), "data": str(tmp_path), "records": [str(tmp_path / "talk.json")]}
    with pytest.raises(ValueError, match=r"bad\.png"):
        run(load(TokensConfig, values), tmp_path)
    with pytest.raises(FileNotFoundError, match="records not found"):
        run(load(TokensConfig, values | {"records": ["none.json"]}), tmp_path)
    with pytest.raises(FileNotFoundError, match="no shards"):
        run(load(TokensConfig, values | {"records": []}), tmp_path)


def tokens_config(encoder, folder, **own) -> TokensConfig:
    return load(TokensConfig, {"encoder": str(encoder), "data": str(folder), "split": "val"} | own)


def test_shards_hold_what_one_file_holds_and_an_interrupted_run_goes_on(encoder, tmp_path, monkeypatch):
    write_shards(tmp_path / "data", 11, per_tar=4)
    for name in ("one", "three", "cut"):
        (tmp_path / name).mkdir()
    config = tokens_config(encoder, tmp_path / "data", flips=True, dtype="fp32", batch_size=2)
    assert run(config, tmp_path / "one")["num_shards"] == 1
    config = replace(config, shard_size=5)
    result = run(config, tmp_path / "three")
    assert (result["num_shards"], result["num_pictures"], result["flips"]) == (3, 11, True)
    frozen, everything = load_encoder(encoder), torch.arange(11)
    pixels = torch.stack([torch.from_numpy(picture(i)) for i in range(11)]).permute(0, 3, 1, 2) / 255
    one, three = TokenStore(tmp_path / "one"), TokenStore(tmp_path / "three")
    for store in (one, three):
        torch.testing.assert_close(store.rows(everything), frozen.encode(pixels))
        mirrored = store.rows(everything, torch.ones(11, dtype=torch.bool))
        torch.testing.assert_close(mirrored, frozen.encode(pixels.flip(3)))
        assert store.keys == one.keys and store.labels.tolist() == [i % 3 for i in range(11)]

    original, encoded = ShardEncoder.encode, []

    def die_in_the_second(self, part, say):
        encoded.append(part)
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return original(self, part, say)

    monkeypatch.setattr(ShardEncoder, "encode", die_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    assert run(config, tmp_path / "cut") == result
    assert encoded == [range(5), range(5, 10), range(5, 10), range(10, 11)]
    for path in (tmp_path / "three" / "shards").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / "shards" / path.name).read_bytes()
    assert json.loads((tmp_path / "cut" / "progress.json").read_text())["done"] == 11


def test_broken_samples_of_shards_are_named_and_the_rest_is_in_order(encoder, tmp_path):
    write_shards(tmp_path / "data", 300, per_tar=120, broken={7: b"no picture", 130: b""})
    (tmp_path / "out").mkdir()
    config = tokens_config(encoder, tmp_path / "data", shard_size=128, limit=290)
    result = run(config, tmp_path / "out")
    store = TokenStore(tmp_path / "out")
    assert store.keys == [f"{i:03}" for i in range(290) if i not in (7, 130)]
    assert store.labels.tolist() == [i % 3 for i in range(290) if i not in (7, 130)]
    assert (result["num_pictures"], result["num_skipped"], result["num_shards"]) == (288, 2, 3)
    skipped = json.loads((tmp_path / "out" / "index.json").read_text())["skipped"]
    assert [each.split(": ")[0] for each in skipped] == ["00000.tar:007", "00001.tar:130"]
    direct = load_encoder(encoder).encode(torch.from_numpy(picture(131)).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(store["131"].float(), direct[0], atol=2e-3, rtol=0)  # fp16


def test_a_cut_off_tar_file_is_named(encoder, tmp_path):
    write_shards(tmp_path / "data", 200, per_tar=100)
    path = tmp_path / "data" / "val" / "00001.tar"
    path.write_bytes(path.read_bytes()[:-10_240])  # the end mark, and a little before
    (tmp_path / "out").mkdir()
    result = run(tokens_config(encoder, tmp_path / "data", shard_size=64), tmp_path / "out")
    assert result["num_skipped"] == 1 and 195 <= result["num_pictures"] <= 200
    skipped = json.loads((tmp_path / "out" / "index.json").read_text())["skipped"]
    assert skipped[0].startswith("00001.tar:*: ")


@pytest.mark.parametrize("label", ["cat", None, 1.5, [1], -2])
def test_a_label_that_is_no_class_is_a_broken_sample(encoder, tmp_path, label):
    write_shards(tmp_path / "data", 2, labels=[0, label])
    with pytest.raises(TooManyBadSamples, match=r"00000\.tar:001: label .* is not a class's number"):
        run(tokens_config(encoder, tmp_path / "data"), tmp_path)


class LoudEncoder(FrozenEncoder):
    """One token: a thousand times the picture's first grey of 255; white gives what is no number."""

    def __init__(self, *, features=None, vae=None):
        super().__init__(name="loud", image_size=4, grid=(1, 1), width=1, features=features)

    def _tokens(self, inputs):
        first = (255 * inputs[:, 0, 0, 0]).round().view(-1, 1, 1)
        return torch.where(first == 255, torch.nan, 1000 * first)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (60, "fp16", None),
        (66, "fp16", "tokens of loud for 1.png overflow fp16; set dtype=fp32"),
        (66, "fp32", None),
        (255, "fp32", "tokens of loud for 1.png are not finite"),
        (255, "fp16", "tokens of loud for 1.png are not finite"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_by_the_pictures_name(tmp_path, value, dtype, message):
    for name, grey in (("0.png", 10), ("1.png", value)):
        Image.new("RGB", (4, 4), (grey,) * 3).save(tmp_path / name)
    (tmp_path / "talk.json").write_text(json.dumps([{"image": "0.png"}, {"image": "1.png"}]))
    records = [str(tmp_path / "talk.json")]
    source = f"module:{__name__}:LoudEncoder"
    config = TokensConfig(encoder=source, data=str(tmp_path), records=records, dtype=dtype)
    if message is None:
        run(config, tmp_path)
        assert TokenStore(tmp_path)["1.png"].item() == 1000 * value
        return
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path)
    assert not (tmp_path / "tokens.safetensors").exists()


def test_pictures_outside_of_the_folder_are_skipped_by_name_unless_allowed(encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(200):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number}.png")
    Image.fromarray(picture(0)).save(tmp_path / "secret.png")
    outside = ["../secret.png", str(tmp_path / "secret.png")]
    names = [*outside, *(f"{number}.png" for number in range(200))]
    (tmp_path / "talk.json").write_text(json.dumps([{"image": name} for name in names]))
    records = [str(tmp_path / "talk.json")]
    config = TokensConfig(encoder=str(encoder), data=str(tmp_path / "images"), records=records)
    run(config, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["keys"] == names[2:]
    assert [each.split(" leads out of")[0] for each in index["skipped"]] == [f"{n}: {n}" for n in outside]
    run(replace(config, allow_outside_root=True), tmp_path)
    assert torch.equal(TokenStore(tmp_path)[outside[0]], TokenStore(tmp_path)["0.png"])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread here too: with more, sums are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(world: int, config: Path, out_dir: Path, dying: int | None = None) -> bool:
    """`world` processes together, to the end or until one of them is gone; whether all ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(world), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, Path(__file__).with_name("tokens_process.py"), config, out_dir, str(dying)]
    processes = [
        subprocess.Popen(words, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    left = list(processes)
    while left:
        left = [process for process in left if process.poll() is None]
        if any(process.returncode for process in processes):
            for process in left:  # they wait for the one that is gone
                process.kill()
        time.sleep(0.05)
    return not any(process.returncode for process in processes)


@pytest.mark.parametrize(("world", "deaths"), [(2, []), (4, [2, 0])])  # each has a shard left to die at
def test_several_processes_however_often_killed_write_what_one_does(
    encoder, tmp_path, world, deaths, one_thread
):
    write_shards(tmp_path / "data", 122, per_tar=25, broken={9: b""})
    config = tokens_config(encoder, tmp_path / "data", shard_size=7, flips=True)
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    run(config, tmp_path / "one")
    dump(config, tmp_path / "config.yaml")
    for rank in deaths:
        assert not launch(world, tmp_path / "config.yaml", tmp_path / "several", dying=rank)
        assert not (tmp_path / "several" / "index.json").exists()
    assert launch(world, tmp_path / "config.yaml", tmp_path / "several")
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "shards").iterdir()]
    assert len(files) == 18
    for file in (*files, "index.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "several" / file).read_bytes()


@pytest.mark.parametrize("label", [10**30, 2**31, -2, True, 1.0, None, [1], "1", float("nan")])
def test_what_is_no_class_is_skipped_by_name(encoder, tmp_path, monkeypatch, label):
    monkeypatch.setattr("encoder.tokens.MAX_BAD_FRACTION", 0.5)
    write_shards(tmp_path / "data", 3, labels=[1, label, 2])
    monkeypatch.setattr("encoder.data.account.PATIENCE", 3)
    result = run(tokens_config(encoder, tmp_path / "data"), tmp_path)
    assert (result["num_pictures"], result["num_skipped"]) == (2, 1)
    (skipped,) = json.loads((tmp_path / "index.json").read_text())["skipped"]
    assert "00000.tar:001" in str(skipped) and "is not a class" in str(skipped)


@pytest.mark.parametrize("own", [{"limit": 0}, {"limit": -1}, {"shard_size": 0}])
def test_sizes_below_one_are_refused(encoder, own):
    with pytest.raises(ValueError, match=f"{next(iter(own))} .* must be at least 1"):
        tokens_config(encoder, "nowhere", **own)
