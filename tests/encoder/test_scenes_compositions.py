"""Scenes composed otherwise: one object that fills the picture, and pairs that no train picture shows."""

import dataclasses
import hashlib
import itertools
import json
import tarfile
from collections import Counter

import numpy as np
import pytest

from encoder.data.options import HeldOut, ScenesConfig
from encoder.data.scenes import write
from encoder.data.scenes.compose import make_scene, split_of
from encoder.data.scenes.objects import EXTENT, KINDS
from encoder.data.scenes.render import render, visible_fraction
from encoder.data.scenes.text import re_caption
from encoder.data.shards import read_samples
from encoder.runtime.config import ConfigError, load

NONE = dict.fromkeys(
    ("num_val", "num_test", "num_llava_images", "num_text", "num_seed_questions", "num_pope_pairs"), 0
)
OF_CLASS = [make_scene(4, index, "train", "object_centric") for index in range(400)]
HELD = HeldOut(colors={"cat": ["purple", "white"], "boat": ["red"]}, slots={"fish": ["top left"]})


def truths(scenes):
    return [json.dumps(scene.truth(), sort_keys=True) for scene in scenes]


def test_same_arguments_give_the_same_object_centric_scene_for_ever():
    digest = hashlib.sha256("".join(truths(OF_CLASS[:20])).encode()).hexdigest()
    assert digest[:16] == "5462f5dbc558502d"


def test_the_main_object_fills_the_picture_and_at_most_one_small_thing_is_beside_it():
    assert {len(scene.items) for scene in OF_CLASS} == {1, 2}
    for scene in OF_CLASS:
        main, *others = scene.items
        assert scene.label == KINDS.index(main.kind) and main.size == "large"
        assert 0.5 <= 2 * main.pose.half <= 0.68
        assert 0.3 < main.pose.x < 0.7
        assert all(other.size == "small" and other.pose.half < main.pose.half / 2 for other in others)
        assert scene.sign is None and scene.interaction is None


def test_it_lies_inside_the_picture_and_nothing_is_hidden():
    for scene in OF_CLASS[:60]:
        for number, item in enumerate(scene.items):
            width, top = EXTENT[item.kind]
            p = item.pose
            assert p.x - width * p.half > -0.02 and p.x + width * p.half < 1.02
            assert p.y + top * p.half > -0.03 and p.y + p.half < 1.0
            assert visible_fraction(scene, number) > 0.6


def test_the_large_object_changes_far_more_pixels_than_in_a_scene_of_many():
    def share(scene):
        without = dataclasses.replace(scene, items=scene.items[1:])
        return (render(scene, 64) != render(without, 64)).any(axis=2).mean()

    many = [scene for scene in (make_scene(4, i, "train") for i in range(40)) if not scene.interaction]
    assert np.mean([share(scene) for scene in OF_CLASS[:20]]) > 2 * np.mean([share(s) for s in many[:20]])


def test_classes_are_even_and_splits_by_truth_hold():
    counts = Counter(scene.label for scene in OF_CLASS)
    assert len(counts) == len(KINDS) and min(counts.values()) > 400 / len(KINDS) / 3
    test = [make_scene(4, index, "test", "object_centric") for index in range(200)]
    assert {split_of(scene.truth()) for scene in test} == {"test"}
    assert not set(truths(test)) & set(truths(OF_CLASS))


@pytest.mark.parametrize("composition", ["scene_centric", "object_centric"])
def test_held_out_pairs_are_in_no_train_scene_and_the_others_stay_what_they_were(composition):
    plain = [make_scene(5, i, "train", composition) for i in range(400)]
    held = [make_scene(5, i, "train", composition, HELD) for i in range(400)]

    def shows(scene):
        return any(
            (i.kind, i.color) in {("cat", "purple"), ("cat", "white"), ("boat", "red")}
            or (i.kind, i.slot) == ("fish", "top left")
            for i in scene.items
        )

    assert 4 < sum(map(shows, plain)) < 200
    assert not any(map(shows, held))
    assert all(a == b for a, b in zip(plain, held, strict=True) if not shows(a))
    for i in range(100):  # the test split still shows them
        assert make_scene(5, i, "test", composition, HELD) == make_scene(5, i, "test", composition)


def test_an_unknown_composition_is_refused():
    with pytest.raises(ValueError, match="scene_centric, object_centric"):
        make_scene(0, 0, "train", "of_class")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"composition": "object_centric", "num_text": 5}, "num_text 5 must be 0"),
        ({"held_out": {"colors": {"cot": ["red"]}}}, "'cot' is none of house"),
        ({"held_out": {"colors": {"cat": ["teal"]}}}, "'teal' is none of red"),
        ({"held_out": {"slots": {"cat": ["top"]}}}, "'top' is none of top left"),
        ({"held_out": {"slots": {"cat": [" ".join(p) for p in itertools.product(("top", "bottom"),
          ("left", "middle", "right"))]}}}, "leaves cat none"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load(ScenesConfig, {"image_size": 64, "num_train": 1, **NONE, **values}, name="scenes")


def test_shards_of_a_class_hold_its_pictures_and_their_labels(tmp_path):
    config = ScenesConfig(
        **{**NONE, "num_test": 6}, image_size=64, num_train=12, seed=4, composition="object_centric",
        held_out=HELD,
    )  # fmt: skip
    write.run(config, tmp_path)
    for split, count in (("train", 12), ("test", 6)):
        for index, sample in enumerate(read_samples(tmp_path, split)):
            scene = make_scene(4, index, split, "object_centric", HELD)
            assert sample.record["label"] == scene.label
            assert np.array_equal(sample.pixels, render(scene, 64))
        assert index == count - 1


def test_the_last_train_pictures_may_be_of_their_class(tmp_path):
    config = ScenesConfig(
        image_size=64, num_train=12, num_object_centric=5, num_val=0, num_test=0, num_llava_images=2,
        num_text=2, num_seed_questions=0, num_pope_pairs=0,
    )  # fmt: skip
    write.run(config, tmp_path)
    with tarfile.open(tmp_path / "train" / "00000.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".json"))
        truths = [json.load(tar.extractfile(name))["scene"] for name in names]
    for index, truth in enumerate(truths):
        composition = "object_centric" if index >= 7 else "scene_centric"
        assert truth == make_scene(0, index, "train", composition).truth()
    captions = [
        row["conversations"][1]["value"] for row in json.loads((tmp_path / "llava/pretrain.json").read_text())
    ]
    assert captions == [re_caption(make_scene(0, index, "train")) for index in (12, 13)]
    with pytest.raises(ValueError, match="num_object_centric 13 must be at most num_train 12"):
        dataclasses.replace(config, num_object_centric=13)
    with pytest.raises(ValueError, match="num_object_centric 5 must be 0 with composition object_centric"):
        dataclasses.replace(config, composition="object_centric", num_text=0, num_llava_images=0)
