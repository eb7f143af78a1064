"""A third row of the paper's tables: an encoder that the run trains first, by a recipe on the sources."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from encoder.runtime.config import ROOT, ConfigError
from encoder.training.flops import sample_flops
from encoder.training.plan import vae_shape
from harness.command_line import make_plans
from harness.config import parse
from harness.paper.sources import SOURCES, TO_TRAIN
from harness.running.cost_released import is_released, released_flops
from harness.running.stages import Graph
from harness.subcommands import look_at_sources

ROWS = "encoders=[ov3-b,clip-b,ov3-own]"


@pytest.fixture
def data_root(tmp_path) -> Path:
    """The places of the sources that a plan reads; the release's folders are empty."""
    root = tmp_path / "data"
    for name in ("imagenet", "vae", "clip", "recap_datacomp", "bert", "language_model", "benchmarks"):
        (root / (SOURCES | TO_TRAIN)[name].places[0]).mkdir(parents=True)
    for place in ("base-patch2-28", "base-patch2-32"):
        (root / "openvision3" / f"openvision3-vit-{place}").mkdir(parents=True)
    for name in ("inception", "lpips", "adm", "dino"):
        file = root / SOURCES[name].places[0]
        file.parent.mkdir()
        file.write_bytes(b"")
    np.savez(root / SOURCES["adm"].places[0], mu=np.zeros(2), sigma=np.eye(2))
    shutil.copy(ROOT / "weights" / "demo" / "vae" / "config.json", root / SOURCES["vae"].places[0])
    (root / "bert-base-uncased" / "vocab.txt").write_text("[PAD]\n")
    for name in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Instruct/llava_v1_5_mix665k.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("[]")
    return root


def plan(data_root: Path, *words: str) -> Graph:
    words = [f"data_root={data_root}", "preset=paper", f"runs_dir={data_root}/runs", *words]
    options, preset = parse(words)
    graph = Graph(options.runs_dir)
    graph.plans = make_plans(graph, options, preset)
    return graph


def of_module(graph: Graph, module: str, name: str = "ov3-own"):
    return [each for each in graph if each.module == module and each.label.startswith(name)]


def test_each_suite_judges_its_phase_of_the_recipe_on_the_sources(data_root):
    graph = plan(data_root, "suite=all", ROWS)
    recipe = yaml.safe_load((ROOT / "configs" / "recipes" / "paper_b.yaml").read_text())
    names = [stage.label.removeprefix("ov3-own: train, ") for stage in of_module(graph, "encoder.train")]
    assert names == ["pretrain_128", "finetune_256", "finetune_224"]  # the first serves both
    first, for_generation, for_understanding = of_module(graph, "encoder.train")
    for stage, phase, side in zip(
        (first, for_generation, for_understanding), recipe["phases"], (16, 32, 28), strict=True
    ):
        config = stage.config
        assert config.num_steps == int(phase["epochs"] * 1_281_167 / phase["batch_size"])
        assert config.openvision3.encoder.image_size == side  # latents
        assert config.data == str(data_root / "recap-datacomp" / "held_out")
        assert [each.shards for each in config.stream.sources] == [
            str(data_root / "recap-datacomp" / "train")
        ]
        assert config.openvision3.text.tokenizer == str(data_root / "bert-base-uncased")
        assert config.vae == str(data_root / "FLUX.1-dev" / "vae")
        assert Path(config.lpips_trunk) == data_root / "lpips" / "vgg16-397923af.pth"
    assert first.config.init is None
    assert for_generation.config.init == for_understanding.config.init == str(first.folder)
    (dit,) = of_module(graph, "rae_bridge.train")
    (align, _) = of_module(graph, "llava_bridge.train")
    assert for_generation in dit.inputs and for_understanding in align.inputs
    assert not of_module(graph, "rae_bridge.train_decoder")  # it decodes itself


def test_the_networks_that_it_is_trained_with_are_part_of_its_fingerprint(data_root):
    trunk = data_root / "lpips" / "vgg16-397923af.pth"
    before = of_module(plan(data_root, "suite=generation", ROWS), "encoder.train")
    trunk.write_bytes(b"one")
    graph = plan(data_root, "suite=generation", ROWS)
    after = of_module(graph, "encoder.train")
    assert [trunk in stage.files for stage in after] == [False, True]  # at 128 px there is no such term
    assert before[0].fingerprint == after[0].fingerprint and before[1].fingerprint != after[1].fingerprint
    (decoder,) = of_module(graph, "rae_bridge.train_decoder", "clip-b")
    assert {trunk, data_root / SOURCES["dino"].places[0]} <= set(decoder.files)


