"""A probe's readers: what they find where it is there, chance where it is not, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from encoder.data.options import HeldOut, ScenesConfig
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.questions import ANSWERS, facts
from encoder.metrics.readout import ReadoutConfig
from encoder.runtime.config import load, resolve
from harness.config import parse
from harness.probe.readers import CaptionReader, SceneReader, configs_of, flat_tokens
from harness.probe.scene_facts import NUM_VALUES, facts_of
from harness.probe.understanding import captions_of, scenes_of

FIT = configs_of(ReadoutConfig(num_epochs=25, batch_size=50, learning_rate=1e-2, weight_decay=0.0), hidden=32)
SCENES = [make_scene(6, index, "train") for index in range(700)]


def written_out(scenes):
    """Features in which every fact stands plainly, but for a rotation and a little noise."""
    known, generator = facts_of(scenes), torch.Generator().manual_seed(0)
    plain = [functional.one_hot(fact + 1, n + 1) for fact, n in zip(known.T, NUM_VALUES, strict=True)]
    features = torch.cat(plain, dim=1).float()
    rotation = torch.linalg.qr(torch.randn(features.shape[1], features.shape[1], generator=generator)).Q
    return features @ rotation + 0.01 * torch.randn(features.shape, generator=generator)


def share_right(reader, features, scenes):
    """Of the questions for colours, all colours open."""
    found = []
    for row, scene in zip(features, scenes, strict=True):
        for fact in facts(scene):
            if fact.topic == "color":
                losses = reader.losses(row, fact.question, ANSWERS["color"])
                found.append(ANSWERS["color"][losses.index(min(losses))] == fact.answer)
    return sum(found) / len(found)


def test_facts_that_stand_in_the_features_are_read_and_put_together():
    features = written_out(SCENES)
    reader = SceneReader.fit(features[:600], SCENES[:600], FIT, num_validation=60, seed=0)
    assert set(reader.about["chosen"].values()) <= {"linear", "MLP"}
    assert set(reader.readouts) == set(reader.about["chosen"].values())
    assert reader.about["validation_percent"]["linear"]["Scene Understanding"] > 90
    assert share_right(reader, features[600:], SCENES[600:]) > 0.9


def test_facts_of_other_pictures_are_read_by_chance():
    features = written_out(SCENES)
    others = SCENES[100:600] + SCENES[:100]
    reader = SceneReader.fit(features[:600], others, {"linear": FIT["linear"]}, num_validation=60, seed=0)
    assert share_right(reader, features[600:], SCENES[600:]) < 0.25  # of eight


def test_an_option_that_is_no_answer_is_refused():
    reader = SceneReader.fit(written_out(SCENES[:60]), SCENES[:60], FIT, num_validation=6, seed=0)
    with pytest.raises(ValueError, match="'teal' is none of red, orange"):
        reader.losses(written_out(SCENES[:1])[0], "what color is the cat?", ("red", "teal"))


CAPTIONS = [
    f"A {color} {kind}!" for color in ("red", "green", "blue") for kind in ("cat", "dog", "house")
] * 30  # fmt: skip


def of_words(captions):
    """Features with a number for each word that a caption can have."""
    words = ("red", "green", "blue", "cat", "dog", "house")
    plain = torch.tensor([[float(word in caption) for word in words] for caption in captions])
    return plain + 0.1 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))


def test_a_caption_is_known_by_its_words_whatever_their_case_and_order():
    reader = CaptionReader.fit(of_words(CAPTIONS), CAPTIONS, FIT, num_validation=27, seed=0)
    assert set(reader.vocabulary) == {"red", "green", "blue", "cat", "dog", "house"}  # all captions have "a"
    features = of_words(["A blue dog!"])[0]
    losses = reader.losses(features, "", ("the DOG is Blue", "a blue cat", "a red dog", "an unknown thing"))
    assert losses[0] == min(losses) and losses[0] < 0.5 < losses[1]


def test_captions_without_a_common_word_are_refused():
    with pytest.raises(ValueError, match="no two of 20 captions share a word"):
        CaptionReader.fit(torch.randn(20, 3), [f"word{i}" for i in range(20)], FIT, 2, seed=0)


def test_a_large_grid_is_averaged_and_a_small_one_left():
    tokens = torch.arange(2 * 16 * 3).reshape(2, 16, 3).float()
    assert torch.equal(flat_tokens(tokens, (4, 4), 8), tokens.flatten(1))
    quarters = tokens.reshape(2, 2, 2, 2, 2, 3).mean(dim=(2, 4))  # b, rows, in a row, columns, in a column, d
    assert torch.allclose(flat_tokens(tokens, (4, 4), 2), quarters.flatten(1))


def test_pictures_whose_truth_is_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no card\.json"):
        scenes_of(tmp_path, ["images/000000001.png"])
    shown = SCENES[0].items[0]
    held_out = HeldOut(colors={shown.kind: [shown.color]})
    config = replace(load(ScenesConfig, parse(["preset=demo"])[1].scenes), seed=6, held_out=held_out)
    (tmp_path / "card.json").write_text(json.dumps({"config": resolve(config)}))
    keys = [f"images/{number:09d}.png" for number in range(9)]
    found = scenes_of(tmp_path, keys)
    assert found == [make_scene(6, number, "train", held_out=held_out) for number in range(9)]
    assert found[0] != SCENES[0]  # whose object is held out, so that another scene was drawn and written
    with pytest.raises(ValueError, match="picture cat is no numbered scene"):
        scenes_of(tmp_path, ["images/cat.png"])
    with pytest.raises(FileNotFoundError, match="no captions"):
        captions_of(tmp_path, ["images/1.png"])
    (tmp_path / "llava").mkdir()
    said = [{"image": "images/1.png", "conversations": [{"value": "?"}, {"value": "a cat"}]}]
    (tmp_path / "llava" / "pretrain.json").write_text(json.dumps(said))
    assert captions_of(tmp_path, ["images/1.png"]) == ["a cat"]
    with pytest.raises(ValueError, match=r"no record of picture images/2\.png"):
        captions_of(tmp_path, ["images/2.png"])
