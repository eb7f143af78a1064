"""A results folder as a run leaves it: stages, result files, leaderboards, figures, answers. The places of
the paper's sources, and plans over them."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoder.runtime.config import ROOT, dump
from harness.command_line import make_plans
from harness.config import chosen_suites, parse
from harness.metrics.config import Metric, ScoreConfig
from harness.paper.sources import LARGE, SOURCES
from harness.running.launch import Outcome, launch_facts
from harness.running.stages import Graph, Stage
from harness.tables import leaderboard
from harness.tables.result_files import Identity, Part, Row, collect, merge_seeds
from llava_bridge.config import EvaluateConfig

NUM_QUESTIONS = 6
ENCODERS = {"ov3-demo": 1.0, "clip-demo": 0.8}  # name -> how good
UNSEEN = "this encoder sees nothing: there is nothing to decode"


@dataclasses.dataclass(frozen=True)
class Made:
    """Where it was made."""

    results: Path  # results/demo
    runs: Path


@pytest.fixture
def make_results(tmp_path) -> Callable[..., Made]:
    """make(name, encoders={name: how good}, question=..., seeds=...): a folder with both suites."""

    def make(name="a", *, encoders=ENCODERS, question="What is on the left?", seeds=(0,)) -> Made:
        made = Made(results=tmp_path / name / "results" / "demo", runs=tmp_path / name / "runs")
        made.results.mkdir(parents=True)
        data = _write_data(tmp_path / name, question)
        runs = range(len(seeds))
        _write_suite(made, "understanding", [_understanding(made, encoders, data, i) for i in runs], seeds)
        _write_suite(made, "generation", [_generation(made, encoders, i) for i in runs], seeds)
        for suite, figure in (("generation", "reconstructions"), ("understanding", "seed_dimensions")):
            Image.fromarray(_noise(90, 300)).save(made.results / suite / f"{figure}.png")
        return made

    return make


def _understanding(made: Made, encoders: dict[str, float], data: Path, run: int) -> list[tuple[Row, Stage]]:
    """`run`: of which seed; each finds values that are a little larger."""
    (config,) = chosen_suites("understanding")
    rows = []
    for name, good in {**encoders, "blind": 0.0}.items():
        spread = {key: (len(key) * 7) % 11 for key in config.keys}
        numbers = {key: _metric(28 + 50 * good + spread[key] + run, 1.3, "%", True) for key in config.keys}
        stage_config = EvaluateConfig(
            model=f"model of {name}", tasks={"scenes_seed": str(data)}, task_dir="harness/tasks", seed=run
        )
        stage = _stage(made, "llava_evaluate", "llava_bridge.evaluate", stage_config, numbers)
        lines = [
            {
                "task": "scenes_seed",
                "question_id": str(i),
                "group": 0,
                "answer": "B",
                "response": f"B. {name}",
            }
            | {"prediction": "B", "is_correct": i < good * NUM_QUESTIONS}
            for i in range(NUM_QUESTIONS)
        ]
        (stage.folder / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        rows.append(_row(made, name, "blind" if name == "blind" else "measured", stage, numbers, {}))
    return rows


def _generation(made: Made, encoders: dict[str, float], run: int) -> list[tuple[Row, Stage]]:
    rows = []
    for name, good in encoders.items():
        numbers = {
            "rFD-lite0": _metric(3.1 / good, None, "", False),
            "PSNR": _metric(25.4 * good + run, 0.1, "dB", True),
            "SSIM": _metric(0.81 * good, 0.004, "", True),
            "gFD-lite0": _metric(21.0 / good**2, None, "", False),
            "KID-lite0": _metric(0.0123 / good, 0.0004, "", False),
            "precision-lite0": _metric(0.71 * good, 0.01, "", True),
            "recall-lite0": _metric(0.55, 0.01, "", True),
            "IS-lite0": _metric(4.2 * good, None, "", True),
        }
        stage = _stage(made, "score", "harness.metrics.score", _score(name, run), numbers)
        rows.append(_row(made, name, "measured", stage, numbers, {}))
    floor = {"gFD-lite0": _metric(1.9, None, "", False), "recall-lite0": _metric(0.9, 0.01, "", True)}
    stage = _stage(made, "score", "harness.metrics.score", _score("floor"), floor)
    reasons = dict.fromkeys(("rFD-lite0", "PSNR", "SSIM"), "the two sets hold different pictures")
    rows.append(_row(made, "real vs real", "floor", stage, floor, reasons))
    row, stage = _row(made, "blind", "blind", stage, {}, dict.fromkeys(numbers, UNSEEN))
    rows.append((dataclasses.replace(row, parts=()), stage))
    return rows


def _score(name: str, run: int = 0) -> ScoreConfig:
    pictures = f"pictures of {name}{f', run {run}' if run else ''}"
    return ScoreConfig(kind="generation", pictures=pictures, reference="somewhere")


def _metric(value: float, stderr: float | None, unit: str, higher_is_better: bool) -> Metric:
    return Metric(value=value, stderr=stderr, unit=unit, higher_is_better=higher_is_better, num_samples=2000)


def _stage(made: Made, name: str, module: str, config: object, numbers: dict[str, Metric]) -> Stage:
    """A complete stage's folder, as the launcher and the stage write it."""
    stage = Graph(made.runs).add(name, module, config)
    stage.folder.mkdir(parents=True, exist_ok=True)  # one that the seed does not reach: once
    dump(config, stage.folder / "config.yaml")
    result = {"metrics": {key: dataclasses.asdict(metric) for key, metric in numbers.items()}}
    (stage.folder / "DONE.json").write_text(json.dumps({"seconds": 2.5, "result": result}))
    (stage.folder / "launch.json").write_text(json.dumps(launch_facts(stage, threads=1)))
    return stage


