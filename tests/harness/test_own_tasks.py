"""`tasks=`: benchmarks of the paper, and lmms-eval tasks of one's own beside them."""

from pathlib import Path

import pytest

from encoder.runtime.config import ROOT, ConfigError
from harness.command_line import make_plans
from harness.config import parse
from harness.paper.sources import SOURCES
from harness.running.stages import Graph

LAYOUT = {name: source.places[0] for name, source in SOURCES.items()}
REHEARSAL = ROOT / "configs" / "rehearsals" / "paper.yaml"


def test_a_list_of_tasks_replaces_the_presets(data_root, plan):
    row = plan(data_root, "suite=understanding", "tasks=[pope]").plans[0].rows[0]
    assert {key.split("/")[0] for key in row.parts[0].keys} == {"POPE"}
    with pytest.raises(ConfigError, match=r"task 'pop'.*pope"):
        plan(data_root, "suite=understanding", "tasks=[pop]")
    options, preset = parse(["preset=demo", "tasks=[pope]"])
    with pytest.raises(ConfigError, match="presets on real sources"):
        make_plans(Graph(Path("runs")), options, preset)


OWN_TASK = """\
task: colours
dataset_path: parquet
dataset_kwargs: {data_files: {test: colours.parquet}}
metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]
"""


def test_tasks_of_ones_own_are_asked_beside_the_others_and_anew_when_their_data_change(
    data_root, tmp_path, plan
):
    (tmp_path / "mine.yaml").write_text(OWN_TASK)
    (tmp_path / "colours.parquet").write_bytes(b"one")
    words = ["suite=understanding", f"tasks=[pope,{tmp_path}/mine.yaml]"]
    row = plan(data_root, *words).plans[0].rows[0]
    asked, keys = row.parts[0].stage, row.parts[0].keys
    assert (asked.config.benchmarks, asked.config.custom) == (["pope"], [f"{tmp_path}/mine.yaml"])
    assert "colours/accuracy" in keys and "POPE/f1/official" in keys and "GQA" not in keys
    assert {tmp_path / "mine.yaml", tmp_path / "colours.parquet"} <= set(asked.files)
    twice = [words[0], f"tasks=[{tmp_path}/mine.yaml,{tmp_path}/mine.yaml]"]
    with pytest.raises(ValueError, match="two tasks are called 'colours'"):  # before anything is trained
        plan(data_root, *twice)
    before = asked.fingerprint
    (tmp_path / "colours.parquet").write_bytes(b"two")
    assert plan(data_root, *words).plans[0].rows[0].parts[0].stage.fingerprint != before
    options, preset = parse(["preset=demo", "tasks=[colours]", f"llava.include_path={tmp_path}"])
    (understanding,) = (each for each in make_plans(Graph(tmp_path), options, preset)
                        if each.suite.name == "understanding")  # fmt: skip
    assert {"colours/accuracy", "Scenes-SEED"} <= set(understanding.rows[0].parts[0].keys)
    probed = next(row for row in understanding.rows if row.kind == "probe")
    assert "Scenes-SEED" in probed.parts[0].keys and "colours/accuracy" not in probed.parts[0].keys
    assert set(probed.undefined) == {"colours/accuracy"}
    options, preset = parse(["preset=demo", "tasks=[colour]", f"llava.include_path={tmp_path}"])
    with pytest.raises(ValueError, match=r"'colour' .did you mean 'colours'"):
        make_plans(Graph(tmp_path), options, preset)


def test_what_a_tasks_code_imports_is_part_of_it(data_root, tmp_path, monkeypatch, plan):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"{OWN_TASK}process_results: !function scoring.score\n")
    (tmp_path / "colours.parquet").write_bytes(b"one")
    (tmp_path / "scoring.py").write_text("import json\nfrom words_of_mine import same\n")
    (tmp_path / "words_of_mine.py").write_text("def same(a, b):\n    return a == b\n")
    words = ["suite=understanding", f"tasks=[{tmp_path}/mine.yaml]"]
    asked = plan(data_root, *words).plans[0].rows[0].parts[0].stage
    assert {"scoring.py", "words_of_mine.py"} == {path.name for path in asked.files if path.suffix == ".py"}
    (tmp_path / "broken.py").write_text("def score(:\n")
    (tmp_path / "mine.yaml").write_text(f"{OWN_TASK}process_results: !function broken.score\n")
    with pytest.raises(ValueError, match=r"broken.py is not Python: line 1"):
        plan(data_root, *words)
