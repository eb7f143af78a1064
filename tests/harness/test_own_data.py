"""One's own pictures, in folders or shards, through the generation suite; what cannot be read is named."""

import importlib
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from encoder.data.shards import read_samples
from encoder.runtime.config import ConfigError
from harness.command_line import make_plans
from harness.config import parse
from harness.own_data import OwnDataConfig, list_source, run
from harness.running.stages import Graph

COLOURS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}


def picture(name, seed, size=(40, 30)):
    """A patch of the class's colour on noise."""
    noise = np.random.RandomState(seed).randint(0, 80, (size[1], size[0], 3), dtype=np.uint8)
    noise[8:22, 8:22] = COLOURS[name]
    return Image.fromarray(noise)


@pytest.fixture
def folder(tmp_path):
    """60 pictures in three classes, every other one with a caption."""
    for number, name in enumerate(COLOURS):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(20):
            path = tmp_path / "mine" / name / f"{index}.png"
            picture(name, 100 * number + index).save(path)
            if index % 2:
                path.with_suffix(".txt").write_text(f"an old {name}, number {index}\n")
    return tmp_path / "mine"


def config(source, **options):
    listing = list_source(str(source)).digest
    return OwnDataConfig(**{"source": str(source), "listing": listing, "image_size": 16, **options})


