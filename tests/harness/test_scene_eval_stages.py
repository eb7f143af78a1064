"""SceneEval's stages on a small world: prompts and their renders, a judge, rebuilt renders, scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from encoder.runtime import checkpoint
from encoder.runtime.stage import write_done
from harness.scene_eval import prompts as prompts_stage
from harness.scene_eval import rebuild, score, train_judge
from harness.scene_eval.config import SCORE, TEST, JudgeConfig, PromptsConfig, RebuildConfig, SceneScoreConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes, the prompts of their truths, and a judge that has hardly learnt."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("scenes", "prompts", "judge"):
        (folder / name).mkdir()
    about = {"num_llava_images": 0, "num_text": 0, "num_seed_questions": 0, "num_pope_pairs": 0}
    counts = {"num_train": 2, "num_val": 0, "num_test": 4}
    write.run(ScenesConfig(image_size=64, **counts, **about, seed=1), folder / "scenes")
    config = PromptsConfig(
        data=str(folder / "scenes"), num_prompts=3, num_validation=2, num_captions=3, num_random=50
    )
    chance = prompts_stage.run(config, folder / "prompts")
    assert chance["num_prompts"] == 30 and chance["num_captions"] == 3
    assert 0 < chance["metrics"][f"{SCORE}/single"]["value"] < 60
    judge = JudgeConfig(
        width=8, blocks=1, num_pictures=16, num_steps=2, batch_size=8, num_tested=2, least_percent=0.0
    )
    first = train_judge.run(judge, folder / "judge")
    assert set(first["renders"]) == set(first["damaged"]) and first["judge"].startswith("scene-judge sha256:")
    with pytest.raises(ValueError, match="of its renders right, wanted 98"):
        train_judge.run(replace(judge, least_percent=98.0), folder / "judge")
    return folder


def test_a_judge_goes_on_where_it_was_and_keeps_what_it_learnt_when_refused(tmp_path):
    config = JudgeConfig(
        width=8, blocks=1, num_pictures=16, num_steps=4, batch_size=8, num_tested=2, least_percent=0.0,
        checkpoint_steps=2,
    )  # fmt: skip
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = train_judge.run(config, tmp_path / "whole")
    with pytest.raises(ValueError, match="more num_steps, with which it goes on"):
        train_judge.run(replace(config, least_percent=100.0), tmp_path / "cut")
    (tmp_path / "whole" / "judge" / "judge.safetensors").unlink()
    again = train_judge.run(config, tmp_path / "whole")  # from the last checkpoint: no step is left
    path = tmp_path / "cut" / "checkpoint.pt"
    state = checkpoint.load(path)
    assert state["step"] == 4 and again == whole
    learnt, _ = train_judge.learn(replace(config, num_steps=6), tmp_path / "cut", "cpu")
    assert checkpoint.load(path)["step"] == 6
    before = state["judge"]
    assert any(not torch.equal(value, before[name]) for name, value in learnt.state_dict().items())


def test_a_judge_without_checkpoints_is_refused():
    with pytest.raises(ValueError, match="checkpoint_steps 0 must be 1 or more"):
        JudgeConfig(checkpoint_steps=0)


def test_a_resumed_judge_is_the_same_to_rounding(tmp_path, monkeypatch):
    config = JudgeConfig(width=8, blocks=1, num_pictures=16, num_steps=4, batch_size=8, checkpoint_steps=2)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, last = train_judge.learn(config, tmp_path / "whole", "cpu")

    def stop(path, state, **about):
        keep(path, state, **about)
        raise KeyboardInterrupt

    keep = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_judge.learn(config, tmp_path / "cut", "cpu")
    monkeypatch.undo()
    cut, ours = train_judge.learn(config, tmp_path / "cut", "cpu")
    assert ours == pytest.approx(last, rel=1e-4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_captions_are_short_and_dense_in_turns(world):
    lines = (world / "prompts" / "captions.jsonl").read_text().splitlines()
    lengths = [len(json.loads(line)["prompt"].split()) for line in lines]
    assert lengths[0] < 12 < lengths[1] and lengths[2] < 12


def scored(world, pictures, out_dir, **changes):
    out_dir.mkdir()
    about = {"prompts": str(world / "prompts"), "judge": str(world / "judge"), "num_resamples": 50}
    return score.run(SceneScoreConfig(pictures=str(pictures), **about, **changes), out_dir)


def test_pictures_are_scored_with_their_ceiling(world, tmp_path):
    renders = world / "prompts" / "renders.npz"
    ceiling = scored(world, renders, tmp_path / "ceiling")
    write_done(tmp_path / "ceiling", "score", ceiling, 0.0)
    result = scored(world, renders, tmp_path / "a", ceiling=str(tmp_path / "ceiling"))
    assert result["metrics"][SCORE] == ceiling["metrics"][SCORE]
    assert f"{SCORE}/normalised" in result["metrics"] and f"{SCORE}/normalised" not in ceiling["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "a" / "judged.jsonl").read_text().splitlines()]
    prompts = prompts_stage.read_prompts(world / "prompts", TEST)
    assert [line["prompt"] for line in lines] == [each.prompt for each in prompts]
    np.savez(tmp_path / "others.npz", arr_0=np.load(renders)["arr_0"], labels=np.full(30, 99))
    with pytest.raises(ValueError, match="must name the prompts of its pictures, 0 to 29"):
        scored(world, tmp_path / "others.npz", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="finished folder"):
        scored(world, renders, tmp_path / "c", ceiling=str(tmp_path / "a"))


def test_renders_are_rebuilt_in_their_order(world, tmp_path):
    config = RebuildConfig(prompts=str(world / "prompts"), encoder="ov3-demo", batch_size=16)
    assert rebuild.run(config, tmp_path)["num_pictures"] == 30
    rebuilt, renders = np.load(tmp_path / "rebuilt.npz"), np.load(world / "prompts" / "renders.npz")
    assert np.array_equal(rebuilt["labels"], renders["labels"])
    ours, theirs = (each["arr_0"].astype(float) for each in (rebuilt, renders))
    errors = ((ours[:, None] - theirs[None]) ** 2).mean(axis=(2, 3, 4))
    scenes = [each.scene for each in prompts_stage.read_prompts(world / "prompts")]
    nearest = [scenes[i] for i in errors.argmin(axis=1)]  # several prompts are of one scene
    assert np.mean([one == two for one, two in zip(nearest, scenes, strict=True)]) > 0.9


def test_other_worlds_than_scenes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no card\.json"):
        prompts_stage.read_world(tmp_path)