def _row(made: Made, name: str, kind: str, stage: Stage, numbers: dict, undefined: dict) -> tuple[Row, Stage]:
    weights = made.runs / f"weights {stage.fingerprint}"
    weights.write_text(name)
    part = Part(stage=stage, keys=tuple(numbers), checkpoint=(weights,), data=(weights,))
    return Row(encoder=name, kind=kind, source=f"of {name}", parts=(part,), undefined=undefined), stage


def _write_suite(made: Made, name: str, runs: list[list[tuple[Row, Stage]]], seeds: Sequence[int]) -> None:
    (config,) = chosen_suites(name)
    folder = made.results / name
    collected = []
    for rows, seed in zip(runs, seeds, strict=True):
        identity = Identity(suite=name, preset="demo", seed=seed)
        ends = [(row, {stage.folder: Outcome("done")}) for row, stage in rows]
        collected.append([collect(row, outcomes, folder, identity) for row, outcomes in ends])
    merged = [merge_seeds(rows) for rows in zip(*collected, strict=True)]
    leaderboard.write(leaderboard.build(config, "demo", merged, folder), config, folder)


def _write_data(folder: Path, question: str) -> Path:
    rows = [
        {"question_id": str(i), "question": question, "answer": "B", "image": [_picture(i)]}
        | {f"choice_{letter}": f"a {colour} boat" for letter, colour in zip("abcd", "rgby", strict=True)}
        for i in range(NUM_QUESTIONS)
    ]
    path = folder / "questions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _picture(seed: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(_noise(64, 64, seed)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return coarse.repeat(10, 0).repeat(10, 1)[:height, :width]


@pytest.fixture
def data_root(tmp_path) -> Path:
    """The places of the paper's sources, the folders empty but for what is read before anything runs."""
    root, layout = tmp_path / "data", {name: source.places[0] for name, source in SOURCES.items()}
    for name, place in layout.items():
        path = root / place
        is_file = path.suffix in (".pth", ".npz", ".safetensors")  # vicuna-7b-v1.5 is a folder
        (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
        if is_file:
            path.write_bytes(name.encode())
    (root / LARGE["clip"].places[0]).mkdir()
    for name in ("base-patch2-28", "base-patch2-32", "large-patch2-32"):
        (root / layout["openvision3"] / f"openvision3-vit-{name}").mkdir()
    for place in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Instruct/llava_v1_5_mix665k.json"):
        (root / place).write_text("[]")
    np.savez(
        root / layout["adm"], mu=np.zeros(2048), sigma=np.eye(2048), arr_0=np.zeros((1, 2, 2, 3), np.uint8)
    )
    shutil.copy(ROOT / "weights" / "demo" / "vae" / "config.json", root / layout["vae"])
    return root


@pytest.fixture
def plan() -> Callable[..., Graph]:
    """plan(data_root, *words, preset="paper"): the graph of what these words ask for."""

    def plan(data_root: Path, *words: str, preset: str = "paper") -> Graph:
        words = [f"data_root={data_root}", f"preset={preset}", f"runs_dir={data_root}/runs", *words]
        options, preset = parse(words)
        graph = Graph(options.runs_dir)
        graph.plans = make_plans(graph, options, preset)
        return graph

    return plan


@pytest.fixture
def stages() -> Callable[..., list[Stage]]:
    """stages(graph, module, name): those of a module whose labels begin with a name."""
    return lambda graph, module, name: [
        each for each in graph if each.module == module and each.label.startswith(name)
    ]
