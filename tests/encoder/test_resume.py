"""A folder goes on with the run that was begun in it and no other; a finished one says what it holds."""

import dataclasses
import json
from typing import ClassVar

import pytest
import yaml

from encoder import train
from encoder.data.options import CacheConfig, ScenesConfig, StreamConfig
from encoder.options import TokensConfig
from encoder.runtime import stage
from encoder.runtime.config import ConfigError, load
from encoder.runtime.resume import CHANGES, DONE, STAGE_CONFIG, changeable_keys
from encoder.training.options import OptimConfig, TrainConfig, TrainVaeConfig
from encoder.training.recipe import RecipeConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    MAY_CHANGE: ClassVar = ("rate",)
    rate: float = 0.1
    kind: str = "a"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    MAY_CHANGE: ClassVar = ("workers",)
    MAY_GROW: ClassVar = ("num_steps",)
    num_steps: int = 800
    workers: int = 0
    seed: int = 0
    inner: Inner = dataclasses.field(default_factory=Inner)


def begin(tmp_path, *words, run=None) -> None:
    """Run a stage in tmp_path/out with the words; by default one that is interrupted after some progress."""

    def interrupted(config, out_dir):
        stage.progress(out_dir, 1, 2)
        raise KeyboardInterrupt

    (tmp_path / "in.yaml").write_text("{}")
    stage.main(Options, run or interrupted, [str(tmp_path / "in.yaml"), str(tmp_path / "out"), *words])


def refusal(tmp_path, capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        begin(tmp_path, *words, run=lambda *_: pytest.fail("ran"))
    assert ended.value.code == stage.BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ")
    return said


def test_a_finished_folder_with_other_settings_is_refused_by_name_of_every_key(tmp_path, capsys):
    begin(tmp_path, run=lambda *_: {"score": 1})
    before = (tmp_path / "out" / DONE).read_bytes()
    said = refusal(tmp_path, capsys, "num_steps=1600", "inner.rate=0.2")
    assert "holds a finished run of other settings" in said
    assert "num_steps=800, not 1600" in said and "inner.rate=0.1, not 0.2" in said
    begin(tmp_path, run=lambda *_: pytest.fail("ran"))
    assert "is complete" in capsys.readouterr().out
    assert (tmp_path / "out" / DONE).read_bytes() == before
    assert yaml.safe_load((tmp_path / "out" / STAGE_CONFIG).read_text())["num_steps"] == 800


def test_a_run_goes_on_with_other_values_of_the_keys_that_may_change_and_keeps_account(tmp_path, capsys):
    with pytest.raises(SystemExit, match=str(stage.INTERRUPTED)):
        begin(tmp_path)
    capsys.readouterr()
    for words in (["seed=1"], ["inner.kind=b"], ["num_steps=700"], ["workers=2", "seed=1"]):
        assert "was begun with" in refusal(tmp_path, capsys, *words)
    assert yaml.safe_load((tmp_path / "out" / STAGE_CONFIG).read_text())["workers"] == 0
    words = ("workers=2", "inner.rate=0.05", "num_steps=1600")
    begin(tmp_path, *words, run=lambda config, _: {"got": [config.workers, config.inner.rate]})
    assert "goes on with inner.rate=0.05 (was 0.1), num_steps=1600 (was 800)" in capsys.readouterr().err
    row = json.loads((tmp_path / "out" / CHANGES).read_text())
    assert row == {"done": 1, "inner.rate": [0.1, 0.05], "num_steps": [800, 1600], "workers": [0, 2]}
    assert json.loads((tmp_path / "out" / DONE).read_text())["result"] == {"got": [2, 0.05]}


def test_a_checkpoint_without_progress_is_a_run_too(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STAGE_CONFIG).write_text("seed: 3\n")
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"")
    assert "was begun with seed=3, not 0" in refusal(tmp_path, capsys)


