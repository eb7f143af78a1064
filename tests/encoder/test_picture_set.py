"""ImageNet in the three forms it comes in: same pictures, same classes, cut as ADM cuts them."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from encoder.data.picture_set import are_captioned, centre_crop, load_pictures, open_pictures, place_crop

SIZES = [(40, 30), (17, 64), (130, 33), (32, 32), (64, 70), (33, 31)]  # width, height


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folders(tmp_path, pictures):
    for i, picture in enumerate(pictures):
        place = tmp_path / "folders" / "val" / ("n02", "n01", "n10")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{i}.png")
    return tmp_path / "folders"


def write_parquet(folder, pictures, labels):
    folder.mkdir(parents=True)
    features = Features(image=ImageFeature(), label=ClassLabel(num_classes=3))
    rows = {"image": [{"bytes": png(each), "path": None} for each in pictures], "label": labels}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "validation-00000-of-00001.parquet")


def write_shard(path, pictures, labels, suffix="json"):
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            about = str(label) if suffix == "cls" else json.dumps({"label": label})
            for name, data in ((f"{i:04}.png", png(picture)), (f"{i:04}.{suffix}", about.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def adm_crop(picture: Image.Image, size: int) -> np.ndarray:
    """guided-diffusion's center_crop_arr, written out again."""
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.BOX)
    scale = size / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.BICUBIC)
    array = np.array(picture)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_crop_is_adms(pictures, size):
    for picture in pictures:
        np.testing.assert_array_equal(np.asarray(centre_crop(picture, size)), adm_crop(picture, size))


def test_class_folders_are_numbered_as_torchvision_numbers_them(folders):
    theirs, ours = ImageFolder(folders / "val"), open_pictures(folders, "val")
    assert ours.labels.tolist() == [label for _, label in theirs.samples]
    assert list(ours.class_names) == theirs.classes
    for i in range(len(ours)):
        np.testing.assert_array_equal(
            ours.images([i], 16)[0].numpy(), adm_crop(theirs[i][0].convert("RGB"), 16)
        )


def test_parquet_and_shards_hold_what_the_folders_do(tmp_path, folders, pictures):
    whole = open_pictures(folders, "val")
    in_order = [Image.open(io.BytesIO(whole.read(i))) for i in range(len(whole))]
    labels = whole.labels.tolist()
    write_parquet(tmp_path / "hub" / "data", in_order, labels)
    write_shard(tmp_path / "json" / "val" / "0.tar", in_order, labels)
    write_shard(tmp_path / "cls" / "val" / "0.tar", in_order, labels, "cls")
    for form in ("hub", "json", "cls"):
        other = open_pictures(tmp_path / form, "val", cache=tmp_path / "cache")
        assert other.labels.tolist() == labels
        order = [5, 0, 3]  # any order
        torch.testing.assert_close(other.images(order, 16), whole.images(order, 16), rtol=0, atol=0)


def test_pictures_in_memory_are_the_sets_first(folders):
    images, records = load_pictures(folders, "val", 4, image_size=16)
    whole = open_pictures(folders, "val")
    np.testing.assert_array_equal(images, whole.images(range(4), 16).numpy())
    assert [record["label"] for record in records] == whole.labels[:4].tolist()
    assert records[0]["class_name"] == "n01"
    with pytest.raises(ValueError, match="give image_size"):
        load_pictures(folders, "val")


@pytest.mark.parametrize("suffix", ["json", "cls"])
def test_shards_of_classes_alone_are_cut_as_adm_does(tmp_path, folders, pictures, suffix):
    write_shard(tmp_path / "shards" / "val" / "0.tar", pictures, [2, 0, 1, 2, 0, 1], suffix)
    assert not are_captioned(tmp_path / "shards", "val") and not are_captioned(folders, "val")
    images, records = load_pictures(tmp_path / "shards", "val", 5, image_size=16)
    for image, picture in zip(images, pictures, strict=False):
        assert np.array_equal(image, adm_crop(picture, 16))
    assert [record["label"] for record in records] == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(("members", "is_captioned"), [
    ({"png": b"", "txt": b"a cat", "json": b'{"label": 1}'}, True),
    ({"png": b"", "json": b'{"label": 1, "re_caption": "a cat"}'}, True),
    ({"png": b"", "json": b"no JSON"}, True),  # damaged: the reader of texts counts it
    ({"png": b"", "json": b'{"label": 1}', "cls": b"1"}, False),
])  # fmt: skip
def test_the_first_sample_tells_captions_from_classes(tmp_path, members, is_captioned):
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "0.tar", "w") as tar:
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert are_captioned(tmp_path, "val") == is_captioned


