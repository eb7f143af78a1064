"""The stages of text in place of classes: captions, training, pictures of prompts, others' layouts."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.runtime import checkpoint
from encoder.runtime.stage import write_json
from rae_bridge import draw
from rae_bridge.codec import load_for_generation, origin_of
from rae_bridge.config import DiTOptimConfig, DiTSize
from rae_bridge.text import encode, generate, train
from rae_bridge.text.bank import Captions
from rae_bridge.text.config import EncodeTextConfig, GenerateTextConfig, TrainTextConfig
from rae_bridge.text.layouts import read_prompts, write_dpg, write_geneval
from rae_bridge.text.weights import TextWeights
from rae_bridge.weights_folder import STATISTICS_FILE
from tests.rae_bridge.conftest import write_random_model
from tests.rae_bridge.text_worlds import write_text_encoder

NUM = 24
SIZE = DiTSize(hidden_size=(16, 16), depth=(1, 1), num_heads=(2, 2))
COLORS, KINDS = ("red", "blue", "green"), ("cup", "ball")


@pytest.fixture
def folder(tmp_path, invertible):
    """A text encoder, a shard of captions, their pictures' tokens, whose mean says the colour."""
    write_text_encoder(tmp_path / "llama", "llama")
    (tmp_path / "data" / "train").mkdir(parents=True)
    with tarfile.open(tmp_path / "data" / "train" / "00000.tar", "w") as shard:
        for i in range(NUM):
            short = f"{COLORS[i % 3]} {KINDS[i % 2]}"
            record = {"org_caption": short, "re_caption": f"the {short} is left of a fish", "label": 0}
            for suffix, content in (("json", json.dumps(record).encode()), ("txt", short.encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    tokens = torch.randn(NUM, 4, 48, generator=torch.Generator().manual_seed(0)) * 0.1
    numbers = torch.arange(NUM).flip(0)  # in another order than the captions
    tokens += (numbers % 3)[:, None, None] - 1.0
    held = {"tokens": tokens.half(), "labels": torch.full((NUM,), -1)}  # they need no classes
    (tmp_path / "tokens").mkdir()
    checkpoint.save_tensors(tmp_path / "tokens" / "tokens.safetensors", held)
    about = origin_of(load_for_generation(invertible))
    keys = [f"{i:05d}" for i in numbers.tolist()]
    write_json(tmp_path / "tokens" / "index.json", {**about, "keys": keys})
    config = EncodeTextConfig(text_encoder=str(tmp_path / "llama"), data=str(tmp_path / "data"), batch_size=5)
    (tmp_path / "captions").mkdir()
    encode.run(config, tmp_path / "captions")
    return tmp_path


@pytest.fixture
def config(folder):
    return TrainTextConfig(
        tokens=str(folder / "tokens"), captions=str(folder / "captions"), num_steps=6, batch_size=8,
        size=SIZE, optim=DiTOptimConfig(lr=1e-3), checkpoint_steps=3, log_steps=2, ema_decay=0.5,
    )  # fmt: skip


def trained(config, out_dir):
    out_dir.mkdir(exist_ok=True)
    return train.train(config, out_dir)


def test_captions_are_kept_once_and_found_by_the_pictures_keys(folder):
    captions = Captions.load(folder / "captions")
    assert captions.bank.null == 12  # six short ones and six dense ones, whatever the number of pictures
    short, dense = captions.of(["00003", "00002"])
    assert short.tolist() == [captions.short[3], captions.short[2]]
    lengths = captions.bank.take(torch.cat([short, dense])).mask.sum(dim=1)
    assert lengths.tolist() == [2, 2, 8, 8]
    with pytest.raises(ValueError, match="no caption for 1 of 2 pictures, such as 99999"):
        captions.of(["00001", "99999"])


def test_the_first_half_of_a_batch_is_told_short_captions_of_its_own_pictures(config):
    cache, captions = train.open_pair(config.tokens, config.captions)
    latents, y = cache.rows(config, slice(0, 8), 0)
    again = cache.rows(config, slice(4, 8), 0)  # what the second of two processes reads
    assert torch.equal(again[0], latents[4:]) and torch.equal(again[1], y[4:])
    lengths = captions.bank.take(y).mask.sum(dim=1)
    assert lengths.tolist() == [2] * 4 + [8] * 4
    red, green = (captions.bank.take(captions.short[i : i + 1]).tokens[0, 0] for i in (0, 2))
    for picture, text in zip(latents[:4], captions.bank.take(y[:4]).tokens[:, 0], strict=True):
        color = round(picture.mean().item())  # -1 red, 0 blue, 1 green
        assert torch.equal(text, red) == (color == -1) and torch.equal(text, green) == (color == 1)


@pytest.mark.parametrize("conditioning", ["tokens", "pooled"])
def test_a_resumed_training_is_the_uninterrupted_one(config, tmp_path, monkeypatch, conditioning):
    config = replace(config, conditioning=conditioning, micro_batch_size=4)
    whole = trained(config, tmp_path / "whole")
    save, path = train.Run.save, tmp_path / "cut"

    def save_and_die(self, step, seconds):
        save(self, step, seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        trained(config, path)
    monkeypatch.undo()
    resumed = trained(config, path)
    ours, theirs = (TextWeights.read(folder / "weights").weights() for folder in (path, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed["loss"] == whole["loss"] and set(whole["text_losses"]["0.5"]) == {"true", "wrong", "null"}
    assert "DiT loss/t=0.5/wrong" in whole["metrics"]


def test_it_learns_what_its_text_says(config, tmp_path):
    """What a picture's tokens are is its colour: told another text, the loss is worse."""
    config = replace(config, num_steps=150, batch_size=24, optim=DiTOptimConfig(lr=5e-3), ema_decay=0.9)
    losses = trained(config, tmp_path / "out")["text_losses"]["0.9"]
    assert losses["true"] < 0.8 * min(losses["wrong"], losses["null"])


def test_it_begins_from_a_class_conditional_model_and_goes_on_from_a_told_one(config, tmp_path, invertible):
    classes = write_random_model(tmp_path / "classes", invertible)
    config = replace(config, init=str(classes))
    cache, captions = train.open_pair(config.tokens, config.captions)
    model, statistics = train.begin(config, cache, captions)
    assert torch.equal(
        model.base, generate.TrainedFlow.load(classes).model.y_embedder.embedding_table.weight[3]
    )
    kept = torch.load(classes / STATISTICS_FILE)["mean"]
    assert torch.equal(statistics.mean, kept)
    trained(config, tmp_path / "first")
    again = replace(config, init=str(tmp_path / "first" / "weights"))
    model, _ = train.begin(again, cache, captions)
    assert torch.equal(model.base, TextWeights.read(again.init).weights()["base"])
    with pytest.raises(ValueError, match="is another: depth"):
        train.begin(replace(config, size=replace(SIZE, depth=(2, 1))), cache, captions)
    with pytest.raises(ValueError, match="which is told no text"):
        TextWeights.read(classes)


@pytest.fixture
def model(config, tmp_path, folder):
    trained(replace(config, keep_steps=(2,)), tmp_path / "trained")
    assert (train.kept_weights(tmp_path / "trained", 2) / "text.json").is_file()
    return tmp_path / "trained" / "weights"


@pytest.fixture
def sampling(model, tmp_path, invertible):
    lines = [{"prompt": "a red cup", "tag": "colors"}, {"prompt": "a blue ball", "tag": "two"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    guidance = {"kind": "cfg", "scale": 2.0}
    return GenerateTextConfig(
        model=str(model), encoder=invertible, prompts=str(tmp_path / "prompts.jsonl"), num_steps=2,
        batch_size=3, num_images=4, guidance=generate.GuidanceConfig(**guidance),
    )  # fmt: skip


def drawn(config, out_dir):
    out_dir.mkdir(exist_ok=True)
    return generate.run(config, out_dir)


def test_a_picture_depends_on_its_prompt_number_and_seed_alone(sampling, tmp_path):
    result = drawn(sampling, tmp_path / "a")
    assert result["num_samples"] == 8 and result["guidance"]["scale"] == 2
    first = np.load(tmp_path / "a" / "samples.npz")
    assert first["labels"].tolist() == [0] * 4 + [1] * 4 and first["arr_0"].shape == (8, 8, 8, 3)
    records = [json.loads(line) for line in (tmp_path / "a" / "prompts.jsonl").read_text().splitlines()]
    assert [record["tag"] for record in records] == ["colors", "two"]
    drawn(replace(sampling, batch_size=8), tmp_path / "b")
    assert np.abs(np.load(tmp_path / "b" / "samples.npz")["arr_0"] - first["arr_0"].astype(int)).max() <= 1
    drawn(replace(sampling, seed=1), tmp_path / "c")
    assert not np.array_equal(np.load(tmp_path / "c" / "samples.npz")["arr_0"], first["arr_0"])


def test_another_text_encoder_is_refused(sampling, tmp_path):
    other = write_text_encoder(tmp_path / "other", "llama", seed=1)
    with pytest.raises(ValueError, match=r"knows texts of .*these are of"):
        drawn(replace(sampling, text_encoder=other), tmp_path / "a")


def test_drawing_a_prompt_gives_the_stages_pictures(sampling, tmp_path, invertible):
    drawn(replace(sampling, num_images=2), tmp_path / "a")
    words = ["--model", sampling.model, "--encoder", invertible, "--steps", "2", "--columns", "2"]
    words += ["--scale", "2", "--out", str(tmp_path / "grid.png"), "--prompt", "a red cup", "a blue ball"]
    draw.draw_grid(draw.parse_arguments(words))
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    one, two, three, four = np.load(tmp_path / "a" / "samples.npz")["arr_0"]
    expected = np.concatenate([np.concatenate([one, two], 1), np.concatenate([three, four], 1)])
    assert np.abs(grid - expected).max() <= 1
    with pytest.raises(ValueError, match="neither --guide"):
        draw.draw_grid(draw.parse_arguments([*words, "--guide", "young"]))
    with pytest.raises(SystemExit):
        draw.parse_arguments([*words, "--classes", "1"])


def read_as_geneval_does(folder):
    """evaluate_images.py: each numbered folder's metadata.jsonl and the pictures of its samples folder."""
    found = []
    for place in sorted(each for each in folder.iterdir() if each.is_dir() and each.name.isdigit()):
        with open(place / "metadata.jsonl") as file:
            metadata = json.load(file)
        names = sorted(each.name for each in (place / "samples").iterdir())
        found.append((metadata, [np.asarray(Image.open(place / "samples" / name)) for name in names]))
    return found


def test_genevals_layout_is_read_back(sampling, tmp_path):
    drawn(sampling, tmp_path / "npz")
    drawn(replace(sampling, output="geneval"), tmp_path / "geneval")
    images = np.load(tmp_path / "npz" / "samples.npz")["arr_0"]
    (first, pictures), (second, others) = read_as_geneval_does(tmp_path / "geneval")
    assert (first["tag"], second["prompt"]) == ("colors", "a blue ball")
    assert np.array_equal(np.stack(pictures + others), images)


def test_dpgs_grids_are_cropped_back(tmp_path):
    (tmp_path / "prompts").mkdir()
    for name in ("COCOval2014000000070471", "diffusiondb18"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"a long prompt\nof {name}")
    prompts = read_prompts(tmp_path / "prompts")
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    write_dpg(tmp_path / "out", prompts, images)
    for prompt, expected in zip(prompts, images.reshape(2, 4, 4, 4, 3), strict=True):
        assert prompt.text == f"a long prompt of {prompt.id}"
        grid = np.asarray(Image.open(tmp_path / "out" / f"{prompt.id}.png"))
        corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
        assert all(np.array_equal(grid[y : y + 4, x : x + 4], each)
                   for (y, x), each in zip(corners, expected, strict=True))  # fmt: skip


def test_prompts_without_a_text_are_refused_by_their_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cup"}\n{"tag": "two"}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON object with a text"):
        read_prompts(path)
    (tmp_path / "lines.txt").write_text("a cup\n\n a ball \n")
    assert [each.text for each in read_prompts(tmp_path / "lines.txt")] == ["a cup", "a ball"]
    with pytest.raises(FileNotFoundError, match="prompts not found"):
        read_prompts(tmp_path / "nothing.txt")
    write_geneval(tmp_path / "g", read_prompts(tmp_path / "lines.txt"), np.zeros((2, 4, 4, 3), np.uint8))
    assert [record["prompt"] for record, _ in read_as_geneval_does(tmp_path / "g")] == ["a cup", "a ball"]
