"""Stages end with DONE.json, bad input is one line, checkpoints are whole or refused."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch

from encoder.runtime import checkpoint, stage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    number: int = 1


def write_config(tmp_path: Path, text: str = "number: 4\n") -> list[str]:
    (tmp_path / "in.yaml").write_text(text)
    return [str(tmp_path / "in.yaml"), str(tmp_path / "out")]


def test_a_stage_writes_its_result_last_and_never_runs_twice(tmp_path):
    calls = []

    def run(config, out_dir):
        calls.append(config.number)
        assert not (out_dir / stage.DONE).exists()
        return {"twice": 2 * config.number}

    argv = write_config(tmp_path)
    stage.main(Options, run, argv)
    stage.main(Options, run, argv)
    done = json.loads((tmp_path / "out" / stage.DONE).read_text())
    assert calls == [4] and done["result"] == {"twice": 8} and done["peak_memory_mb"] > 0


def test_a_folder_that_was_begun_with_other_values_is_refused(tmp_path, capsys):
    def interrupted(config, out_dir):
        stage.progress(out_dir, 1, 2)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match=str(stage.INTERRUPTED)):
        stage.main(Options, interrupted, write_config(tmp_path))
    with pytest.raises(SystemExit, match=str(stage.BAD_INPUT)):
        stage.main(Options, lambda *_: pytest.fail("ran"), write_config(tmp_path, "number: 5\n"))
    assert "was begun with number=4, not 5; choose another folder" in capsys.readouterr().err
    (tmp_path / "out" / stage.STAGE_CONFIG).write_text("older: 1\n")  # keys that came later are passed over
    stage.main(Options, lambda *_: {}, write_config(tmp_path))
    assert (tmp_path / "out" / stage.DONE).is_file()


@pytest.mark.parametrize(
    ("text", "part"), [("numbr: 4\n", "did you mean 'number'"), ("number: x\n", "expected int")]
)
def test_bad_config_exits_2_before_work_with_one_line(tmp_path, capsys, text, part):
    with pytest.raises(SystemExit) as caught:
        stage.main(Options, lambda config, out_dir: pytest.fail("ran"), write_config(tmp_path, text))
    error = capsys.readouterr().err
    assert caught.value.code == stage.BAD_INPUT and part in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="folder not writable"):
        stage.make_writable(tmp_path / "file" / "runs")


def test_checkpoint_round_trip_and_damage(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"step": 3, "model": {"weight": torch.arange(5.0)}}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert loaded["step"] == 3 and torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"damaged or unsafe: .*checkpoint\.pt"):
        checkpoint.load(path)


def test_the_last_checkpoints_are_kept_and_the_newest_is_found_whatever_a_kill_left(tmp_path):
    path = tmp_path / "checkpoint.pt"

    def there() -> dict[str, int]:
        return {each.name: checkpoint.load(each)["step"] for each in sorted(tmp_path.glob("*.pt"))}

    assert checkpoint.newest(path) is None
    for step in range(1, 5):
        checkpoint.save(path, {"step": step}, keep=3)
    assert there() == {"checkpoint.pt": 4, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2}
    assert checkpoint.newest(path) == path
    path.unlink()  # as between two names, or by whoever goes on from the one before
    assert checkpoint.newest(path) == tmp_path / "checkpoint.1.pt"
    checkpoint.save(path, {"step": 5}, keep=3)
    assert there() == {"checkpoint.pt": 5, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2}
    checkpoint.save(path, {"step": 6}, keep=1)
    assert there() == {"checkpoint.pt": 6}


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="damaged or unsafe"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_safetensors_round_trip_is_bit_exact_and_damage_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(6).reshape(2, 3).T}
    checkpoint.save_tensors(path, tensors, {"width": 4})
    loaded = checkpoint.load_tensors(path)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="weights damaged"):
        checkpoint.load_tensors(path)


def test_each_epoch_visits_every_sample_once_whatever_the_batch_size():
    for batch_size in (3, 4, 7):
        steps = range(140 // batch_size)
        seen = torch.cat([checkpoint.batch_indices(5, step, batch_size, 10) for step in steps])
        for epoch in range(seen.numel() // 10):
            assert sorted(seen[epoch * 10 : (epoch + 1) * 10].tolist()) == list(range(10))
    assert not torch.equal(checkpoint.epoch_order(5, 0, 50), checkpoint.epoch_order(5, 1, 50))


def test_step_generators_depend_on_seed_step_and_purpose():
    draws = {
        key: torch.randn(1, generator=checkpoint.step_generator(*key)).item()
        for key in [(0, 1, ""), (0, 2, ""), (1, 1, ""), (0, 1, "noise")]
    }
    assert len(set(draws.values())) == 4
    assert draws[0, 1, ""] == torch.randn(1, generator=checkpoint.step_generator(0, 1)).item()
