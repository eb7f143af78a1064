"""Scenes: truths, splits, pictures and captions."""

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest

from encoder.data.scenes.compose import SPLIT_SHARES, split_of
from encoder.data.scenes.objects import (
    AFFINITY,
    COLORS,
    EXTENT,
    INTERACTIONS,
    KINDS,
    PLACES,
    PLURALS,
    SIGN_WORDS,
    SIZES,
)
from encoder.data.scenes.render import make_scene, render, visible_fraction
from encoder.data.scenes.text import VOCABULARY, org_caption, re_caption, split_words
from encoder.data.scenes.wording import NUMBERS

SCENES = [make_scene(11, index, "train") for index in range(400)]


def canonical(truth):
    return json.dumps(truth, sort_keys=True)


def test_world_has_the_promised_size():
    assert (len(KINDS), len(COLORS), len(SIZES), len(PLACES), len(SIGN_WORDS)) == (16, 8, 2, 8, 8)
    assert all(set(weights) == set(KINDS) for weights in AFFINITY.values())


def test_same_arguments_give_the_same_scene_for_ever():
    truths = canonical([make_scene(0, index, "train").truth() for index in range(20)])
    assert hashlib.sha256(truths.encode()).hexdigest()[:16] == "2d1fdfb5c9a82d4d"


def test_same_scene_gives_the_same_pixels():
    scene = make_scene(5, 3, "val")
    assert np.array_equal(render(scene, 64), render(make_scene(5, 3, "val"), 64))


def test_seeds_and_indices_give_other_scenes():
    truths = {canonical(make_scene(seed, index, "train").truth()) for seed in (0, 1) for index in range(100)}
    assert len(truths) > 195


def test_splits_never_share_a_truth():
    truths = {
        split: {canonical(make_scene(seed, i, split).truth()) for seed in (0, 1) for i in range(300)}
        for split in SPLIT_SHARES
    }
    assert not truths["train"] & truths["test"]
    assert not truths["train"] & truths["val"]
    assert not truths["val"] & truths["test"]


def test_split_does_not_depend_on_the_order_of_the_other_objects():
    scene = next(s for s in SCENES if len(s.items) == 4 and s.interaction is None)
    truth = scene.truth()
    first, *others = truth["objects"]
    assert split_of(truth) == split_of(truth | {"objects": [first, *others[::-1]]})


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, val, test"):
        make_scene(0, 0, "dev")


@pytest.mark.parametrize("size", [64, 100, 256, 512])
def test_pictures_have_the_size_asked_for(size):
    pixels = render(SCENES[0], size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("size", [32, 1024])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match="64 to 512"):
        render(SCENES[0], size)


def test_a_small_picture_is_the_large_one_averaged():
    # antialiasing: what remains is the rounding of outlines to whole canvas pixels (about 1 % of the range)
    for scene in SCENES[:12]:
        large = render(scene, 512).astype(float).reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
        assert np.abs(large - render(scene, 64)).mean() < 4.0


def test_edges_are_soft():
    hard = render(SCENES[1], 512)[::8, ::8].astype(
        int
    )  # one point a pixel, as a drawing without antialiasing
    soft = render(SCENES[1], 64).astype(int)
    assert len(np.unique(soft.reshape(-1, 3), axis=0)) > 1.1 * len(np.unique(hard.reshape(-1, 3), axis=0))


def test_every_object_lies_inside_the_picture():
    for scene in SCENES:
        for item in scene.items:
            p, (width, top) = item.pose, EXTENT[item.kind]
            assert p.x - width * p.half > -0.02
            assert p.x + width * p.half < 1.02
            assert p.y + top * p.half > 0.0
            assert p.y + p.half <= 1.0


def test_sizes_are_told_apart():
    halves = {size: [i.pose.half for s in SCENES for i in s.items if i.size == size] for size in SIZES}
    assert max(halves["small"]) * 1.3 < min(halves["large"])
    assert min(halves["small"]) * 2 * 64 >= 12  # pixels at the demo's size
    assert min(halves["large"]) * 2 * 64 >= 19


def test_every_object_can_be_seen():
    shares = [visible_fraction(scene, n) for scene in SCENES[:150] for n in range(len(scene.items))]
    assert min(shares) >= 0.58
    assert np.mean(shares) > 0.95


def test_a_flat_mask_covers_where_the_object_is_drawn():
    scene = next(s for s in SCENES if len(s.items) == 1 and s.sign is None)
    assert visible_fraction(scene, 0) == 1.0


def test_classes_are_even_and_kinds_fit_their_places():
    labels = Counter(make_scene(0, index, "train").label for index in range(1600))
    assert len(labels) == 16
    assert max(labels.values()) < 2 * min(labels.values())
    shown = Counter((s.place, i.kind) for s in SCENES for i in s.items)
    assert shown["beach", "boat"] > 3 * shown["desert", "boat"]


@pytest.mark.parametrize("variant", [0, 3])
def test_dense_captions_name_every_object_truly(variant):
    thing = re.compile(r"\ba (small|large) (\w+) (\w+)")
    for scene in SCENES:
        text = re_caption(scene, variant)
        named = Counter(found for found in thing.findall(text) if found[2] in KINDS)
        assert named == Counter((i.size, i.color, i.kind) for i in scene.items)
        assert PLACES[scene.place] in text
        assert f"{NUMBERS[len(scene.items)]} object" in text
        for item in scene.items:
            if not item.is_attached:
                assert item.slot in text
        counts = Counter(item.kind for item in scene.items)
        said = re.findall(r"there are (\w+) (\w+)\.", text.split(".", 1)[1])  # the first sentence counts all
        assert Counter(said) - Counter({(NUMBERS[c], PLURALS[k]): 1 for k, c in counts.items()}) == Counter()
        assert all(count == 1 or (NUMBERS[count], PLURALS[kind]) in said for kind, count in counts.items())
        assert (scene.sign is None) == ("sign" not in text)
        assert scene.sign is None or split_words(text).count(scene.sign.word) >= 1
        if scene.interaction is not None:
            assert INTERACTIONS[scene.interaction[1]] in text


def test_relations_in_captions_agree_with_positions():
    found = 0
    for scene in SCENES:
        by_kind = {item.kind: item for item in scene.items}
        for first, relation, second in re.findall(
            r"the (\w+) is (left of|right of|above|below) the (\w+)\.", re_caption(scene)
        ):
            a, b = by_kind[first].pose, by_kind[second].pose
            holds = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
            assert holds[relation]
            found += 1
    assert found > 50


def test_alt_texts_are_short_and_name_only_what_is_there():
    for scene in SCENES:
        words = split_words(org_caption(scene))
        assert 1 <= len(words) <= 14
        assert set(words) & set(KINDS) <= {item.kind for item in scene.items}


def test_all_texts_stay_inside_the_vocabulary():
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    words = {
        w for s in SCENES for v in range(6) for w in split_words(org_caption(s, v) + " " + re_caption(s, v))
    }
    assert words <= set(VOCABULARY)
