"""The sampling and reconstruction stages: balanced, repeatable, resumable, independent of the batch size."""

import io
import itertools
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from encoder.data.picture_set import load_pictures
from encoder.data.shards import load_images
from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from encoder.token_store import TokenStore
from rae_bridge import draw, reconstruct
from rae_bridge import generate as stage
from rae_bridge.codec import Codec, load_codec, load_for_generation, to_images
from rae_bridge.config import GenerateConfig, GuidanceConfig, ReconstructConfig
from rae_bridge.latents import to_latents

CLASSES = 3


@pytest.fixture
def config(tmp_path, invertible, write_model) -> GenerateConfig:
    model = write_model(tmp_path / "model", invertible)
    return GenerateConfig(model=str(model), encoder=invertible, num_samples=8, num_steps=4, batch_size=3)


def run(config, folder):
    folder.mkdir()
    result = stage.run(config, folder)
    with np.load(folder / "samples.npz") as archive:
        return result, archive["arr_0"], archive["labels"]


def test_samples_are_balanced_in_adms_layout_and_follow_the_plain_loop(config, tmp_path, invertible):
    result, images, labels = run(config, tmp_path / "out")
    assert images.shape == (8, 8, 8, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert result["num_samples"] == 8
    flow, encoder = stage.TrainedFlow.load(config.model), load_for_generation(invertible)
    times = [2 * (1 - i / 4) / (1 + (1 - i / 4)) for i in range(5)]  # shift 2
    for i in (0, 5):
        x = torch.randn(48, 2, 2, generator=checkpoint.step_generator(0, i, "sample"))[None]
        for t, after in itertools.pairwise(times):
            x = x + (after - t) * flow.model(x, torch.tensor([t]), torch.tensor([labels[i]]))
        tokens = (x * (0.2 + 1e-5) ** 0.5 + 0.1).flatten(2).mT
        expected = (encoder.decode(tokens)[0].permute(1, 2, 0) * 255).round()
        assert np.abs(images[i] - expected.numpy()).max() <= 1  # rounding


def test_the_tokens_that_are_kept_are_those_that_were_decoded(config, tmp_path, invertible):
    _, plain, _ = run(config, tmp_path / "plain")
    _, images, labels = run(replace(config, keeps_tokens=True), tmp_path / "kept")
    assert np.array_equal(images, plain)
    store, encoder = TokenStore(tmp_path / "kept" / "tokens"), load_for_generation(invertible)
    assert store.labels.tolist() == labels.tolist()
    assert store.origin["fingerprint"] == encoder.fingerprint
    again = to_images(encoder.decode(store.rows(torch.arange(8)).float()), "round").numpy()
    assert np.abs(again.astype(int) - images).max() <= 1  # half precision
    assert not (tmp_path / "plain" / "tokens").exists()


def test_many_tokens_are_kept_in_shards_of_whole_batches(config, tmp_path, monkeypatch):
    config = replace(config, keeps_tokens=True)
    run(config, tmp_path / "one")
    assert (tmp_path / "one" / "tokens" / "tokens.safetensors").is_file()
    monkeypatch.setattr(stage, "SHARD_BYTES", 6 * 4 * 48 * 2)  # six pictures' in half precision: two batches
    run(config, tmp_path / "many")
    one, many = (TokenStore(tmp_path / name / "tokens") for name in ("one", "many"))
    assert many.about["shards"] == [6, 2] and many.keys == one.keys
    assert torch.equal(many.labels, one.labels)
    assert torch.equal(many.rows(torch.arange(8)), one.rows(torch.arange(8)))


def test_batches_of_another_guidance_than_the_sweeps_are_not_mixed_in(config, tmp_path, monkeypatch):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    guidance = {"kind": "cfg", "scale": 2.0, "interval": [0.0, 1.0], "model": None}
    write_json(sweep / "best.json", guidance)
    config = replace(config, guidance_from=str(sweep))
    whole = run(config, tmp_path / "whole")[1]
    original = stage.tokens_from_noise

    def killed(flow, noise, *others):
        if len(noise) == 2:  # the last batch
            raise KeyboardInterrupt
        return original(flow, noise, *others)

    monkeypatch.setattr(stage, "tokens_from_noise", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    monkeypatch.setattr(stage, "tokens_from_noise", original)
    write_json(sweep / "best.json", guidance | {"scale": 3.0})
    with pytest.raises(ValueError, match=r"drawn with .*scale=2\.0.* says .*scale=3\.0.*delete that folder"):
        stage.run(config, tmp_path / "cut")
    write_json(sweep / "best.json", guidance)
    stage.run(config, tmp_path / "cut")
    with np.load(tmp_path / "cut" / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], whole)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_pictures_do_not_depend_on_the_batch_size(config, tmp_path, batch_size):
    _, images, _ = run(config, tmp_path / "three")
    _, others, _ = run(replace(config, batch_size=batch_size), tmp_path / "other")
    difference = np.abs(images.astype(int) - others.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # matrix products round by their shape


def test_more_samples_begin_with_the_same_ones_and_another_seed_gives_others(config, tmp_path):
    _, images, _ = run(config, tmp_path / "eight")
    _, more, _ = run(replace(config, num_samples=12), tmp_path / "twelve")
    assert np.abs(more[:6].astype(int) - images[:6].astype(int)).max() == 0  # the same batches
    _, others, _ = run(replace(config, seed=1), tmp_path / "seed")
    assert np.abs(others.astype(int) - images.astype(int)).mean() > 1


def test_an_interrupted_run_goes_on_where_it_stopped(config, tmp_path, monkeypatch):
    _, whole, _ = run(config, tmp_path / "whole")
    original, drawn = stage.tokens_from_noise, []

    def counted(flow, noise, y, config, guidance, inner_noise):
        drawn.append(len(noise))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(flow, noise, y, config, guidance, inner_noise)

    monkeypatch.setattr(stage, "tokens_from_noise", counted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    stage.run(config, tmp_path / "cut")
    with np.load(tmp_path / "cut" / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], whole)
    assert drawn == [3, 3, 2, 2]  # the first two batches were kept
    assert not (tmp_path / "cut" / "parts").exists()


def test_samples_as_shards_and_as_a_stream_are_those_of_the_file(config, tmp_path):
    _, images, labels = run(config, tmp_path / "npz")
    (tmp_path / "shards").mkdir()
    stage.run(replace(config, output="shards", shard_size=5), tmp_path / "shards")
    found = []
    for name in ("00000.tar", "00001.tar"):
        with tarfile.open(tmp_path / "shards" / name) as shard:
            members = shard.getmembers()
            for picture, label in zip(members[::2], members[1::2], strict=True):
                assert picture.name.endswith(".png") and label.name.endswith(".cls")
                content = np.array(Image.open(shard.extractfile(picture)))
                found.append((content, int(shard.extractfile(label).read())))
    assert [label for _, label in found] == labels.tolist()
    assert np.array_equal(np.stack([content for content, _ in found]), images)
    flow, codec = stage.TrainedFlow.load(config.model), load_codec(config.encoder)
    stream = [
        dict(stage.stream_samples(flow, codec, config, None, stage.Ranks(rank, 2, "cpu")))
        for rank in range(2)
    ]
    assert sorted(part.start for some in stream for part in some) == [0, 3, 6]
    for part, content in (stream[0] | stream[1]).items():
        assert np.array_equal(content.numpy(), images[part.start : part.stop])


def test_guidance_is_built_from_folders_and_refused_where_it_cannot_be(
    config, tmp_path, invertible, write_model
):
    weaker = write_model(tmp_path / "weaker", invertible, seed=1)
    plain = run(config, tmp_path / "plain")[1]
    for name, guidance in (
        ("cfg", GuidanceConfig(kind="cfg", scale=2.0)),
        ("autoguidance", GuidanceConfig(kind="autoguidance", scale=2.0, model=str(weaker))),
    ):
        images = run(replace(config, guidance=guidance), tmp_path / name)[1]
        assert not np.array_equal(images, plain)
    single = write_model(tmp_path / "single", invertible, class_dropout_prob=0.0)
    cfg = replace(config, model=str(single), guidance=GuidanceConfig(kind="cfg", scale=2.0))
    with pytest.raises(ValueError, match="no null class"):
        run(cfg, tmp_path / "refused")
    with pytest.raises(ValueError, match="needs the weaker model"):
        GuidanceConfig(kind="autoguidance", scale=2.0)
    with pytest.raises(ValueError, match="must be even for heun"):
        replace(config, solver="heun", num_steps=5)


def test_a_model_of_other_tokens_or_no_model_is_refused(config, tmp_path, blind_to_pixels):
    with pytest.raises(ValueError, match="cannot decode; train a pixel decoder"):
        run(replace(config, encoder=blind_to_pixels), tmp_path / "out")
    origin = json.loads((tmp_path / "model" / "tokens.json").read_text())
    write_json(tmp_path / "model" / "tokens.json", origin | {"fingerprint": "0" * 64})
    with pytest.raises(
        ValueError, match=r"model knows tokens of patches \(last, 000000000000\), the encoder gives"
    ):
        run(config, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="lacks"):
        run(replace(config, model=str(tmp_path)), tmp_path / "none")


@pytest.mark.parametrize(
    ("rounding", "expected"), [("round", [0, 1, 128, 255]), ("truncate", [0, 0, 127, 255])]
)
def test_pixels_become_bytes(rounding, expected):
    pixels = torch.tensor([-0.2, 0.9 / 255, 127.6 / 255, 1.3]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert to_images(pixels, rounding)[0, 0, :, 0].tolist() == expected


def test_reconstructions_and_originals_lie_in_the_same_order(tmp_path, pictures, invertible):
    config = ReconstructConfig(encoder=invertible, data=str(pictures), split="train", limit=7, batch_size=3)
    (tmp_path / "out").mkdir()
    assert reconstruct.run(config, tmp_path / "out")["num_samples"] == 7
    archives = [np.load(tmp_path / "out" / f"{name}.npz") for name in ("reconstructions", "originals")]
    originals, records = load_images(pictures, "train", 7)
    assert np.array_equal(archives[1]["arr_0"], originals)
    assert np.array_equal(
        archives[0]["arr_0"], originals
    )  # a rotation and its inverse lose nothing in 8 bits
    assert archives[0]["labels"].tolist() == [record["label"] for record in records]


def arrays(folder):
    """Reconstructions, originals and labels that a stage left."""
    found = [np.load(folder / f"{name}.npz") for name in ("reconstructions", "originals")]
    assert np.array_equal(found[0]["labels"], found[1]["labels"])
    return [found[0]["arr_0"], found[1]["arr_0"], found[0]["labels"]]


def test_a_killed_reconstruction_goes_on_where_it_stopped(tmp_path, pictures, invertible, monkeypatch):
    config = ReconstructConfig(encoder=invertible, data=str(pictures), split="train", limit=11, batch_size=3)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    reconstruct.run(config, tmp_path / "whole")
    original, made = reconstruct.to_images, []

    def counted(pixels, rounding):
        made.append(len(pixels))
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(pixels, rounding)

    monkeypatch.setattr(reconstruct, "to_images", counted)
    with pytest.raises(KeyboardInterrupt):
        reconstruct.run(config, tmp_path / "cut")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["parts", "progress.json"]
    reconstruct.run(config, tmp_path / "cut")
    assert made == [3, 3, 3, 3, 2]  # the first two batches were kept
    for whole, cut in zip(arrays(tmp_path / "whole"), arrays(tmp_path / "cut"), strict=True):
        assert np.array_equal(whole, cut)
    assert not (tmp_path / "cut" / "parts").exists()


def test_the_next_picture_stands_for_an_unusable_one_as_in_the_reference(
    tmp_path, invertible, write_pictures
):
    write_pictures(tmp_path / "set" / "test", 120, seed=0)
    tar = tmp_path / "set" / "test" / "00000.tar"
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as shard:
        start = shard.getmember("00004.png").offset_data
    content[start : start + 8] = b"no image"
    tar.write_bytes(content)
    (tmp_path / "out").mkdir()
    config = ReconstructConfig(encoder=invertible, data=str(tmp_path / "set"), limit=110, batch_size=25)
    assert reconstruct.run(config, tmp_path / "out")["num_samples"] == 110
    _, originals, labels = arrays(tmp_path / "out")
    real, records = load_pictures(tmp_path / "set", "test", 110)  # what harness.metrics.reference reads
    assert np.array_equal(originals, real) and records[4]["key"] == "00005"
    assert labels.tolist() == [record["label"] for record in records]
    with pytest.raises(ValueError, match="1 of 6 pictures are unusable"):
        reconstruct.run(replace(config, limit=5), tmp_path / "out")
    with pytest.raises(ValueError, match="limit 0 must be 1 or more"):
        replace(config, limit=0)


def test_shards_of_classes_are_reconstructed_as_the_reference_reads_them(tmp_path, invertible):
    """ImageNet in shards of pictures and classes: cut as ADM does, without any text."""
    (tmp_path / "set" / "val").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "set" / "val" / "0.tar", "w") as shard:
        for i in range(5):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (9 + i, 20, 3), dtype=np.uint8)).save(file, "png")
            for suffix, data in (("png", file.getvalue()), ("cls", str(i % 3).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    (tmp_path / "out").mkdir()
    config = ReconstructConfig(encoder=invertible, data=str(tmp_path / "set"), split="val", batch_size=2)
    assert reconstruct.run(config, tmp_path / "out")["num_samples"] == 5
    _, originals, labels = arrays(tmp_path / "out")
    assert np.array_equal(originals, load_pictures(tmp_path / "set", "val", image_size=8)[0])
    assert labels.tolist() == [0, 1, 2, 0, 1]


def test_a_picture_in_one_command(config, tmp_path, invertible, capsys):
    words = [
        "--model",
        config.model,
        "--classes",
        "0",
        "2",
        "--columns",
        "5",
        "--steps",
        "2",
        "--encoder",
        invertible,
    ]
    draw.draw_grid(draw.parse_arguments([*words, "--out", str(tmp_path / "grid.png"), "--scale", "1.5"]))
    assert Image.open(tmp_path / "grid.png").size == (5 * 8, 2 * 8)
    with pytest.raises(ValueError, match="classes must be from 0 to 2"):
        draw.draw_grid(draw.parse_arguments([*words, "--classes", "3", "--out", "unused.png"]))
    with pytest.raises(ValueError, match=r"--guide .*young does nothing at --scale 1"):
        draw.draw_grid(draw.parse_arguments([*words, "--guide", "young", "--out", "unused.png"]))


def test_codec_of_an_encoder_that_decodes_is_its_own(invertible):
    codec = load_codec(invertible)
    assert isinstance(codec, Codec) and codec.decoder is None and codec.image_size == 8
    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), pixels, rtol=1e-5, atol=1e-5)
    assert to_latents(codec.encode(pixels), 2).shape == (2, 48, 2, 2)


def test_pictures_are_brought_to_the_size_that_is_asked_for(config, tmp_path):
    """As a decoder of 224 px is judged at 256: each is the plain picture, resized before it is rounded."""
    _, plain, _ = run(config, tmp_path / "plain")
    result, larger, _ = run(replace(config, image_size=20), tmp_path / "larger")
    assert (result["image_size"], larger.shape) == (20, (8, 20, 20, 3))
    pixels = torch.from_numpy(plain).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, (20, 20), mode="bicubic", antialias=True).clamp(0, 255)
    assert (resized.permute(0, 2, 3, 1) - larger).abs().max() <= 2.5  # bicubic weights add up to under 2
