"""Presets on real sources: the rows, and what their stages are told."""

import dataclasses
import json

import pytest

from encoder.options import EncoderConfig
from encoder.runtime.config import ROOT
from harness.command_line import main
from harness.paper.sources import LARGE, SOURCES
from harness.running.cost_released import released_disk_mb, released_flops, tower

LAYOUT = {name: source.places[0] for name, source in SOURCES.items()}
REHEARSAL = ROOT / "configs" / "rehearsals" / "paper.yaml"


def test_each_encoder_gets_its_release_of_the_suites_resolution(data_root, plan):
    graph = plan(data_root, "suite=understanding")
    places = {stage.config.name: stage.config for stage in graph if stage.module == "harness.described"}
    assert places["ov3-b"].source == str(data_root / "openvision3" / "openvision3-vit-base-patch2-28")
    assert places["ov3-b"].vae == str(data_root / LAYOUT["vae"])
    assert places["clip-b"].source == f"clip:{data_root / LAYOUT['clip']}"
    assert places["clip-b"].features.understanding == "penultimate"  # LLaVA's select_layer -2


@pytest.mark.parametrize("suite", ["understanding", "generation"])
def test_l_is_as_b_but_for_its_encoders(data_root, suite, plan):
    large, base = (plan(data_root, f"suite={suite}", preset=name) for name in ("paper_l", "paper"))
    places = {stage.config.name: stage.config for stage in large if stage.module == "harness.described"}
    assert places["ov3-l"].source == str(data_root / "openvision3" / "openvision3-vit-large-patch2-32")
    assert places["clip-l"].source == f"clip:{data_root / LARGE['clip'].places[0]}"
    assert [stage.label.replace("-l:", "-b:") for stage in large] == [stage.label for stage in base]
    for one, other in zip(large, base, strict=True):
        for field in ("num_steps", "batch_size", "learning_rate", "num_samples"):
            assert getattr(one.config, field, None) == getattr(other.config, field, None)


def test_llava_is_trained_on_its_own_records_with_live_pictures(data_root, plan, stages):
    graph = plan(data_root, "suite=understanding")
    first, second = stages(graph, "llava_bridge.train", "clip-b")
    assert (first.config.aspect, second.config.aspect) == ("crop", "pad")
    assert first.config.tokens is None and second.config.tokens is None
    assert first.config.init == str(data_root / LAYOUT["language_model"])
    assert second.config.init == str(first.folder / "weights")
    assert second.config.data == [str(data_root / "LLaVA-Instruct" / "llava_v1_5_mix665k.json")]
    assert second.config.image_root == str(data_root / "LLaVA-Instruct")
    assert (first.config.batch_size, second.config.batch_size) == (256, 128)


def test_the_row_has_the_benchmarks_real_keys_and_names_its_language_model(data_root, plan):
    row = plan(data_root, "suite=understanding").plans[0].rows[0]
    assert {"SEED-Bench", "POPE/f1/official", "MME-P", "MME-C", "GQA", "ScienceQA", "ScienceQA-IMG"} <= set(
        row.parts[0].keys
    )
    assert "language model: vicuna-7b-v1.5" in row.source


@pytest.mark.parametrize("overrides", [(), (f"overrides={REHEARSAL}",)])
def test_llava_next_s_rows_stand_beside_llava_s_on_the_same_records(data_root, overrides, plan, stages):
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


def test_both_rows_get_the_same_decoder_and_tokens_are_live(data_root, plan, stages):
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


def test_a_guided_row_draws_with_what_the_same_grid_found(data_root, plan, stages):
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


def test_the_plan_counts_what_the_config_files_say(data_root, capsys, plan, stages):
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
