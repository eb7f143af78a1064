"""Presets on real sources: where each is looked for, what marks a rehearsal, what a run does without."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from encoder.runtime.config import ROOT, ConfigError
from harness import subcommands
from harness.command_line import main
from harness.config import parse, results_folder
from harness.paper.look import Seen, look, render
from harness.paper.sources import SOURCES, SourcesConfig, locate
from harness.replica.mark import MARK

LAYOUT = {name: source.places[0] for name, source in SOURCES.items()}
REHEARSAL = ROOT / "configs" / "rehearsals" / "paper.yaml"


def test_sources_of_weights_may_be_hub_ids_in_the_cache(data_root, tmp_path, monkeypatch, plan, stages):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    commit, ids = "3" * 40, {name: f"owner/{name}" for name in ("language_model", "clip", "inception", "vae")}
    config = SourcesConfig(**{name: f"{each}@v1" for name, each in ids.items()})
    missing = {each.name: each for each in look(config, data_root, ids)}
    assert all(each.path is None for each in missing.values())
    assert missing["clip"].how == "hf download owner/clip --revision v1"
    assert "get it from hf download owner/vae --revision v1" in render(list(missing.values()))
    snapshots = {}
    for name in ids:
        folder = tmp_path / "home" / "hub" / f"models--owner--{name}"
        snapshots[name] = folder / "snapshots" / commit
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "v1").write_text(commit)
        snapshots[name].mkdir(parents=True)
    file = Path(LAYOUT["inception"]).name
    (snapshots["vae"] / "vae").mkdir()
    (tmp_path / "blob").write_bytes(b"inception")
    (snapshots["inception"] / file).symlink_to(tmp_path / "blob")
    found = locate(config, data_root)
    assert found["clip"] == snapshots["clip"] and found["vae"] == snapshots["vae"] / "vae"
    assert found["inception"] == snapshots["inception"] / file  # not the blob, whose name says nothing
    assert found["dino"] == data_root / LAYOUT["dino"]
    words = [f"sources.{name}={each}@v1" for name, each in ids.items() if name in ("language_model", "clip")]
    graph = plan(data_root, "suite=understanding", *words)
    row = next(row for row in graph.plans[0].rows if row.encoder == "clip-b")
    assert f"language model: owner/language_model@{commit[:12]}" in row.source and commit in row.source
    first, _ = stages(graph, "llava_bridge.train", "clip-b")
    assert first.config.init == str(snapshots["language_model"])


def test_one_release_stands_for_the_folder_of_releases(data_root, tmp_path, plan):
    release = tmp_path / "release"
    release.mkdir()
    (release / "open_clip_config.json").write_text("{}")
    graph = plan(data_root, "suite=understanding", f"sources.openvision3={release}")
    places = {stage.config.name: stage.config for stage in graph if stage.module == "harness.described"}
    assert places["ov3-b"].source == str(release)


def test_a_suite_needs_its_own_sources_alone(data_root, plan):
    shutil.rmtree(data_root / "adm")
    shutil.rmtree(data_root / "openvision3" / "openvision3-vit-base-patch2-32")
    assert len(plan(data_root, "suite=understanding").plans) == 1
    with pytest.raises(FileNotFoundError, match="openvision3-vit-base-patch2-32"):
        plan(data_root, "suite=generation")


def test_a_picture_that_comes_or_goes_changes_what_reads_its_folder_and_nothing_else(data_root, plan):
    def fingerprints():
        return {stage.label: stage.fingerprint for stage in plan(data_root, "suite=all")}

    def changed(before, after):
        return {label.partition(": ")[2] or label for label in before if before[label] != after[label]}

    pictures = [data_root / name for name in ("imagenet/val/n1/a.JPEG", "LLaVA-Instruct/vg/VG_100K/1.jpg")]
    for picture in pictures:
        picture.parent.mkdir(parents=True)
        picture.write_bytes(b"picture")
    before = fingerprints()
    pictures[0].write_bytes(b"resized")
    after = fingerprints()
    assert after == before  # as large as it was
    pictures[0].write_bytes(b"a resized picture")
    after, read = fingerprints(), {"LLaVA stage 1", "LLaVA stage 2", "answer and score", "where it lies"}
    assert changed(before, after) == {stage.partition(": ")[2] or stage for stage in before} - read
    pictures[1].unlink()
    assert changed(after, fingerprints()) == {"LLaVA stage 2", "answer and score"}


def test_a_source_of_its_own_place_wins_over_data_root(tmp_path):
    places = locate(SourcesConfig(language_model=str(tmp_path / "llama-3")), tmp_path / "root")
    assert places["language_model"] == tmp_path / "llama-3"
    assert places["imagenet"] == tmp_path / "root" / LAYOUT["imagenet"]


def test_no_data_root_is_one_line(capsys):
    assert main(["--plan", "preset=paper"]) == 2
    assert capsys.readouterr().err.startswith("error: no place for imagenet (ImageNet-1k): give data_root=")


def test_what_reads_a_replica_writes_to_the_rehearsals_folder_alone(data_root, tmp_path):
    words = [f"data_root={data_root}", "preset=paper", f"results_dir={tmp_path}/results"]
    assert results_folder(*parse(words)).name == "paper"
    (data_root / MARK).write_text(json.dumps({"replica": True}))
    assert results_folder(*parse(words)) == tmp_path / "results" / "rehearsal"
    elsewhere = [*words[1:], f"data_root={tmp_path}/elsewhere", f"sources.clip={data_root}/{LAYOUT['clip']}"]
    assert results_folder(*parse(elsewhere)).name == "rehearsal"


def test_the_rehearsals_overrides_fit_the_preset(data_root, plan, stages):
    assert len(plan(data_root, "suite=all", f"overrides={REHEARSAL}", preset="paper_l").plans) == 2
    graph = plan(data_root, "suite=all", f"overrides={REHEARSAL}")
    values = yaml.safe_load(REHEARSAL.read_text())
    trained = stages(graph, "rae_bridge.train", "ov3-b")[0].config
    assert trained.num_steps == values["rae"]["train"]["num_steps"] and trained.num_classes == 4
    assert stages(graph, "llava_bridge.train", "ov3-b")[0].config.aspect == "crop"  # the preset's own stays


@pytest.mark.parametrize("words", [["check"], []])
def test_a_missing_source_is_said_before_anything_runs(words, data_root, tmp_path, capsys):
    shutil.rmtree(data_root / "benchmarks")
    runs = tmp_path / "runs"
    words = [*words, "preset=paper", "suite=understanding", f"data_root={data_root}", f"runs_dir={runs}"]
    assert main(words) == 2
    said = capsys.readouterr()
    line, where, how = (part.strip() for part in said.out.partition("missing ")[2].splitlines()[:3])
    assert line.startswith("benchmarks") and where == f"looked for in {data_root}/benchmarks"
    assert how.startswith("get it from hub")
    assert re.match(r"error: sources missing or wrong: .*benchmarks.*docs/paper\.md", said.err)
    assert "imagenet" not in said.out  # which this suite does not read
    assert not runs.exists()


def test_a_run_goes_on_without_some_of_the_benchmarks_and_a_check_does_not(data_root, monkeypatch):
    counts = {"SEED-Bench": 2, "ScienceQA": 3}
    looked = Seen("benchmarks", "", data_root, (), "", counts, ("GQA: no folder",), False)
    fine = [Seen(name, "", data_root, (), "", {}, (), False) for name in ("llava_mix", "vae")]
    monkeypatch.setattr("harness.paper.look.look", lambda *args, **named: [*fine, looked])
    words = ["preset=paper", "suite=understanding", f"data_root={data_root}"]

    def look_at(*more, is_run=True):
        console = Console(record=True, width=200, file=io.StringIO())
        subcommands.look_at_sources(*parse([*words, *more]), console, is_run=is_run)
        return console.export_text()

    said = look_at()
    assert "GQA: no folder" in said and "the others run" in said
    for more, is_run in (((), False), (("tasks=[gqa,pope]",), True)):
        with pytest.raises(ConfigError, match="missing or wrong: benchmarks"):
            look_at(*more, is_run=is_run)
    fine.append(Seen("clip", "", None, (), "", {}, (), False))
    with pytest.raises(ConfigError, match="missing or wrong: clip, benchmarks"):
        look_at()


def test_the_benchmarks_are_no_part_of_the_evaluations_fingerprint(data_root, plan, stages):
    def evaluation():
        return stages(
            plan(data_root, "suite=understanding", "tasks=[gqa,pope]"), "llava_bridge.evaluate", "ov3"
        )[0]

    before = evaluation()
    assert before.data_sets == {"gqa": None, "pope": None}
    (data_root / "benchmarks" / "GQA").mkdir()
    (data_root / "benchmarks" / "GQA" / "test.parquet").write_bytes(b"questions")
    after = evaluation()
    assert after.fingerprint == before.fingerprint
    assert after.data_sets["gqa"] and after.data_sets["pope"] is None
