"""SceneEval without a network: facts, prompts, scores; and the judge's parts on truths."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch

from encoder.data.options import HeldOut
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.text import VOCABULARY, split_words
from harness.scene_eval.config import SCORE, TASKS, JudgeConfig, keys_of, spread_over_tasks, tasks_of
from harness.scene_eval.damage import blurred, damage
from harness.scene_eval.facts import MIDDLE, Seen, Thing, all_hold, holds, relations, there
from harness.scene_eval.judge import SIGN, Judge, Responses, judge_loss, targets_of, things_of
from harness.scene_eval.scores import Judged, chance_metrics, judge_all, mean_of_tasks, metrics_of
from harness.scene_eval.tasks import is_unseen, make_prompts, random_truths

HELD_OUT = HeldOut(colors={"cup": ["yellow"], "cat": ["purple"]}, slots={"kite": ["bottom left"]})
NUM = 6


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(1, "test", NUM, held_out=HELD_OUT)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(3, i, "test") for i in range(40)]


def thing(kind="cup", color="red", size="small", x=0.5, y=0.8):
    return Thing(kind, color, size, x, y)


def seen(*things, place="room", word=None):
    return Seen(things, place, word)


def test_facts_hold_of_what_is_there():
    picture = seen(thing(), thing("ball", "blue", x=0.18), thing("ball", "red", "large", 0.82), word="stop")
    assert holds(there("cup", color="red"), picture) and not holds(there("cup", color="blue"), picture)
    assert holds(there("ball", size="large"), picture) and not holds(there("ball", slot="top left"), picture)
    assert holds({"fact": "count", "kind": "ball", "count": 2}, picture)
    assert not holds({"fact": "count", "kind": "ball", "count": 1}, picture)  # exactly so many
    assert holds({"fact": "word", "word": "stop"}, picture) and holds(
        {"fact": "place", "place": "room"}, picture
    )
    swapped = [there("cup", color="blue"), there("ball", color="red")]
    assert not all_hold(swapped, picture) and all_hold([there("cup"), there("ball")], picture)
    with pytest.raises(ValueError, match="fact"):
        holds({"fact": "colour"}, picture)


def test_relations_are_genevals_with_room_for_small_offsets():
    left, right = thing(x=0.2), thing("ball", x=0.8)
    assert relations(left, right) == {"left"} and relations(right, left) == {"right"}
    assert relations(thing(y=0.3), thing(y=0.8)) == {"above"}
    assert relations(thing(x=0.2, y=0.2), thing(x=0.8, y=0.8)) == {"left", "above"}  # both may hold
    assert relations(thing(x=0.5), thing(x=0.52)) == set() == relations(thing(), thing())


def test_slots_and_truths_of_the_world_agree(scenes):
    for scene in scenes:
        for item, found in zip(scene.items, Seen.of(scene).things, strict=True):
            if not item.is_attached:
                assert found.slot == item.slot
                assert abs(found.y - MIDDLE) > 0.05


def test_prompts_are_true_of_their_scenes_and_say_words_of_the_world(prompts):
    assert Counter(each.task for each in prompts) == dict.fromkeys(tasks_of(HELD_OUT), NUM)
    for each in prompts:
        scene = make_scene(1, each.scene, "test")
        assert all_hold(each.facts, Seen.of(scene)), each
        assert not each.swapped or not all_hold(each.swapped, Seen.of(scene))
        assert set(split_words(each.prompt)) <= set(VOCABULARY), each.prompt
        assert is_unseen(each.facts, HELD_OUT) == each.task.startswith("unseen")
    assert prompts == make_prompts(1, "test", NUM, held_out=HELD_OUT)
    said = {each.task: each.prompt for each in prompts}
    assert " and " in said["binding"] and said["sign"].startswith("a sign says ")
    assert len({each.prompt for each in prompts if each.task == "single"}) == NUM


def test_no_train_picture_shows_what_is_unseen(prompts):
    wanted = [each for each in prompts if each.task.startswith("unseen")]
    train = [make_scene(1, i, "train", held_out=HELD_OUT) for i in range(300)]
    items = [(item.kind, item.color, item.slot) for scene in train for item in scene.items]
    for each in wanted:
        (fact,) = each.facts
        assert not any(kind == fact["kind"] and fact.get("color", fact.get("slot")) in (color, slot)
                       for kind, color, slot in items)  # fmt: skip


def test_without_held_out_pairs_there_are_no_unseen_tasks():
    assert tasks_of(HeldOut()) == (*TASKS, "slot")
    assert f"{SCORE}/unseen-slot" not in keys_of(HeldOut())
    assert f"{SCORE}/unseen-slot" in keys_of(HELD_OUT) and keys_of(HELD_OUT)[0] == SCORE


def truths(prompts):
    return [Seen.of(make_scene(1, each.scene, "test")) for each in prompts]


def numbers(judged, **changes):
    about = {"judge": "j", "num_resamples": 200, "seed": 0, **changes}
    return {key: metric.value for key, metric in metrics_of(judged, **about).items()}


def test_perfect_pictures_score_100_and_shuffled_ones_chance(prompts):
    judged = judge_all(prompts, truths(prompts), range(len(prompts)))
    found = numbers(judged, ceiling=100.0)
    assert set(found) == set(keys_of(HELD_OUT))
    assert all(found[f"{SCORE}/{task}"] == 100 for task in tasks_of(HELD_OUT))
    assert found[SCORE] == found[f"{SCORE}/facts"] == found[f"{SCORE}/normalised"] == 100
    assert found[f"{SCORE}/swap"] == 0
    # Pictures judged by other prompts: as often right as scenes at random, within three standard errors of
    # so few prompts
    others = list(random_truths(1, "test", 400, 50_000))
    for task in ("single", "colour", "binding", "place"):
        own = [each for each in prompts if each.task == task]
        expected = np.mean([[all_hold(p.facts, one) for one in others] for p in own])
        got = [each.shuffled for each in judged if each.task == task]
        spread = max(np.std(got, ddof=1) / len(got) ** 0.5, (expected / len(got)) ** 0.5)
        assert abs(np.mean(got) - expected) < 3 * spread


def test_swapped_colours_are_told_apart_from_wrong_ones(prompts):
    pair = next(each for each in prompts if each.task == "binding")
    one, two = pair.facts
    swap = seen(thing(one["kind"], two["color"]), thing(two["kind"], one["color"]))
    third = next(color for color in ("red", "blue", "green") if color not in (one["color"], two["color"]))
    wrong = seen(thing(one["kind"], third), thing(two["kind"], one["color"]))
    judged = judge_all([pair], [swap, wrong, swap, swap], [0, 0, 0, 0])
    assert (judged[0].right, judged[0].swapped, judged[0].num_pictures) == (0, 0.75, 4)
    assert judged[0].facts == 0  # neither of the two facts holds of any


def test_the_score_is_the_mean_of_tasks_and_its_error_is_over_prompts():
    """Against the formula: the mean of task means; the variance of each task's mean, over tasks squared."""
    generator = np.random.default_rng(0)
    tables = {task: generator.random(40) for task in ("single", "two")}
    value, stderr = mean_of_tasks(tables, num_resamples=20_000, seed=0)
    assert value == pytest.approx(np.mean([table.mean() for table in tables.values()]))
    expected = sum(table.var() / 40 for table in tables.values()) ** 0.5 / 2
    assert stderr == pytest.approx(expected, rel=0.03)  # 20,000 draws: 0.5 %
    many = [Judged("single", 1.0, 0, 1.0, 0.1, 2)] * 30 + [Judged("two", 0.0, 0, 0.5, 0.1, 2)] * 3
    found = numbers(many, ceiling=90.0)
    assert found[SCORE] == 50 and found[f"{SCORE}/facts"] == 75
    assert found[f"{SCORE}/normalised"] == pytest.approx(100 * (50 - 10) / (90 - 10))


