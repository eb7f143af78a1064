"""A run over several seeds, from the stages' processes to the tables and back by `verify`."""

import dataclasses
import json
import os
import time

from rich.console import Console

from harness import command_line
from harness.config import chosen_suites, parse
from harness.running.stages import Graph
from harness.suites.request import SuitePlan
from harness.tables.result_files import Part, Row
from harness.verify import verify

STAGE = '''"""A stage whose number is its seed."""
import dataclasses
from encoder.runtime.stage import main

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    seed: int
    key: str

def run(config, out_dir):
    metric = {"value": config.seed + 20.0, "stderr": 0.5, "unit": "dB"}
    metric |= {"higher_is_better": True, "num_samples": 9}
    return {"metrics": {config.key: metric}}

if __name__ == "__main__":
    main(Config, run)
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    seed: int
    key: str


def test_two_seeds_give_one_row_that_can_be_rebuilt(tmp_path, monkeypatch):
    module = f"seed_{os.getpid()}_{time.monotonic_ns()}"
    (tmp_path / f"{module}.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    places = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]
    options, preset = parse([*places, "suite=generation", "seeds=[3,5]"])
    (suite,) = chosen_suites("generation")
    graph, plans = Graph(options.runs_dir), []
    for seed in options.all_seeds:
        stages = [graph.add("score", module, Config(seed=seed, key="PSNR"), label=f"PSNR {seed}")]
        stages.append(
            graph.add("score", module, Config(seed=0, key="SSIM"), label="SSIM")
        )  # no seed reaches it
        parts = tuple(Part(stage=stage, keys=(stage.config.key,)) for stage in stages)
        row = Row(encoder="ov3-demo", kind="measured", source="", parts=parts, undefined={})
        plans.append(SuitePlan(suite=suite, rows=[row], draw=lambda folder, board: [], seed=seed))
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: SIM115
    assert command_line.run(graph, plans, options, preset, console) == 0
    results = tmp_path / "results" / "demo"
    board = json.loads((results / "generation" / "leaderboard.json").read_text())
    row = board["rows"][0]
    psnr, ssim = row["metrics"]["PSNR"], row["metrics"]["SSIM"]
    assert (psnr["value"], psnr["std"], psnr["num_seeds"]) == (24.0, 2**0.5, 2)
    assert [name.split("/")[2] for name in psnr["result_files"]] == ["seed3", "seed5"]
    assert (ssim["value"], ssim["std"], ssim["num_seeds"]) == (20.0, None, 1)
    assert "24.00 ± 1.41 (n=2)" in console.export_text()
    for ending, words in (("md", "24.00 ± 1.41 (n=2)"), ("tex", r"24.00 $\pm$ 1.41 (n=2)")):
        assert words in (results / "generation" / f"leaderboard.{ending}").read_text()
    table = (results / "generation" / "leaderboard.csv").read_text().splitlines()
    cells = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert [cells[f"PSNR{what}"] for what in ("", " std", " seeds")] == ["24.0", str(2**0.5), "2"]
    page = (results / "report.html").read_text()
    assert "<dt>mean of 2 seeds</dt><dd>24.0 dB</dd>" in page
    assert "seed 3: 23.0 dB" in page and "seed 5: 25.0 dB" in page
    verdict = verify(results)
    assert verdict.faults == []
    assert verdict.num_stages == 3