def test_of_several_processes_the_first_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    begin(tmp_path, run=lambda *_: {})
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    begin(tmp_path, run=lambda *_: {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {STAGE_CONFIG, DONE}


@pytest.mark.parametrize("cls", [
    TrainConfig, TrainVaeConfig, OptimConfig, StreamConfig, CacheConfig, ScenesConfig, TokensConfig,
])  # fmt: skip
def test_every_key_that_may_change_is_one(cls):
    names = {field.name for field in dataclasses.fields(cls)}
    assert cls.MAY_CHANGE and {*cls.MAY_CHANGE, *getattr(cls, "MAY_GROW", ())} <= names


# ---- recipes

TOWERS = {"encoder": {"width": 32, "layers": 1, "head_width": 16}, "text": {"tokenizer": "scenes"}}
PHASES = [
    {"name": "first", "resolution": 32, "batch_size": 8, "base_lr": 1e-3, "epochs": 1e-4,
     "warmup_epochs": 0.0, "perceptual_weight": 0.0},
    {"name": "second", "resolution": 64, "batch_size": 8, "base_lr": 1e-3, "epochs": 1e-4,
     "warmup_epochs": 0.0, "perceptual_weight": 0.0, "init": "first"},
]  # fmt: skip
SETTINGS = {"data": "nowhere", "clip": TOWERS,
            "stream": {"sources": [{"shards": "a"}], "image_size": 1, "num_lanes": 8}}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's command whose second phase is interrupted; returns what was trained, by phase."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"phases": PHASES, "settings": SETTINGS}))

    def command(*words, ends=False) -> list[tuple]:
        trained = []

        def trainer(config, folder):
            trained.append((folder.name, config))
            stage.progress(folder, 1, config.num_steps)
            if folder.name == "second" and not ends:
                raise KeyboardInterrupt
            return {"psnr": 1.0}

        monkeypatch.setattr(train, "train", trainer)
        train.run([str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), *words])
        return trained

    with pytest.raises(SystemExit, match=str(stage.INTERRUPTED)):
        command()
    return command


@pytest.mark.parametrize(("word", "part"), [
    ("settings.seed=1", "first holds a finished run of other settings: seed=0, not 1"),
    ("settings.stream.num_lanes=4", "stream.num_lanes=8, not 4"),
    ("phases.1.batch_size=16", "second was begun with batch_size=8, not 16"),
    ("phases.0.epochs=0.001", "first holds a finished run of other settings: num_steps=16, not 160"),
])  # fmt: skip
def test_a_recipe_that_was_begun_is_guarded_phase_by_phase(recipe, capsys, word, part):
    with pytest.raises(SystemExit, match=str(stage.BAD_INPUT)):
        recipe(word)
    assert part in capsys.readouterr().err


def test_a_recipe_goes_on_with_what_may_change_and_its_finished_phases_stay(recipe, tmp_path, capsys):
    trained = recipe("settings.stream.num_workers=2", "phases.1.base_lr=5e-4", ends=True)
    assert [(name, config.stream.num_workers) for name, config in trained] == [("second", 2)]
    assert trained[0][1].optim.lr == pytest.approx(5e-4 * 8 / 256)
    assert "first is finished and keeps what it has: stream.num_workers=0" in capsys.readouterr().err
    kept = yaml.safe_load((tmp_path / "out" / "first" / STAGE_CONFIG).read_text())
    assert kept["stream"]["num_workers"] == 0 and (tmp_path / "out" / DONE).is_file()
    with pytest.raises(SystemExit, match=str(stage.BAD_INPUT)):
        recipe("phases.1.epochs=0.01", "settings.stream.num_workers=2", "phases.1.base_lr=5e-4")
    assert "second holds a finished run of other settings: num_steps=16, not 1601" in capsys.readouterr().err
    recipe("settings.stream.num_workers=2", "phases.1.base_lr=5e-4")
    assert "is complete" in capsys.readouterr().out


def test_phases_have_settings_of_their_own_and_are_reached_by_number(tmp_path):
    values = {"phases": PHASES, "settings": SETTINGS}
    own = {"stream": {"sources": [{"shards": "b"}]}}
    words = ["phases.0.micro_batch=4", f"phases.1.settings={json.dumps(own)}"]
    first, second = load(RecipeConfig, values, words).configs(tmp_path).values()
    assert (first.micro_batch, second.micro_batch) == (4, None)
    assert [each.stream.sources[0].shards for each in (first, second)] == ["a", "b"]
    assert [each.stream.num_lanes for each in (first, second)] == [8, 8]
    assert [each.stream.image_size for each in (first, second)] == [32, 64]


@pytest.mark.parametrize(("word", "message"), [
    ("phases.2.micro_batch=64", "config: phases: no item '2' in this list; there are 0 to 1"),
    ("phases.first.micro_batch=64", "no item 'first'"),
    ("phases.0.micro_batc=64", "did you mean 'micro_batch'"),
    ("phases.0.settings.num_steps=4", "phase first: settings.num_steps: the phases give this"),
])  # fmt: skip
def test_a_phase_that_cannot_be_is_refused_in_one_line(word, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(RecipeConfig, {"phases": PHASES, "settings": SETTINGS}, [word])
    assert "\n" not in str(caught.value)


def test_the_rates_of_an_optimiser_and_the_workers_of_a_stream_may_change_wherever_they_stand(tmp_path):
    config = load(RecipeConfig, {"phases": PHASES, "settings": SETTINGS}).configs(tmp_path)["first"]
    change, grow = changeable_keys(config)
    assert {"optim.lr", "optim.clip_norm", "stream.num_workers", "micro_batch", "log_steps"} <= change
    assert grow == {"num_steps"} and not {"seed", "optim.betas", "stream.num_lanes", "batch_size"} & change