def bomb():
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_folders_become_shards_with_classes_and_captions(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    result = run(config(folder, test_fraction=0.3), out)
    samples = {split: list(read_samples(out, split)) for split in ("train", "test")}
    assert (len(samples["train"]), len(samples["test"])) == (result["train"], result["test"])
    assert result["train"] + result["test"] == 60
    assert result["test"] in range(8, 30)  # 18 expected
    for sample in (*samples["train"], *samples["test"]):
        assert sample.pixels.shape == (16, 16, 3)
        name = sample.record["class_name"]
        assert sample.record["label"] == list(COLOURS).index(name)
        assert sample.pixels[7, 5].tolist() == pytest.approx(COLOURS[name], abs=3)  # the middle was kept
        assert sample.record["txt"] == name or sample.record["txt"].startswith(f"an old {name}, number")
    assert list(tmp_path.glob("out/*/.*.tmp")) == []
    bytes_before = [path.read_bytes() for path in sorted(out.glob("*/*.tar"))]
    run(config(folder, test_fraction=0.3), out)
    assert [path.read_bytes() for path in sorted(out.glob("*/*.tar"))] == bytes_before


def test_shards_of_ones_own_are_taken_as_they_are_split(tmp_path):
    for split, number in (("train", 6), ("test", 4)):
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for index in range(number):
                buffer = io.BytesIO()
                picture("bee", index).save(buffer, "PNG")
                record = json.dumps({"label": index % 2, "class_name": f"c{index % 2}"}).encode()
                for suffix, data in (("png", buffer.getvalue()), ("txt", b"a bee"), ("json", record)):
                    member = tarfile.TarInfo(f"k{index}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    out = tmp_path / "out"
    out.mkdir()
    assert run(config(tmp_path / "shards", num_classes=2), out)["num_classes"] == 2
    assert [sample.record["txt"] for sample in read_samples(out, "test")] == ["a bee"] * 4
    with pytest.raises(ValueError, match=r"label must be an integer below own_data.num_classes=1, got 1"):
        run(config(tmp_path / "shards", num_classes=1), out)


def test_broken_pictures_and_bombs_are_named_and_skipped_up_to_a_fraction(folder, tmp_path):
    (folder / "ant" / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "ant" / "bomb.png").write_bytes(bomb())
    out = tmp_path / "out"
    out.mkdir()
    assert run(config(folder, max_bad_fraction=0.1), out)["num_skipped"] == 2
    skipped = (out / "skipped.txt").read_text()
    assert len(skipped.splitlines()) == 2
    assert "broken.png" in skipped
    assert "bomb.png" in skipped
    with pytest.raises(
        ValueError, match=r"2 of 62 pictures are unusable, more than the allowed 1.00%.*skipped.txt"
    ):
        run(config(folder), out)


def test_what_is_no_data_is_refused_before_anything_runs(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_source(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no pictures"):
        list_source(str(tmp_path / "empty"))
    before = list_source(str(folder)).digest
    picture("ant", 999).save(folder / "ant" / "new.png")
    assert list_source(str(folder)).digest != before


def planned(tmp_path, *words):
    options, preset = parse([f"runs_dir={tmp_path / 'runs'}", "suite=generation", *words])
    graph = Graph(options.runs_dir)
    (plan,) = make_plans(graph, options, preset)
    return graph, plan


def test_own_pictures_go_through_the_generation_suite_with_no_scenes(folder, tmp_path):
    words = [f"own_data.source={folder}", "own_data.test_fraction=0.45", "own_data.image_size=32"]
    words += ["encoders=[module:examples.own_encoder:PatchColours]", "reference.num_samples=10"]
    words += ["reference.kernel_subset_size=5", "score.kernel_subset_size=5", "rae.train.num_steps=2"]
    words += ["rae.train.batch_size=4", "rae.generate.num_steps=2"]
    graph, plan = planned(tmp_path, *words)
    names = [stage.name for stage in graph]
    assert "own_data" in names
    assert "scenes" not in names
    results = {}
    for stage in graph:
        stage.folder.mkdir(parents=True)
        module = importlib.import_module(stage.module)
        act = module.train if stage.name == "rae_train" else module.run
        results[stage.label] = act(stage.config, stage.folder)
    name = "module:examples.own_encoder:PatchColours"
    assert next(stage for stage in graph if stage.name == "rae_train").config.num_classes == 3
    for kind in ("reconstruction", "generation"):
        metrics = results[f"{name}: score the {kind}"]["metrics"]
        scored = [part for part in plan.rows[0].parts if part.stage.name == "score"]
        (part,) = [part for part in scored if part.stage.config.kind == kind]
        assert tuple(metrics) == part.keys
    rebuilt = results[f"{name}: score the reconstruction"]["metrics"]
    assert rebuilt["PSNR"]["value"] > 15


def test_a_plan_with_own_shards_must_know_the_number_of_classes(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"own_data needs own_data.source"):
        planned(tmp_path, "own_data.image_size=32")
    with pytest.raises(ConfigError, match=r"own_data.num_classes is 5; the folder has 3"):
        planned(tmp_path, f"own_data.source={folder}", "own_data.num_classes=5")
    with pytest.raises(ConfigError, match="unknown key 'imagesize'"):
        planned(tmp_path, f"own_data.source={folder}", "own_data.imagesize=5")
    with pytest.raises(ConfigError, match=r"own_data: 'listing' is filled in by the harness"):
        planned(tmp_path, f"own_data.source={folder}", "own_data.listing=mine")


@pytest.mark.parametrize(
    ("record", "text"),
    [({"caption": float("nan"), "re_caption": "a dog."}, "a dog."), ({"caption": ["a cup"]}, "a cup")],
)
def test_the_text_of_ones_own_shards_is_the_caption_that_training_takes(tmp_path, record, text):
    buffer = io.BytesIO()
    picture("ant", 0).save(buffer, "PNG")
    for split in ("train", "test"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for suffix, data in (
                ("png", buffer.getvalue()),
                ("json", json.dumps(record | {"label": 0}).encode()),
            ):
                member = tarfile.TarInfo(f"a.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (tmp_path / "out").mkdir()
    run(config(tmp_path / "shards", image_size=16, num_classes=1), tmp_path / "out")
    assert [sample.record["txt"] for sample in read_samples(tmp_path / "out", "train")] == [text]


def test_odd_records_of_ones_own_shards_are_counted_and_long_names_kept(tmp_path):
    records = [{"label": index % 2} for index in range(8)]
    records += [{}, {"label": None}, {"label": True}, {"label": 9}, {"label": 0, "class_name": ["a"]}]
    for split in ("train", "test"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for index, record in enumerate(records):
                buffer = io.BytesIO()
                picture("bee", index).save(buffer, "PNG")
                key = "k" * 150 + str(index)
                data = {"png": buffer.getvalue(), "txt": b"a bee", "json": json.dumps(record).encode()}
                for suffix, content in data.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    out = tmp_path / "out"
    out.mkdir()
    done = run(config(tmp_path / "shards", num_classes=2, max_bad_fraction=0.5), out)
    assert (done["train"], done["test"], done["num_skipped"]) == (8, 8, 10)
    assert len((out / "skipped.txt").read_text().splitlines()) == 10
    assert [len(sample.key) for sample in read_samples(out, "test")] == [151] * 8


def test_a_caption_with_a_byte_order_mark_is_read_without_it(folder, tmp_path):
    for path in folder.glob("*/*.png"):
        path.with_suffix(".txt").write_text("\ufeffein Käfer", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    run(config(folder), out)
    assert {sample.record["txt"] for sample in read_samples(out, "test")} == {"ein Käfer"}
