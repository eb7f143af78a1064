"""A look at LLaVA's and LLaVA-NeXT's records: those of a replica are counted, each damage is named."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.paper import headers
from harness.paper.look import render
from harness.replica import llava, llava_next
from harness.replica.config import ReplicaConfig
from tests.harness.damage import cut, replace, see

SMALL = ReplicaConfig(pretrain_records=4, mix_records=12, next_records=4)
COUNTS = {"llava_pretrain": (4, 0), "llava_mix": (14, 2), "open_next_mix": (5, 1), "next_mix": (5, 1)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    mixes = (llava.write_mix, llava_next.write_open_mix, llava_next.write_next_mix)
    for write in (llava.write_pretrain, *mixes):
        write(root, SMALL)
    return root


@pytest.fixture
def root(whole, tmp_path) -> Path:
    """The records once more, by links: a test replaces files, it never writes into one."""
    return Path(shutil.copytree(whole, tmp_path / "data", copy_function=os.link))


@pytest.mark.parametrize("name", COUNTS)
def test_records_are_counted(whole, name):
    seen, (num, num_text) = see(whole, name), COUNTS[name]
    assert dict(seen.counts) == {"records": num, "without a picture": num_text} and not seen.faults


def _turn_without_value(root: Path) -> None:
    path = root / "LLaVA-Instruct/llava_v1_5_mix665k.json"
    records = json.loads(path.read_text())
    records[3]["conversations"][0].pop("value")
    replace(path, json.dumps(records).encode())


def _first_rows(root: Path, data: bytes | None) -> None:
    """The pictures of LLaVA-NeXT's first rows hold something else, or nothing but their names."""
    path = root / "LLaVA-NeXT-Data/data/train-00000-of-00002.parquet"
    table = pq.read_table(path)
    pictures = [picture | {"bytes": data} for picture in table["image"].to_pylist()]
    place, kind = table.schema.get_field_index("image"), table.schema.field("image")
    path.unlink()
    pq.write_table(table.set_column(place, kind, pa.array(pictures, kind.type)), path)


def _png_of_text(root: Path) -> None:
    path = min((root / "LLaVA-Pretrain/images").rglob("*.jpg"))
    replace(path, b"not found")


def _away(place: str) -> Callable[[Path], None]:
    def take(root: Path) -> None:
        path = root / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return take


DAMAGES = {
    "no json": ("llava_pretrain", _away("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"), "no blip_laion"),
    "cut json": (
        "llava_mix", lambda root: cut(root / "LLaVA-Instruct/llava_v1_5_mix665k.json"), "is not JSON"
    ),
    "no images": ("llava_pretrain", _away("LLaVA-Pretrain/images"), "4 of 4 pictures are not there"),
    "a page as picture": ("llava_pretrain", _png_of_text, "is not a picture"),
    "no ocr_vqa": ("llava_mix", _away("LLaVA-Instruct/ocr_vqa"), "ocr_vqa/images: 2 of 2 pictures"),
    "no json of 1M": ("open_next_mix", _away("Open-LLaVA-NeXT/open-llava-next"), "no open-llava-next_in"),
    "no sam": ("open_next_mix", _away("Open-LLaVA-NeXT/sam"), "sam/images: 1 of 1 pictures are not there"),
    "no rows": ("next_mix", _away("LLaVA-NeXT-Data/data"), "has no parquet files, and none in data"),
    "a part of the rows": (
        "next_mix", _away("LLaVA-NeXT-Data/data/train-00001-of-00002.parquet"), "1 of 2 files are there"
    ),
    "rows of names": ("next_mix", lambda root: _first_rows(root, None), "row 0 does not hold its picture"),
    "a page in a row": (
        "next_mix", lambda root: _first_rows(root, b"<html>"), "row 0 holds what is not a picture"
    ),
    "a turn without value": ("llava_mix", _turn_without_value, "record 3 has a turn without from and value"),
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


def test_a_few_missing_pictures_of_many_are_no_fault(tmp_path):
    """As the trainer: up to one in a hundred may be missing."""
    folder = tmp_path / "LLaVA-Pretrain"
    (folder / "images").mkdir(parents=True)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    records = [{"id": str(i), "image": f"{i}.jpg", "conversations": turns} for i in range(100)]
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    for i in range(1, 100):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{i}.jpg")
    assert see(tmp_path, "llava_pretrain").is_fine
    (folder / "images" / "1.jpg").unlink()
    assert "2 of 100 pictures are not there" in see(tmp_path, "llava_pretrain").faults[0]


def test_a_picture_too_large_to_open_is_a_fault_and_no_traceback(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "big.png")
    (fault,) = headers.opens(tmp_path / "big.png")
    assert "big.png is not a picture: Image size (400000000 pixels)" in fault
