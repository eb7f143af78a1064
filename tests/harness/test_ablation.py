"""suite=ablation as planned: what is shared, what differs, what goes through the bridges."""

import json

import pytest

from encoder.options import EncoderConfig
from encoder.runtime.config import ConfigError, load, resolve
from encoder.training.options import TrainConfig
from harness import trained
from harness.command_line import make_plans
from harness.config import chosen_suites, merged, parse
from harness.running.stages import Graph
from harness.tables.grids import grids
from harness.tables.leaderboard import build


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    options, preset = parse([f"runs_dir={tmp_path_factory.mktemp('runs')}", "suite=ablation"])
    (made,) = make_plans(Graph(options.runs_dir), options, preset)
    return made


def train_config(row):
    return row.parts[0].stage.inputs[0].config


def differing(a, b, prefix=""):
    """Dotted names of what two resolved configs differ in."""
    names = set()
    for key in a:
        if isinstance(a[key], dict) and isinstance(b[key], dict):
            names |= differing(a[key], b[key], f"{prefix}{key}.")
        elif a[key] != b[key]:
            names.add(f"{prefix}{key}")
    return names


def test_each_variant_is_trained_once_and_differs_in_what_its_study_says(plan):
    configs = {row.encoder: resolve(train_config(row)) for row in plan.rows}
    base = configs.pop("branches: both")
    assert len({json.dumps(each) for each in [base, *configs.values()]}) == len(plan.rows) == 14
    changed = {
        "branches": {"branches"},
        "omega": {"objective.omega_rec"},
        "tau": {"objective.tau"},
        "decoder": {"openvision3.decoder.width", "openvision3.decoder.layers"},
    }
    for name, config in configs.items():
        study = name.split(":")[0]
        if study in changed:
            assert differing(base, config) == changed[study]


def test_the_studies_have_the_values_that_were_asked_for(plan):
    def values(study, of):
        return {row.groups[study]: of(train_config(row)) for row in plan.rows if study in row.groups}

    ratios = values("omega", lambda c: c.objective.omega_und / c.objective.omega_rec)
    assert sorted(ratios.values()) == [0.5, 1, 2, 4]
    assert all(float(label.split(",")[0]) == ratio for label, ratio in ratios.items())
    assert sorted(values("tau", lambda c: c.objective.tau).values()) == [0, 0.1, 0.5, 1.0]
    assert len(values("branches", lambda c: c.branches)) == 3
    assert values("input", lambda c: c.vae)["pixels"] == "pixels"
    for study in ("decoder", "encoder"):
        assert len(values(study, lambda c: c)) == 3


def test_branches_and_tau_go_through_both_bridges_and_the_rest_on_request(plan, tmp_path):
    def bridged(rows):
        return {
            row.encoder for row in rows if "Scenes-SEED" in [key for part in row.parts for key in part.keys]
        }

    expected = {row.encoder for row in plan.rows if {"branches", "tau"} & set(row.groups)}
    assert bridged(plan.rows) == expected
    options, preset = parse([f"runs_dir={tmp_path}", "suite=ablation", "ablation.bridges=[encoder]"])
    (other,) = make_plans(Graph(options.runs_dir), options, preset)
    assert bridged(other.rows) == {row.encoder for row in other.rows if "encoder" in row.groups}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("ablation.bridges=[branch]", "unknown study 'branch' .did you mean 'branches'"),
        ("ablation.train.num_step=3", "unknown key 'num_step' .did you mean 'num_steps'"),
        ("ablation.rae.trian.num_steps=3", "unknown section of rae 'trian'"),
        ("ablation.variants.tau.x.objective.tua=3", r"ablation.tau.x.*unknown key 'tua'"),
        ("seeds=[1,1]", "seeds must be one or more different numbers"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path, words, says):
    with pytest.raises(ConfigError, match=says):
        options, preset = parse([f"runs_dir={tmp_path}", words])
        make_plans(Graph(options.runs_dir), options, preset)


def test_changes_are_laid_over_deeply():
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(base, {"a": {"b": 3}, "d": [2], "e": 5}) == {"a": {"b": 3, "c": 2}, "d": [2], "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_every_study_is_a_table_of_its_own_labels(tmp_path):
    (suite,) = chosen_suites("ablation")
    content = {"value": 1.0, "stderr": None, "unit": "", "higher_is_better": False, "num_samples": 9}
    content |= {"date": "2026", "commit": "c", "fingerprint": "f"}
    (tmp_path / "one.json").write_text(json.dumps(content))
    (tmp_path / "two.json").write_text(json.dumps(content | {"value": 2.0}))
    rows = [
        {"encoder": "base", "kind": "measured", "source": "", "files": {"PSNR": ["one.json"]}, "not_run": {}}
        | {"groups": {"branches": "both", "tau": "0.5"}},
        {
            "encoder": "tau: 0",
            "kind": "measured",
            "source": "",
            "files": {"PSNR": ["two.json"]},
            "not_run": {},
        }
        | {"groups": {"tau": "0"}},
    ]
    made = list(grids(build(suite, "demo", rows, tmp_path), suite, with_appendix=True))
    assert [grid.title[:3] for grid in made] == ["(a)", "(c)"]
    assert [line[0] for line in made[1].lines] == ["0.5", "0"]
    assert made[1].best == {(0, 1)}


def test_a_training_says_its_last_losses_and_where_its_encoder_is(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir(), out.mkdir()
    lines = [
        {"steps": s, "loss": 9.0, "caption": float(s), "pixel_l1": 0.5, "tau_over_std": 0.25}
        for s in range(1, 11)
    ]
    lines.insert(8, {"steps": 8, "loss": 9.0, "caption": 100.0, "pixel_l1": 0.5})  # again, after a stop
    lines.insert(5, {"steps": 5, "linear_probe": 3.0})  # an evaluation
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run / "DONE.json").write_text(json.dumps({"result": {"linear_probe": 40.0, "r1_image_to_text": 7.0}}))
    (run / "config.yaml").write_text("vae: pixels\nbatch_size: 4\neval_limit: 50\n")
    metrics = trained.run(trained.TrainedConfig(run=str(run), name="mine"), out)["metrics"]
    assert metrics["loss/caption"]["value"] == 9.5
    assert metrics["loss/caption"]["num_samples"] == 8
    assert metrics["linear probe"]["value"] == 40.0
    assert metrics["tau / std(z_u)"]["value"] == 0.25
    assert "loss/contrastive" not in metrics
    encoder = load(EncoderConfig, out / "encoder.yaml")
    assert (encoder.name, encoder.source, encoder.vae) == ("mine", str(run / "weights"), "pixels")
    assert set(metrics) < set(trained.KEYS)
    with pytest.raises(FileNotFoundError, match="no training log"):
        trained.read_log(out)
    assert "branches" in TrainConfig.__slots__
