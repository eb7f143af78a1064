"""Presets on real sources: where each is looked for, what the stages are told, what marks a rehearsal."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from encoder.options import EncoderConfig
from encoder.runtime.config import ROOT, ConfigError
from harness import subcommands
from harness.command_line import main, make_plans
from harness.config import parse, results_folder
from harness.paper.look import Seen, look, render
from harness.paper.sources import LARGE, SOURCES, SourcesConfig, locate
from harness.replica.mark import MARK
from harness.running.cost_released import released_disk_mb, released_flops, tower
from harness.running.stages import Graph

LAYOUT = {name: source.places[0] for name, source in SOURCES.items()}
REHEARSAL = ROOT / "configs" / "rehearsals" / "paper.yaml"


@pytest.fixture
def data_root(tmp_path) -> Path:
    """Every source's place, the folders empty but for what is read before anything runs."""
    root = tmp_path / "data"
    for name, place in LAYOUT.items():
        path = root / place
        is_file = path.suffix in (".pth", ".npz", ".safetensors")  # vicuna-7b-v1.5 is a folder
        (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
        if is_file:
            path.write_bytes(name.encode())
    (root / LARGE["clip"].places[0]).mkdir()
    for name in ("base-patch2-28", "base-patch2-32", "large-patch2-32"):
        (root / LAYOUT["openvision3"] / f"openvision3-vit-{name}").mkdir()
    for place in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Instruct/llava_v1_5_mix665k.json"):
        (root / place).write_text("[]")
    np.savez(
        root / LAYOUT["adm"], mu=np.zeros(2048), sigma=np.eye(2048), arr_0=np.zeros((1, 2, 2, 3), np.uint8)
    )
    shutil.copy(ROOT / "weights" / "demo" / "vae" / "config.json", root / LAYOUT["vae"])
    return root


def plan(data_root: Path, *words: str, preset: str = "paper") -> Graph:
    words = [f"data_root={data_root}", f"preset={preset}", f"runs_dir={data_root}/runs", *words]
    options, preset = parse(words)
    graph = Graph(options.runs_dir)
    graph.plans = make_plans(graph, options, preset)
    return graph


def stages(graph: Graph, module: str, name: str):
    return [each for each in graph if each.module == module and each.label.startswith(name)]


def test_each_encoder_gets_its_release_of_the_suites_resolution(data_root):
    graph = plan(data_root, "suite=understanding")
    places = {stage.config.name: stage.config for stage in graph if stage.module == "harness.described"}
    assert places["ov3-b"].source == str(data_root / "openvision3" / "openvision3-vit-base-patch2-28")
    assert places["ov3-b"].vae == str(data_root / LAYOUT["vae"])
    assert places["clip-b"].source == f"clip:{data_root / LAYOUT['clip']}"
    assert places["clip-b"].features.understanding == "penultimate"  # LLaVA's select_layer -2


@pytest.mark.parametrize("suite", ["understanding", "generation"])
def test_l_is_as_b_but_for_its_encoders(data_root, suite):
    large, base = (plan(data_root, f"suite={suite}", preset=name) for name in ("paper_l", "paper"))
    places = {stage.config.name: stage.config for stage in large if stage.module == "harness.described"}
    assert places["ov3-l"].source == str(data_root / "openvision3" / "openvision3-vit-large-patch2-32")
    assert places["clip-l"].source == f"clip:{data_root / LARGE['clip'].places[0]}"
    assert [stage.label.replace("-l:", "-b:") for stage in large] == [stage.label for stage in base]
    for one, other in zip(large, base, strict=True):
        for field in ("num_steps", "batch_size", "learning_rate", "num_samples"):
            assert getattr(one.config, field, None) == getattr(other.config, field, None)


def test_llava_is_trained_on_its_own_records_with_live_pictures(data_root):
    graph = plan(data_root, "suite=understanding")
    first, second = stages(graph, "llava_bridge.train", "clip-b")
    assert (first.config.aspect, second.config.aspect) == ("crop", "pad")
    assert first.config.tokens is None and second.config.tokens is None
    assert first.config.init == str(data_root / LAYOUT["language_model"])
    assert second.config.init == str(first.folder / "weights")
    assert second.config.data == [str(data_root / "LLaVA-Instruct" / "llava_v1_5_mix665k.json")]
    assert second.config.image_root == str(data_root / "LLaVA-Instruct")
    assert (first.config.batch_size, second.config.batch_size) == (256, 128)


def test_the_row_has_the_benchmarks_real_keys_and_names_its_language_model(data_root):
    row = plan(data_root, "suite=understanding").plans[0].rows[0]
    assert {"SEED-Bench", "POPE/f1/official", "MME-P", "MME-C", "GQA", "ScienceQA", "ScienceQA-IMG"} <= set(
        row.parts[0].keys
    )
    assert "language model: vicuna-7b-v1.5" in row.source


@pytest.mark.parametrize("overrides", [(), (f"overrides={REHEARSAL}",)])
def test_llava_next_s_rows_stand_beside_llava_s_on_the_same_records(data_root, overrides):
    words = ("suite=understanding", "llava.framework=[llava_1_5,llava_next]", *overrides)
    graph = plan(data_root, *words)
    ids = [row.encoder for row in graph.plans[0].rows]
    assert ids == ["ov3-b", "clip-b", "ov3-b/llava_next", "clip-b/llava_next"]
    ours, theirs = (
        [stage.config for stage in stages(graph, "llava_bridge.train", f"{name}: LLaVA stage")]
        for name in ("clip-b", "clip-b/llava_next")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.data, one.image_root, one.tokens) == (other.data, other.image_root, None)
        assert (one.framework, other.framework) == ("llava_1_5", "llava_next")
        assert (other.aspect, other.max_length, other.batch_size) == ("stretch", 4096, one.batch_size)


def test_a_list_of_tasks_replaces_the_presets(data_root):
    row = plan(data_root, "suite=understanding", "tasks=[pope]").plans[0].rows[0]
    assert {key.split("/")[0] for key in row.parts[0].keys} == {"POPE"}
    with pytest.raises(ConfigError, match=r"task 'pop'.*pope"):
        plan(data_root, "suite=understanding", "tasks=[pop]")
    options, preset = parse(["preset=demo", "tasks=[pope]"])
    with pytest.raises(ConfigError, match="presets on real sources"):
        make_plans(Graph(Path("runs")), options, preset)


def test_sources_of_weights_may_be_hub_ids_in_the_cache(data_root, tmp_path, monkeypatch):
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


def test_one_release_stands_for_the_folder_of_releases(data_root, tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    (release / "open_clip_config.json").write_text("{}")
    graph = plan(data_root, "suite=understanding", f"sources.openvision3={release}")
    places = {stage.config.name: stage.config for stage in graph if stage.module == "harness.described"}
    assert places["ov3-b"].source == str(release)


OWN_TASK = """\
task: colours
dataset_path: parquet
dataset_kwargs: {data_files: {test: colours.parquet}}
metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]
"""


def test_tasks_of_ones_own_are_asked_beside_the_others_and_anew_when_their_data_change(data_root, tmp_path):
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


def test_what_a_tasks_code_imports_is_part_of_it(data_root, tmp_path, monkeypatch):
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


def test_both_rows_get_the_same_decoder_and_tokens_are_live(data_root):
    graph = plan(data_root, "suite=generation")
    ours, clip = (stages(graph, "rae_bridge.train_decoder", name)[0].config for name in ("ov3-b", "clip-b"))
    for name in ("ov3-b", "clip-b"):  # what cannot be decoded says so before the DiT is trained
        (dit,) = stages(graph, "rae_bridge.train", name)
        assert stages(graph, "rae_bridge.reconstruct", name)[0] in graph.waits_for(dit)
    assert ours.size == clip.size and ours.num_steps == clip.num_steps
    assert ours.adversarial.checkpoint == str(data_root / LAYOUT["dino"])
    assert ours.live == clip.live and (ours.live.crop, ours.live.flip) == ("random", False)  # RAE's
    trained = stages(graph, "rae_bridge.train", "ov3-b")[0]
    assert trained.config.tokens is None and trained.config.pictures.folder == str(data_root / "imagenet")
    decoder = next(stage for stage in graph if stage.label == "ov3-b: where it lies, with its decoder").config
    assert decoder.decoder == str(stages(graph, "rae_bridge.train_decoder", "ov3-b")[0].folder / "weights")
    assert not [stage for stage in graph if stage.module == "encoder.tokens"]


def test_a_guided_row_draws_with_what_the_same_grid_found(data_root):
    graph = plan(data_root, "suite=generation")
    ours, clip = (stages(graph, "rae_bridge.sweep", name)[0] for name in ("ov3-b", "clip-b"))
    assert (ours.config.scales, ours.config.ends) == (clip.config.scales, clip.config.ends)
    assert max(ours.config.scales) == 9 and (ours.config.end, ours.config.rounding) == ("rae", "truncate")
    assert ours.config.judge.weights == str(data_root / LAYOUT["inception"])
    plain, guided = (stage.config for stage in stages(graph, "rae_bridge.generate", "ov3-b"))
    assert guided == dataclasses.replace(plain, guidance_from=str(ours.folder))
    assert ours.config.seed != plain.seed
    rows = {row.encoder: row for row in graph.plans[0].rows}
    names = [name for name, row in rows.items() if row.kind != "ceiling"]
    assert names == ["ov3-b", "ov3-b, guided", "clip-b", "clip-b, guided", "real vs real"]
    row = rows["ov3-b, guided"]
    assert set(row.undefined) == set(rows["ov3-b"].parts[0].keys)
    assert "PSNR" not in row.parts[0].keys
    assert set(rows["real vs real"].undefined) == set(rows["ov3-b"].parts[0].keys)  # LPIPS too
    ceiling = rows["ov3-b, decoded real tokens"]  # against published statistics the reconstructions serve
    assert ceiling.source.endswith("the reconstructions, scored like samples")
    assert set(ceiling.undefined.values()) == {
        "these are the reconstructions themselves: see the row of the encoder"
    }
    without = plan(data_root, "suite=generation", "rae.guided=null")
    names = [row.encoder for row in without.plans[0].rows if row.kind != "ceiling"]
    assert names == ["ov3-b", "clip-b", "real vs real"]


def test_a_suite_needs_its_own_sources_alone(data_root):
    shutil.rmtree(data_root / "adm")
    shutil.rmtree(data_root / "openvision3" / "openvision3-vit-base-patch2-32")
    assert len(plan(data_root, "suite=understanding").plans) == 1
    with pytest.raises(FileNotFoundError, match="openvision3-vit-base-patch2-32"):
        plan(data_root, "suite=generation")


def test_a_picture_that_comes_or_goes_changes_what_reads_its_folder_and_nothing_else(data_root):
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


def test_the_plan_counts_what_the_config_files_say(data_root, capsys):
    words = ["--plan", "suite=all", "preset=paper", f"data_root={data_root}", f"runs_dir={data_root}/runs"]
    assert main(words) == 0
    assert "without the FLOPs of 18 stages" in capsys.readouterr().out  # no config file is there
    config = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    clip = {"vision_config": {**config, "image_size": 224, "patch_size": 16}}
    (data_root / LAYOUT["clip"] / "config.json").write_text(json.dumps(clip))
    language_model = {**config, "vocab_size": 100}
    (data_root / LAYOUT["language_model"] / "config.json").write_text(json.dumps(language_model))
    vision = {
        "image_size": 32,
        "patch_size": 2,
        "in_channels": 16,
        "width": 64,
        "layers": 2,
        "head_width": 16,
    }
    release = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision}}
    for folder in (data_root / LAYOUT["openvision3"]).iterdir():
        (folder / "open_clip_config.json").write_text(json.dumps(release))
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "without the FLOPs" not in text and "published: GPU-hours that others print" in text
    graph = plan(data_root, "suite=all")
    (decoder,) = stages(graph, "rae_bridge.train_decoder", "clip-b")
    kept_graph = plan(data_root, "suite=all", "rae.train_decoder.live=null")
    (kept,) = stages(kept_graph, "rae_bridge.train_decoder", "clip-b")
    of_pictures = 1_281_167 * (3 * 224**2 + 2 * 196 * 64) / 1e6
    assert released_disk_mb(kept) - released_disk_mb(decoder) == pytest.approx(of_pictures)
    assert 0 < released_disk_mb(decoder) < 10_000  # a checkpoint of ViT-XL
    seen = tower(EncoderConfig(name="clip", source=f"clip:{data_root / LAYOUT['clip']}")).flops
    more = (40_032 * 512 - 1_281_167) * seen  # every picture of every step goes through the encoder
    assert released_flops(decoder) - released_flops(kept) == pytest.approx(more, rel=1e-3)
    (trained,) = stages(graph, "rae_bridge.train", "clip-b")
    twice = plan(data_root, "suite=all", f"rae.train.num_steps={2 * trained.config.num_steps}")
    (longer,) = stages(twice, "rae_bridge.train", "clip-b")
    assert released_flops(longer) == pytest.approx(2 * released_flops(trained), rel=1e-3)


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


def test_the_rehearsals_overrides_fit_the_preset(data_root):
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


def test_the_benchmarks_are_no_part_of_the_evaluations_fingerprint(data_root):
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
