"""The stage that writes every picture's tokens once."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.load import load_encoder
from encoder.models.clip import Clip
from encoder.models.shapes import ClipShape, ViTShape
from encoder.options import TokensConfig
from encoder.runtime.checkpoint import load_tensors
from encoder.runtime.config import load
from encoder.tokens import TokenFile, run


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


def write_shards(folder, count: int) -> None:
    (folder / "val").mkdir(parents=True)
    with tarfile.open(folder / "val" / "00000.tar", "w") as tar:
        for index in range(count):
            record = json.dumps({"label": index % 3, "org_caption": "a"}).encode()
            for suffix, data in (("png", png(picture(index))), ("txt", b"a"), ("json", record)):
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


@pytest.mark.parametrize("shape", [(4, 8), (3, 1)])  # 3 x 1 in fp16: labels do not start at a multiple of 8
def test_a_file_written_in_parts_is_the_one_that_safetensors_reads(tmp_path, shape):
    tokens = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)).half()
    with TokenFile(tmp_path / "tokens.safetensors") as file:
        for part in tokens.split(2):
            file.add(part)
        with pytest.raises(ValueError, match=r"tokens of a picture are \(2, 2\), before"):
            file.add(torch.zeros(1, 2, 2).half())
        file.finish([3, -1, 0, 7, 2])
    content = load_tensors(tmp_path / "tokens.safetensors")
    assert torch.equal(content["tokens"], tokens)
    assert content["labels"].tolist() == [3, -1, 0, 7, 2] and content["labels"].dtype == torch.int64


def test_an_unfinished_file_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenFile(tmp_path / "tokens.safetensors") as file:
        file.add(torch.zeros(1, 4, 8).half())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
