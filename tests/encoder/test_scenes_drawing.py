"""Small objects in large pictures, and enlarged ones that show nothing more."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from encoder.data.options import ScenesConfig
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.drawing import Drawing, shrunk
from encoder.data.scenes.render import render

SCENES = [make_scene(3, index, "train") for index in range(300)]


def test_a_drawing_at_its_own_size_is_the_picture_itself():
    for scene in SCENES[:5]:
        assert np.array_equal(Drawing(size=96)(scene), render(scene, 96))
        assert np.array_equal(Drawing.of(64)(scene), render(scene, 64))


def test_shrunk_objects_are_smaller_where_they_were_and_words_tell_the_same():
    for scene in SCENES:
        small = shrunk(scene, 0.5)
        assert small.truth() == scene.truth()
        actor = scene.interaction[0] if scene.interaction is not None else None
        for number, (before, after) in enumerate(zip(scene.items, small.items, strict=True)):
            assert after.pose.half == before.pose.half / 2
            if number != actor:
                assert (after.pose.x, after.pose.y) == (before.pose.x, before.pose.y)
        if scene.sign is not None:
            assert small.sign.pose == replace(scene.sign.pose, half=scene.sign.pose.half / 2)


def test_an_object_that_holds_to_another_keeps_its_place_beside_it():
    held = [scene for scene in SCENES if scene.interaction is not None]
    assert len(held) > 20
    for scene in held:
        actor, _, base = scene.interaction
        small = shrunk(scene, 0.5)
        before = [scene.items[actor].pose.y - scene.items[base].pose.y, scene.items[base].pose.half]
        after = [small.items[actor].pose.y - small.items[base].pose.y, small.items[base].pose.half]
        np.testing.assert_allclose(np.divide(after, before), 0.5)


def test_shrunk_objects_cover_a_quarter_of_the_pixels():
    scene = next(scene for scene in SCENES if len(scene.items) == 1 and scene.sign is None)
    backdrop = render(replace(scene, items=()), 256).astype(int)
    covered = [
        (np.abs(Drawing(size=256, object_scale=scale)(scene) - backdrop).sum(2) > 12).mean()
        for scale in (1.0, 0.5)
    ]
    assert covered[1] / covered[0] == pytest.approx(0.25, abs=0.05)


def test_enlarged_pictures_are_those_of_the_smaller_size():
    for scene in SCENES[:3]:
        enlarged = Drawing(size=128, rendered_at=64)(scene)
        expected = Image.fromarray(render(scene, 64)).resize((128, 128), Image.Resampling.BICUBIC)
        assert np.array_equal(enlarged, np.asarray(expected))
        detail = np.abs(np.diff(Drawing(size=128)(scene).astype(int), axis=1)).max()
        assert np.abs(np.diff(enlarged.astype(int), axis=1)).max() < detail


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rendered_at": 256}, "rendered_at must be from 64 to image_size 128 pixels, got 256"),
        ({"rendered_at": 32}, "got 32"),
        ({"object_scale": 0.1}, "object_scale must be from 0.25 to 1, got 0.1"),
        ({"object_scale": 2.0}, "got 2.0"),
    ],
)
def test_drawings_that_cannot_be_made_are_refused(changes, message):
    counts = dict.fromkeys(
        [
            "num_train",
            "num_val",
            "num_test",
            "num_llava_images",
            "num_text",
            "num_seed_questions",
            "num_pope_pairs",
        ],
        0,
    )
    with pytest.raises(ValueError, match=message):
        ScenesConfig(image_size=128, **counts, **changes)
