"""The cosine of the two branches' gradients, against plain backward passes on a run of the trainer."""

import json

import pytest
import torch

from encoder import train
from encoder.data.options import ScenesConfig
from encoder.data.scenes import write
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import VaeShape
from encoder.models.vae import load_vae
from encoder.runtime.config import ConfigError, dump, load
from encoder.training import held_out, synergy
from encoder.training.objective import reconstruction_terms, understanding_terms
from encoder.training.options import SynergyConfig, TrainConfig
from encoder.training.synergy import GradientPair
from encoder.training.train_vae import build_codec

TEXT = {"context_length": 12, "width": 32, "layers": 1, "head_width": 16}
TOWER = {"image_size": 8, "width": 32, "layers": 2, "head_width": 16, "embed_dim": 16}
NUM_LLAVA = {"num_llava_images": 0, "num_text": 0, "num_seed_questions": 0, "num_pope_pairs": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps on sixteen pictures of Scenes."""
    root = tmp_path_factory.mktemp("synergy")
    scenes = load(ScenesConfig, {"image_size": 64, "num_train": 16, "num_val": 8, "num_test": 4, **NUM_LLAVA})
    (root / "scenes").mkdir()
    write.run(scenes, root / "scenes")
    torch.manual_seed(0)
    build_codec(VaeShape(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)).save_pretrained(root / "vae")
    decoder = {"in_width": 32, "width": 32, "layers": 1, "head_width": 16}
    towers = {"encoder": TOWER, "decoder": decoder, "text": TEXT, "captioner": TEXT}
    config = load(TrainConfig, {
        "data": str(root / "scenes"), "vae": str(root / "vae"), "openvision3": towers, "num_steps": 2,
        "batch_size": 8, "eval_limit": 8, "snapshot_steps": [1], "optim": {"lr": 1e-3, "warmup_steps": 1},
    })  # fmt: skip
    (root / "run").mkdir()
    train.train(config, root / "run")
    dump(config, root / "run" / "config.yaml")
    return root / "run"


def measure(run, out_dir, **changes) -> dict:
    config = load(SynergyConfig, {"run": str(run), "num_batches": 1, "batch_size": 8, **changes})
    synergy.run(config, out_dir)
    return json.loads((out_dir / "synergy.json").read_text())


def test_rows_are_the_cosines_of_two_plain_backward_passes(trained, tmp_path):
    measured = measure(trained, tmp_path)
    config, files = synergy.load_trained(trained)
    assert list(files) == [point["step"] for point in measured["points"]] == [1, 2]
    model = OpenVision3(config.openvision3).eval()
    model.load_state_dict(synergy.checkpoint.load(files[2])["model"])
    samples, _ = held_out.load_samples(config, "val", 8)
    draw = synergy.checkpoint.step_generator
    stored = samples.batch(torch.arange(8), draw(0, 0, "sentence"), num_pixels=8, with_sentence=True)
    batch = stored.to("cpu")
    vae = load_vae(config.vae)
    z_vae = vae.encode(batch.pixels)
    batch = type(batch)(batch.pixels, z_vae, batch.text_ids, batch.caption_ids, batch.pad_id)

    def gradients(branch: str) -> dict[str, torch.Tensor]:
        model.zero_grad()
        output = model.encoder(z_vae)
        if branch == "reconstruction":
            terms = reconstruction_terms(model, output.z_u, batch, vae, None, 0.8, draw(0, 0, "noise"))
            (terms["pixel_l1"] + 0.4 * terms["latent_l1"]).backward()
        else:
            terms = understanding_terms(model, output.z_u, output.pooled, batch)
            (terms["caption"] + terms["contrastive"]).backward()
        blocks = enumerate(model.encoder.transformer.resblocks)
        return {f"block_{i:02}": torch.cat([p.grad.flatten() for p in b.parameters()]) for i, b in blocks}

    first, second = gradients("reconstruction"), gradients("understanding")
    rows = {row["layer"]: row for row in measured["points"][1]["rows"]}
    assert list(rows) == ["embed", "block_00", "block_01", "encoder"]
    for name in ("block_00", "block_01"):
        wanted = torch.cosine_similarity(first[name].double(), second[name].double(), dim=0).item()
        assert rows[name]["cosine"] == pytest.approx(wanted, abs=1e-5)
        assert rows[name]["batch_cosine"] == pytest.approx(wanted, abs=1e-5)
        assert rows[name]["reconstruction_norm"] == pytest.approx(0.5 * first[name].norm().item(), rel=1e-4)
        assert rows[name]["understanding_norm"] == pytest.approx(second[name].norm().item(), rel=1e-4)
    before = {row["layer"]: row["cosine"] for row in measured["points"][0]["rows"]}
    assert before["encoder"] != pytest.approx(rows["encoder"]["cosine"], abs=1e-4)
    parts = sum(row["num_parameters"] for name, row in rows.items() if name != "encoder")
    assert rows["encoder"]["num_parameters"] == parts


def test_more_batches_average_gradients_and_give_an_error_of_the_batches(trained, tmp_path):
    row = measure(trained, tmp_path, num_batches=2, batch_size=4)["points"][-1]["rows"][-1]
    assert row["batch_cosine_stderr"] > 0 and row["cosine"] != row["batch_cosine"]
    with pytest.raises(ValueError, match="has 8 samples, 64 were asked for"):
        measure(trained, tmp_path, num_batches=8)
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        measure(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="batch_size 2 or more"):
        load(SynergyConfig, {"run": "x", "batch_size": 1})
    with pytest.raises(ConfigError, match=r"snapshot_steps \[2\] must lie over 0 and under num_steps 2"):
        load(TrainConfig, trained / "config.yaml", ["snapshot_steps=[1, 2]"])


@pytest.mark.parametrize(("second", "cosine"), [(3.0, 1.0), (-0.5, -1.0), (0.0, None)])
def test_equal_opposite_and_absent_gradients(second, cosine):
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    pair = GradientPair()
    pair.add([gradient], [second * gradient])
    row = pair.row("block_00", 1, (1.0, 1.0))
    assert row.cosine == (cosine if cosine is None else pytest.approx(cosine))
    assert row.batch_cosine_stderr is None
