"""Too little for what is asked: said before anything runs, or once the pictures are packed, by the command
line, with numbers that fit."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from harness.command_line import main, make_plans
from harness.config import parse
from harness.own_data import OwnDataConfig, run
from harness.own_data.enough import EnoughConfig, check_listing
from harness.own_data.enough import run as count
from harness.own_data.listing import Listing
from harness.running.stages import Graph

ENCODER = "encoders=[module:examples.own_encoder:PatchColours]"


def write(folder, number, first=0, size=24):
    """Some pictures of noise, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + number):
        noise = np.random.RandomState(index).randint(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")


@pytest.fixture
def folder(tmp_path):
    """60 pictures in three classes."""
    for number, name in enumerate(("ant", "bee", "cow")):
        write(tmp_path / "mine" / name, 20, 100 * number)
    return tmp_path / "mine"


@pytest.fixture
def ask(tmp_path, capsys):
    """ask(words) -> exit code and the error lines of the command line, and the stages that were begun."""

    def call(*words, suite="generation"):
        places = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results", f"suite={suite}", ENCODER]
        code = main([*places, *words])
        begun = sorted({path.parent.parent.name for path in tmp_path.glob("runs/*/*/log.txt")})
        return code, capsys.readouterr(), begun

    return call


def numbers_that_fit(text):
    """The settings that a message proposes."""
    return re.findall(r"\S+=\d+", text.partition("fit: ")[2])


def small(num, subset=None):
    subset = subset or max(2, num // 2)
    return [
        f"reference.num_samples={num}",
        *(f"{name}.kernel_subset_size={subset}" for name in ("reference", "score")),
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["two sets of reference.num_samples=2000 need 4000 test pictures", "holds 60", "about 12 "]),
        (small(40), ["need 80 test pictures, the folder holds 60", "at least 20 test pictures"]),
        (["reference.num_samples=20"], ["reference.kernel_subset_size=1000 must lie between 2 and", "fit: "]),
        (
            ["reference.num_samples=20", "reference.kernel_subset_size=9"],
            ["score.kernel_subset_size=1000 must"],
        ),
        (small(9), ["reference.num_samples=9: the Inception score", "needs 10 or more"]),
        (small(20, 1), ["kernel_subset_size=1 must lie between 2 and reference.num_samples=20"]),
        (["own_data.image_size=15"], ["own_data.image_size 15 must be 16 or more"]),
        (["own_data.test_fraction=1"], ["own_data.test_fraction 1.0 must lie between 0 and 1"]),
        (["own_data.num_classes=0"], ["own_data.num_classes 0 must be 1 or more"]),
    ],
)
def test_what_cannot_fit_is_said_before_anything_runs(folder, ask, words, parts):
    code, said, begun = ask(f"own_data.source={folder}", *words)
    assert code == 2 and begun == []
    (line,) = said.err.splitlines()
    for part in parts:
        assert part in line


def test_more_classes_than_samples_are_refused(tmp_path, ask):
    for label in range(12):
        write(tmp_path / "many" / f"class {label}", 3, 10 * label)
    code, said, begun = ask(f"own_data.source={tmp_path / 'many'}", *small(10))
    assert code == 2 and begun == []
    assert "reference.num_samples=10 is fewer than the 12 classes" in said.err


def test_a_test_folder_is_counted_and_the_numbers_that_are_proposed_fit(tmp_path, ask):
    write(tmp_path / "split" / "train" / "ant", 30)
    write(tmp_path / "split" / "test" / "ant", 25, 100)
    source = f"own_data.source={tmp_path / 'split'}"
    code, said, _ = ask(source)
    assert code == 2
    assert numbers_that_fit(said.err)[0] == "reference.num_samples=12"  # two sets of 25 pictures
    assert ask("--plan", source, *numbers_that_fit(said.err))[0] == 0