def test_chance_is_what_random_scenes_are_worth(prompts):
    half = [dataclasses.replace(each, chance=0.5 if each.task == "single" else 0.0) for each in prompts]
    found = chance_metrics(half, 100)
    assert found[f"{SCORE}/single"].value == 50 and found[SCORE].value == pytest.approx(50 / 9)


def perfect_responses(scenes, cells):
    targets = targets_of(scenes, cells)
    picture, _, row, column = targets.where.T
    looks = {}
    for name, classes in (("color", 8), ("size", 2), ("word", 8)):
        looks[name] = torch.zeros(len(scenes), classes, cells, cells)
        has = targets.looks[name] >= 0
        looks[name][picture[has], targets.looks[name][has], row[has], column[has]] = 9.0
    offset = torch.zeros(len(scenes), 2, cells, cells)
    offset[picture, :, row, column] = targets.offset
    place = torch.nn.functional.one_hot(targets.place, 8).float()
    heat = torch.logit(targets.heat.clamp(1e-4, 1 - 1e-4))
    return targets, Responses(heat, looks, offset, place)


def test_what_the_targets_say_is_read_back_as_the_truth(scenes):
    """Of cells of a picture's 64th, no two things share one: every thing comes back, where it is."""
    targets, responses = perfect_responses(scenes, 64)
    for scene, found in zip(scenes, things_of(responses, 0.9), strict=True):
        truth = Seen.of(scene)
        assert (found.place, found.word) == (truth.place, truth.word)
        key = lambda each: (each.kind, each.color, each.size, round(each.x, 3))  # noqa: E731
        assert sorted(map(key, found.things)) == sorted(map(key, truth.things))
        ours, theirs = (sorted(each.things, key=key) for each in (found, truth))
        for one, two in zip(ours, theirs, strict=True):
            assert (one.x, one.y) == pytest.approx((two.x, two.y), abs=1e-5)
    assert (targets.where[:, 1] == SIGN).sum() == sum(scene.sign is not None for scene in scenes)
    worse = Responses(responses.heat - 1, responses.looks, responses.offset + 0.3, responses.place)
    assert judge_loss(responses, targets) < judge_loss(worse, targets)


