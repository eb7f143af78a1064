"""LLaVA-NeXT by its public recipes on real sources: what each row learns from, what is looked for, and that
the mixes of a replica are read whole."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from encoder.runtime.config import ROOT, ConfigError
from harness.command_line import main
from harness.paper.sources import NEXT_MIXES
from harness.replica import llava_next
from harness.replica.config import ReplicaConfig
from harness.running.cost_released import count_records
from harness.suites.lessons import MIXES
from llava_bridge.any_resolution.pictures import open_views
from llava_bridge.any_resolution.views import Views
from llava_bridge.batches import collate
from llava_bridge.config import TILES, LlavaConfig
from llava_bridge.data import read_dataset

BOTH = "llava.framework=[llava_1_5,llava_next]"


@pytest.fixture
def mixes(data_root) -> Path:
    """The sources, with both of LLaVA-NeXT's mixes among them."""
    json = data_root / "Open-LLaVA-NeXT" / MIXES["open_next_mix"]
    json.parent.mkdir(parents=True)
    json.write_text("[]")
    rows = data_root / "LLaVA-NeXT-Data" / "data"
    rows.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a"]}), rows / "train-00000-of-00001.parquet")
    return data_root


@pytest.mark.parametrize("recipe, batches, rate, views, says", [
    ("open", (256, 128), 2e-5, "tiles", "recipe open on open_next_mix"),
    ("own", (128, 32), 1e-5, "whole", "recipe own on next_mix"),
])  # fmt: skip
def test_a_recipe_takes_its_own_mix_and_values(mixes, plan, stages, recipe, batches, rate, views, says):
    graph = plan(mixes, "suite=understanding", BOTH, f"llava.next.recipe={recipe}")
    ours, theirs = (
        [stage.config for stage in stages(graph, "llava_bridge.train", f"{name}: LLaVA stage")]
        for name in ("clip-b", "clip-b/llava_next")
    )
    assert ours[1].data == [str(mixes / "LLaVA-Instruct" / MIXES["llava_mix"])]
    assert theirs[0].data == ours[0].data
    place = mixes / NEXT_MIXES["open_next_mix" if recipe == "open" else "next_mix"].places[0]
    if recipe == "open":
        assert theirs[1].data == [str(place / MIXES["open_next_mix"])]
        assert theirs[1].image_root == str(place)
    else:  # the rows hold their pictures
        assert (theirs[1].data, theirs[1].image_root) == ([str(place)], None)
    assert tuple(each.batch_size for each in theirs) == batches
    assert (theirs[0].views, theirs[1].views) == (views, "tiles")
    assert (theirs[1].learning_rate, theirs[1].max_length, theirs[1].micro_batch_size) == (rate, 4096, 4)
    rows = {row.encoder: row.source for row in graph.plans[0].rows}
    assert says in rows["clip-b/llava_next"] and "recipe o" not in rows["clip-b"]


def test_what_is_given_by_name_stands_over_a_recipe(mixes, plan, stages):
    words = ["llava.next.recipe=own", "llava.next.instruct.learning_rate=3e-6", "llava.framework=llava_next"]
    graph = plan(mixes, "suite=understanding", *words)
    (_, second) = stages(graph, "llava_bridge.train", "clip-b")
    assert (second.config.learning_rate, second.config.batch_size) == (3e-6, 32)


def test_a_mix_that_changes_teaches_its_own_second_stage_anew(mixes, plan):
    def fingerprints():
        words = ("suite=understanding", BOTH, "llava.next.recipe=open")
        return {stage.label: stage.fingerprint for stage in plan(mixes, *words)}

    before = fingerprints()
    (mixes / "Open-LLaVA-NeXT" / MIXES["open_next_mix"]).write_text("[1]")
    after = fingerprints()
    changed = {label for label in before if before[label] != after[label]}
    ends = (": LLaVA stage 2", ": answer and score")
    assert changed == {f"{name}/llava_next{end}" for name in ("ov3-b", "clip-b") for end in ends}


def test_only_what_the_rows_learn_from_is_looked_for(mixes, plan, capsys):
    shutil.rmtree(mixes / "LLaVA-Instruct")
    shutil.rmtree(mixes / "Open-LLaVA-NeXT")
    words = ["check", "preset=paper", "suite=understanding", f"data_root={mixes}", f"runs_dir={mixes}/runs"]
    wanted = {
        (): ["llava_mix"],
        ("llava.framework=llava_next", "llava.next.recipe=open"): ["open_next_mix"],
        (BOTH, "llava.next.recipe=open"): ["llava_mix", "open_next_mix"],
    }
    for more, names in wanted.items():
        assert main([*words, *more]) == 2
        said = capsys.readouterr().out.splitlines()
        found = [line.split()[1] for line in said if line.startswith("missing") and "mix" in line]
        assert found == names
    own = ("suite=understanding", "llava.framework=llava_next", "llava.next.recipe=own")
    assert len(plan(mixes, *own).plans) == 1  # without LLaVA-1.5's mix


def test_recipes_that_there_are_not_are_refused(mixes, plan):
    with pytest.raises(ConfigError, match=r"unknown llava\.next\.recipe 'opn' .did you mean 'open'"):
        plan(mixes, "suite=understanding", "llava.next.recipe=opn")
    with pytest.raises(ConfigError, match=r"llava\.next\.recipe is of the presets on real sources"):
        plan(mixes, "suite=understanding", "llava.next.recipe=open", preset="demo")


@pytest.mark.parametrize("name, write", [
    ("open_next_mix", llava_next.write_open_mix), ("next_mix", llava_next.write_next_mix),
])  # fmt: skip
def test_a_replica_s_mix_is_read_whole_with_its_pictures_in_views(name, write, tmp_path):
    write(tmp_path, ReplicaConfig(next_records=9))
    place, records = tmp_path / NEXT_MIXES[name].places[0], MIXES[name]
    config = LlavaConfig(
        stage=2,
        framework="llava_next",
        encoder="ov3-demo",
        init="none",
        data=[str(place / records if records else place)],
        image_root=str(place) if records else None,
        picture_cache=str(tmp_path / "pictures"),
        records_cache=str(tmp_path / "records"),
        batch_size=4,
        learning_rate=1e-3,
        max_length=1024,
        max_missing_fraction=0.0,
        max_bad_fraction=0.0,
    )
    pictures = open_views(config, None, Views.of(TILES, 64, 4), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "weights" / "demo" / "llama")
    dataset = read_dataset(config, pictures.num_tokens, tokenizer, pictures, tmp_path / "out")
    report = dataset.report
    assert (report.num_read, report.num_samples, report.num_text_only) == (11, 11, 2)
    assert count_records(Path(config.data[0])) == 11
    names = [dataset.picture(place) for place in range(len(dataset)) if dataset.has_picture[place]]
    assert report.max_image_tokens == max(map(pictures.num_tokens, names)) > 16
    batch = collate([dataset[place] for place in range(11)], pictures, tokenizer.pad_token_id)
    assert len(batch["pixel_values"]) == sum(map(pictures.num_views, names)) > 27
    assert batch["image_sizes"].tolist() == [[*pictures.size(each)] for each in names]