def test_too_few_are_counted_once_packed_and_nothing_is_trained(folder, ask):
    """The folder might have held enough, its split turns out not to."""
    code, said, begun = ask(f"own_data.source={folder}", "own_data.test_fraction=0.5", *small(28))
    assert code == 1
    assert begun == ["own_data", "own_data_enough"]
    assert "need 56 test pictures, the test split holds" in said.out
    assert "these numbers fit: reference.num_samples=1" in said.out  # of about 30 test pictures
    code, said, _ = ask("--plan", f"own_data.source={folder}", "own_data.test_fraction=0.5", *small(12))
    assert code == 0 and "own pictures: are there enough?" in said.out


def test_few_captions_stop_before_tokens(folder, ask):
    """Three classes stand in for the captions; a question takes four."""
    code, said, begun = ask(f"own_data.source={folder}", suite="understanding")
    assert code == 1 and begun == ["own_captions", "own_data"]
    assert "no 4 of the" in said.out and "own_data.test_fraction" in said.out


def test_the_sizes_of_pictures_that_are_not_generated_do_not_stop_understanding(folder, ask):
    assert ask("--plan", f"own_data.source={folder}", suite="understanding")[0] == 0


def test_more_samples_than_scenes_has_are_refused(ask):
    code, said, begun = ask("reference.num_samples=3000")
    assert code == 2 and begun == []
    assert "needs 6000 test pictures, but scenes.num_test is 4000: lower it to 2000" in said.err


def test_a_listing_tells_that_1646_pictures_hold_no_two_sets_of_2000(tmp_path):
    paths = [tmp_path / "one" / f"{index}.png" for index in range(1646)]
    listing = Listing(files={"": paths}, has_shards=False, class_names=("one",), digest="")
    config = EnoughConfig(data="", num_samples=2000, least=10)
    with pytest.raises(ValueError, match="holds 1646, of which about 329 become test pictures") as refused:
        check_listing(listing, config, test_fraction=0.2)
    (fits,) = re.findall(r"fit: reference.num_samples=(\d+)", str(refused.value))
    assert 120 <= int(fits) <= 164  # 329 less three deviations of 16.2, halved
    shards = Listing(files={"train": paths, "test": paths}, has_shards=True, class_names=(), digest="")
    check_listing(shards, config, test_fraction=0.2)


def test_nothing_is_trained_before_the_tokens_could_be_decoded(folder, tmp_path):
    words = [f"own_data.source={folder}", "own_data.test_fraction=0.5", *small(10), ENCODER]
    options, preset = parse([f"runs_dir={tmp_path / 'runs'}", "suite=generation", *words])
    graph = Graph(options.runs_dir)
    make_plans(graph, options, preset)
    by_name = {stage.name: {source.name for source in graph.waits_for(stage)} for stage in graph}
    assert by_name["rae_train"] == {"tokens", "rae_reconstruct"}
    assert by_name["tokens"] == by_name["rae_reconstruct"] == {"own_data", "own_data_enough"}
    assert by_name["own_data_enough"] == {"own_data"}


def test_packed_shards_are_counted_with_one_set_where_statistics_are_published(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"counts": {"train": {"a": 3}, "test": {"a": 8, "b": 3}}}))
    config = EnoughConfig(data=str(tmp_path), num_samples=11, num_sets=1, least=4)
    assert count(config, tmp_path) == {"num_test": 11, "num_needed": 11}
    with pytest.raises(ValueError, match=r"one set of reference.num_samples=12 need 12.*num_samples=11 "):
        count(EnoughConfig(data=str(tmp_path), num_samples=12, num_sets=1, least=4), tmp_path)


def test_a_class_without_a_train_picture_or_an_empty_split_is_named(tmp_path):
    write(tmp_path / "mine" / "ant", 1)
    write(tmp_path / "mine" / "bee", 30, 100)
    for test_fraction in (0.02, 0.98):
        config = OwnDataConfig(
            source=str(tmp_path / "mine"), listing="", image_size=16, test_fraction=test_fraction
        )
        with pytest.raises(ValueError, match=r"test has no picture|class ant has no picture in train"):
            run(config, tmp_path)


def test_a_split_of_ones_own_needs_both_names(tmp_path, ask):
    write(tmp_path / "mine" / "train" / "ant", 3)
    code, said, _ = ask(f"own_data.source={tmp_path / 'mine'}")
    assert code == 2 and "train stands alone: a split of your own needs both names" in said.err