def test_a_judge_is_read_back_and_pictures_of_other_sizes_are_brought_to_its_own(tmp_path):
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(width=8, blocks=1, threshold=0.11)).eval()
    judge.save(tmp_path)
    again, images = Judge.load(tmp_path), np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    assert list(again.read(images)) == list(judge.read(images))
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    assert len(list(judge.read(large))) == 3
    with pytest.raises(FileNotFoundError, match="train_judge"):
        Judge.load(tmp_path / "nothing")


def test_damage_is_none_at_zero_and_repeats(scenes):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    whole = damage(images, torch.Generator().manual_seed(0), 0.0, 0.0, 0.0)
    assert torch.equal((whole * 255).round().to(torch.uint8), torch.from_numpy(images).permute(0, 3, 1, 2))
    one, two = (damage(images, torch.Generator().manual_seed(1), 1.0, 1.0, 1.0) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, whole) and one.min() >= 0 and one.max() <= 1


def test_a_blur_keeps_the_mean_and_narrows_as_a_gaussian():
    """A point under a Gaussian of width sigma: its variance along a line is sigma squared (cut at 3 px)."""
    pixels = torch.zeros(2, 3, 33, 33)
    pixels[:, :, 16, 16] = 1.0
    out = blurred(pixels, torch.tensor([0.0, 0.9]))
    torch.testing.assert_close(out[0], pixels[0])
    line = out[1, 0].sum(dim=0)
    place = torch.arange(33) - 16.0
    assert line.sum() == pytest.approx(1, abs=1e-5)
    assert (line * place.square()).sum() == pytest.approx(0.81, rel=0.02)


def test_figures_show_a_prompt_of_each_task():
    lines = [
        json.dumps({"task": task, "prompt": f"{task} {i}"}) for i in range(2) for task in ("single", "two")
    ]
    assert spread_over_tasks(lines) == {0: "single 0", 1: "two 0"}
