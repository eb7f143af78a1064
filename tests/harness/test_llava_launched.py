"""LLaVA's two stages and the evaluation in several processes, started by torchrun and as jobs of two machines
(submitit's local executor): one process's numbers."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from encoder.data.scenes.parquet import write_pope
from harness.running.display import Display
from harness.running.launch import Launcher, Outcome
from harness.running.lock import hold
from harness.running.stages import Graph
from llava_bridge.config import EvaluateConfig, LlavaConfig

TWO_MACHINES = {"cluster": "local", "timeout_min": 30, "tasks_per_node": 2}
ZERO2, ZERO3 = (f"configs/deepspeed/zero{number}.json" for number in (2, 3))


@pytest.fixture
def align(tmp_path) -> LlavaConfig:
    """Stage 1 over the demo's Llama and an encoder that sees nothing: two steps; every second record is of
    text alone, so that processes with and without a picture meet."""
    turns = [{"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "a red car"}]
    records = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(4)]
    text = [{**turns[0], "value": "say something"}, {**turns[1], "value": "a small blue house"}]
    records += [{"id": str(i), "conversations": text} for i in range(4, 8)]
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "records.json").write_text(json.dumps(records))
    return LlavaConfig(
        stage=1,
        encoder="blind",
        data=[str(tmp_path / "records.json")],
        image_root=str(tmp_path),
        records_cache=str(tmp_path / "cache"),
        init="weights/demo/llama",
        batch_size=4,
        micro_batch_size=1,
        max_length=128,
        learning_rate=1e-3,
        precision="fp32",
        grouping="random",
        deepspeed=ZERO3,
        log_steps=1,
    )


def add(graph: Graph, align: LlavaConfig, start: Path | None, tmp_path: Path, *wanted: str):
    """The wanted stages; start: weights that the later ones read where they are not of this graph."""
    if "align" in wanted:
        stage = graph.add("align", "llava_bridge.train", align)
        start = stage.folder / "weights"
    if "instruct" in wanted:
        config = replace(align, stage=2, init=str(start), deepspeed=ZERO2)
        inputs = [stage] if "align" in wanted else []
        stage = graph.add("instruct", "llava_bridge.train", config, inputs=inputs)
        start = stage.folder / "weights"
    if "evaluate" in wanted:
        questions = {"scenes_pope": str(tmp_path / "pope.parquet")}
        config = EvaluateConfig(model=str(start), tasks=questions, batch_size=4, max_new_tokens=2)
        inputs = [stage] if "instruct" in wanted else []
        graph.add("evaluate", "llava_bridge.evaluate", config, inputs=inputs)


def run(graph: Graph, **chosen) -> dict[str, Outcome]:
    display = Display(graph, 1, Console(file=io.StringIO(), force_terminal=False))
    graph.runs_dir.mkdir(parents=True)
    with hold(graph.runs_dir) as lock:
        launcher = Launcher(graph=graph, jobs=1, threads=1, lock=lock, display=display, **chosen)
        outcomes = launcher.run()
    return {stage.name: outcomes[stage.folder] for stage in graph}


def losses(stage) -> list[float]:
    lines = (stage.folder / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_torchrun_and_slurm_give_the_numbers_of_one_process(align, tmp_path):
    pytest.importorskip("submitit")
    write_pope(tmp_path / "pope.parquet", 0, 4, 64)
    graphs = {name: Graph(tmp_path / name / "runs") for name in ("local", "torchrun", "slurm")}
    add(graphs["local"], align, None, tmp_path, "align", "instruct", "evaluate")
    alone = {stage.name: stage for stage in graphs["local"]}
    ends = run(graphs["local"])
    assert {name: end.state for name, end in ends.items()} == dict.fromkeys(alone, "done"), ends
    one = {name: stage.done()["result"] for name, stage in alone.items()}
    assert (one["align"]["data"]["num_samples"], one["align"]["data"]["num_text_only"]) == (8, 4)

    add(graphs["torchrun"], align, None, tmp_path, "align")
    add(graphs["torchrun"], align, alone["instruct"].folder / "weights", tmp_path, "evaluate")
    add(graphs["slurm"], align, alone["align"].folder / "weights", tmp_path, "instruct")
    ends = run(graphs["torchrun"], launch="torchrun", processes=2)
    ends |= run(graphs["slurm"], launch="slurm", slurm=TWO_MACHINES)
    for stage in (*graphs["torchrun"], *graphs["slurm"]):
        assert ends[stage.name].state == "done", (ends[stage.name].reason, stage.log.read_text()[-2000:])
        result = stage.done()["result"]
        assert result["processes"] == 2
        if stage.name == "evaluate":
            assert result["metrics"] == one["evaluate"]["metrics"]
            answers = (stage.folder / "samples.jsonl").read_text()
            assert answers == (alone["evaluate"].folder / "samples.jsonl").read_text()
        else:
            assert len(losses(stage)) == 2
            assert losses(stage) == pytest.approx(losses(alone[stage.name]), abs=1e-4)
            assert result["deepspeed"] == {**one[stage.name]["deepspeed"]}
