"""The stage that writes latents: each shard gets a file of its own, and the account adds up."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from encoder import cache
from encoder.data.options import CacheConfig, SourceConfig, StreamConfig
from encoder.data.stream import decode
from encoder.data.tars import OpenShard, add_member
from encoder.runtime.config import load
from encoder.runtime.ranks import Ranks


class Mean(torch.nn.Module):
    """In place of a VAE: the mean of each 8 x 8 square."""

    downsample = 8

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)


@pytest.fixture(autouse=True)
def mean(monkeypatch):
    monkeypatch.setattr(cache, "load_vae", lambda *_, **__: Mean())


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for value in values:
            buffer = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(buffer, "PNG")
            picture = b"broken" if value == 99 else buffer.getvalue()
            record = json.dumps({"caption": f"picture {value}"}).encode()
            add_member(tar, f"{value:04d}.png", picture)
            add_member(tar, f"{value:04d}.json", record)


def values(folder):
    """The greys of the pictures in each file."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        rows = [raw["__key__"] for raw in OpenShard(str(path))]
        found[path.name] = [int(key) for key in rows]
    return found


def config(shards, **changes):
    return load(CacheConfig, {"vae": "mean", "shards": str(shards), "image_size": 16, **changes})


@pytest.mark.parametrize("num_threads", [1, 3])
def test_shards_of_equal_names_keep_their_samples(tmp_path, num_threads):
    write(tmp_path / "a/00000.tar", [1, 2]), write(tmp_path / "b/00000.tar", [3, 99, 4])
    write(tmp_path / "b/00001.tar", [5])
    out = tmp_path / "out"
    chosen = config(f"{tmp_path}/{{a,b}}/*.tar", num_threads=num_threads, max_bad_fraction=0.5)
    result = cache.cache(chosen, out)
    assert (result["num_shards"], result["num_samples"], len(result["bad_samples"])) == (3, 5, 1)
    found = values(out / "train")
    assert found.pop("00001.tar") == [5]
    assert sorted(found.values()) == [[1, 2], [3, 4]] and {name[-12:] for name in found} == {
        "_a_00000.tar",
        "_b_00000.tar",
    }
    (row,) = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    assert row["name"] == "00000.tar:0099"
    assert cache.cache(chosen, out)["num_samples"] == 0  # all are there
    assert len((out / "bad_samples.jsonl").read_text().splitlines()) == 1


def test_processes_share_the_shards(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / f"in/{number:05d}.tar", [number])
    written = []
    for rank in range(2):
        ranks = Ranks(rank, 2, "cpu")
        monkeypatch.setattr(cache.Ranks, "start", lambda device, ranks=ranks: ranks)
        monkeypatch.setattr(cache.Ranks, "gather", lambda self, value: [value])
        before = set((tmp_path / "out").rglob("*.tar"))
        cache.cache(config(tmp_path / "in"), tmp_path / "out")
        written.append({path.name for path in (tmp_path / "out").rglob("*.tar")} - {p.name for p in before})
    assert written == [{"00000.tar", "00002.tar", "00004.tar"}, {"00001.tar", "00003.tar"}]


def test_latents_are_those_of_their_picture(tmp_path):
    write(tmp_path / "in/0.tar", [51, 102])
    cache.cache(config(tmp_path / "in", batch_size=1), tmp_path / "out")
    chosen = StreamConfig(sources=[SourceConfig(shards="x")], image_size=16, latents=True)
    for raw in OpenShard(str(tmp_path / "out/train/0.tar")):
        row = decode(raw, chosen, random.Random(0))
        assert row.z_vae.shape == (3, 2, 2)
        torch.testing.assert_close(
            row.z_vae.float() * 255, torch.full((3, 2, 2), float(raw["__key__"])), atol=0.5, rtol=0
        )  # bf16
        assert row.record["caption"] == f"picture {int(raw['__key__'])}"


def test_a_shard_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is there twice"):
        cache.shard_names(["/x/a/0.tar", "/x/a/0.tar"])