def test_what_cannot_be_read_is_named(tmp_path, folders, pictures):
    with pytest.raises(FileNotFoundError, match=r"no pictures of split train in .*train/<class>/"):
        open_pictures(folders, "train")
    (folders / "val" / "n01" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"picture n01/1\.png: "):
        open_pictures(folders, "val").images([0], 16)
    write_shard(tmp_path / "bad" / "val" / "0.tar", pictures[:1], [None])
    with pytest.raises(ValueError, match=r"0\.tar:0000 has no class"):
        open_pictures(tmp_path / "bad", "val")
    empty = tmp_path / "empty" / "val" / "n01"
    empty.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no pictures .* in the 1 class folders of"):
        open_pictures(tmp_path / "empty", "val")


@pytest.mark.parametrize("suffixes", [("cls", "jpg"), ("json", "png"), ("PNG", "JSON"), ("webp", "cls")])
def test_members_of_a_sample_come_in_any_order_and_with_any_path(tmp_path, suffixes):
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "0.tar", "w") as tar:
        folder = tarfile.TarInfo("./v1.0")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i in range(3):  # as `tar cf 0.tar ./v1.0` writes them, in the order of their names
            for suffix in suffixes:
                about = {"cls": str(i), "json": json.dumps({"label": i})}.get(suffix.lower())
                data = about.encode() if about else png(Image.new("RGB", (4, 4), (i, 0, 0)))
                member = tarfile.TarInfo(f"./v1.0/{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    found = open_pictures(tmp_path, "val")
    assert found.labels.tolist() == [0, 1, 2] and found.names[2] == "0.tar:./v1.0/2"
    assert found.images([2, 0], 4)[:, 0, 0, 0].tolist() == [2, 0]


def test_a_packed_or_cut_off_shard_is_named(tmp_path):
    write_shard(tmp_path / "val" / "0.tar", [Image.new("RGB", (4, 4))], [0])
    whole = (tmp_path / "val" / "0.tar").read_bytes()
    for data in (gzip.compress(whole), whole[:100], whole[:700], b""):
        (tmp_path / "val" / "0.tar").write_bytes(data)
        with pytest.raises(ValueError, match=r"0\.tar"):
            open_pictures(tmp_path, "val")


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.25), (0.999999, 0.999999)])
def test_a_random_crop_is_torchvisions_resize_and_crop(pictures, place):
    """RAE's transform for 32 px: Resize(48), then RandomCrop(32), whose offsets are 0 to what is left."""
    for picture in pictures:
        larger = functional.resize(picture, 48, functional.InterpolationMode.BICUBIC)
        rooms = (larger.height - 32 + 1, larger.width - 32 + 1)
        top, left = (int(at * room) for at, room in zip(place, rooms, strict=True))
        assert (top, left) <= (larger.height - 32, larger.width - 32)
        expected = functional.crop(larger, top, left, 32, 32)
        assert np.array_equal(np.asarray(place_crop(picture, 32, place)), np.asarray(expected))


def test_pictures_are_cut_where_they_are_told(folders):
    found, places = open_pictures(folders, "val"), torch.tensor([[0.9, 0.1], [0.0, 0.6]])
    images = found.images([4, 1], 16, places=places)
    for image, index, place in zip(images, (4, 1), places.tolist(), strict=True):
        picture = Image.open(io.BytesIO(found.read(index)))
        assert np.array_equal(image, np.asarray(place_crop(picture, 16, place)))


def test_a_long_line_is_cut_before_it_is_enlarged():
    line = Image.new("RGB", (3_000_000, 1), "red")
    line.paste((0, 0, 255), (1_499_999, 0, 1_500_001, 1))
    middle = (0.0, (1_500_000 + 0.5) / 3_000_000)
    for square in (centre_crop(line, 32), place_crop(line, 32, middle)):
        assert np.asarray(square).reshape(-1, 3).tolist() == [[0, 0, 255]] * 32 * 32