def test_its_row_stands_beside_the_others_with_the_same_keys(data_root):
    graph = plan(data_root, "suite=all", ROWS)
    for suite in graph.plans:
        rows = {row.encoder: row for row in suite.rows}
        keys = {name: {key for part in row.parts for key in part.keys} for name, row in rows.items()}
        assert keys["ov3-own"] == keys["ov3-b"] == keys["clip-b"]
        assert "trained by configs/recipes/paper_b.yaml, finetune_2" in rows["ov3-own"].source
        assert "decoder: own" in rows["ov3-own"].source
    assert "ov3-own, guided" in {row.encoder for row in graph.plans[0].rows}


def test_nothing_is_trained_and_no_shards_are_needed_unless_the_row_is_asked_for(data_root, capsys):
    shutil.rmtree(data_root / "recap-datacomp")
    assert not of_module(plan(data_root, "suite=all"), "encoder.train", "")
    for words, is_asked in (([], False), ([ROWS], True)):
        options, preset = parse([f"data_root={data_root}", "preset=paper", *words])
        with pytest.raises(ConfigError, match="sources missing or wrong") as error:
            look_at_sources(options, preset, Console())
        assert ("recap_datacomp" in str(error.value)) == is_asked
        assert ("by img2dataset" in capsys.readouterr().out) == is_asked


def test_the_presets_values_go_over_the_recipes(data_root):
    graph = plan(
        data_root, "suite=generation", ROWS, "trained.ov3-own.settings.seed=3",
        "trained.ov3-own.settings.stream.sources=[{shards: 's3://bucket/{0..9}.tar'}]",
        "trained.ov3-own.phases.pretrain_128.epochs=1",
    )  # fmt: skip
    first, last = of_module(graph, "encoder.train")
    assert (first.config.seed, first.config.num_steps) == (3, 1_281_167 // 8192)
    assert last.config.stream.sources[0].shards == "s3://bucket/{0..9}.tar"


@pytest.mark.parametrize(("place", "is_asked"), [
    ("s3://bucket/{0..9}.tar", False), ("data/recap-datacomp/train/*.tar", True), ("other/*.tar", False),
])  # fmt: skip
def test_shards_to_train_on_are_looked_for_where_the_preset_says(data_root, capsys, place, is_asked):
    place = place if "://" in place else f"{data_root.parent}/{place}"
    own = f"trained.ov3-own.settings.stream.sources=[{{shards: '{place}'}}]"
    options, preset = parse([f"data_root={data_root}", "preset=paper", ROWS, own])
    with pytest.raises(ConfigError, match="sources missing or wrong"):
        look_at_sources(options, preset, Console())
    missing = "train" if is_asked else "held_out/val"
    assert f"has no shards (*.tar) in {missing}" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "said"), [
    ("trained.ov3-own.generation=finetune_265", r"phase 'finetune_265'.*finetune_256"),
    ("trained.ov3-own.phases.pretrain_182.epochs=1", r"phase 'pretrain_182'.*pretrain_128"),
    ("trained.ov3-own.phases.pretrain_128.epoch=1", r"trained\.ov3-own.*epoch"),
    ("trained.ov3-own.settings.omega=1", r"omega"),
    ("trained.ov3-own.recipe=configs/weights/ov3.yaml", r"configs/weights/ov3.yaml has no phases"),
])  # fmt: skip
def test_what_no_recipe_can_mean_is_refused(data_root, word, said):
    with pytest.raises(ConfigError, match=said):
        plan(data_root, "suite=generation", ROWS, word)


def test_only_presets_on_real_sources_have_such_rows():
    with pytest.raises(ConfigError, match="others have foundation"):
        parse(["preset=demo", "trained.x={recipe: a, understanding: b, generation: c}"])


def test_its_flops_are_its_recipes_and_its_towers(data_root):
    graph = plan(data_root, "suite=all", ROWS)
    first = of_module(graph, "encoder.train")[0]
    each = sum(sample_flops(first.config, vae_shape(first.config.vae)).values())
    assert released_flops(first) == pytest.approx(first.config.num_steps * first.config.batch_size * each)
    modules = {"rae_bridge.train", "rae_bridge.generate", "rae_bridge.reconstruct", "rae_bridge.sweep"}
    for stage in graph:
        if stage.module in modules and stage.label.startswith("ov3-own"):
            assert is_released(stage) and released_flops(stage) > 0
    language_model = {
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
        "vocab_size": 100,
    }  # fmt: skip
    (data_root / "vicuna-7b-v1.5" / "config.json").write_text(json.dumps(language_model))
    assert released_flops(of_module(graph, "llava_bridge.evaluate")[0]) > 0
