"""The judge against the harness's own distance, and the sweep over guidance scale and steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.runtime.ranks import Ranks
from harness.metrics import fid
from rae_bridge import generate
from rae_bridge import sweep as stage
from rae_bridge.config import GenerateConfig, GuidanceConfig, SweepConfig
from rae_bridge.judge import FrechetJudge
from rae_bridge.watch_config import JudgeConfig


class Network(torch.nn.Module):
    """Sees the mean colour and the mean square of each channel."""

    def forward(self, pictures):
        pixels = pictures.float() / 255
        self.pooled = torch.cat([pixels.mean((2, 3)), pixels.square().mean((2, 3))], dim=1)
        return self


NETWORK = f"{__name__}:Network"


@pytest.fixture
def reference(tmp_path) -> JudgeConfig:
    generator = torch.Generator().manual_seed(0)
    np.savez(tmp_path / "features.npz", pooled=torch.rand(50, 6, generator=generator).numpy())
    return JudgeConfig(reference=str(tmp_path / "features.npz"), network=NETWORK)


def test_its_distance_is_the_harness_s_in_any_parts(reference):
    images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    whole, first, second = (FrechetJudge(reference) for _ in range(3))
    whole.see(images)
    first.see(images[:13], batch_size=5)
    second.see(images[13:])
    seen = Network()(images.permute(0, 3, 1, 2)).pooled
    real = torch.from_numpy(np.load(reference.reference)["pooled"])
    expected = fid.distance(fid.moments_of(seen), fid.moments_of(real))
    assert whole.distance() == pytest.approx(expected, rel=1e-6)
    first.moments.merge(second.moments)
    assert first.merged(Ranks(0, 1, "cpu")).distance() == pytest.approx(expected, rel=1e-6)


def test_a_gaussian_file_is_a_reference_and_other_files_are_not(reference, tmp_path):
    real = np.load(reference.reference)["pooled"].astype(np.float64)
    held = FrechetJudge(reference).reference
    assert np.allclose(held.mean, real.mean(axis=0)) and np.allclose(held.cov, np.cov(real.T))
    np.savez(tmp_path / "adm.npz", mu=held.mean, sigma=held.cov)
    loaded = FrechetJudge(replace(reference, reference=str(tmp_path / "adm.npz"))).reference
    assert np.array_equal(loaded.mean, held.mean) and np.array_equal(loaded.cov, held.cov)
    np.savez(tmp_path / "other.npz", arr_0=held.mean)
    with pytest.raises(ValueError, match="expected `pooled`, or `mu` and `sigma`; got"):
        FrechetJudge(replace(reference, reference=str(tmp_path / "other.npz")))
    with pytest.raises(FileNotFoundError, match=r"harness\.metrics\.reference writes one"):
        FrechetJudge(replace(reference, reference=str(tmp_path / "missing.npz")))
    np.savez(tmp_path / "narrow.npz", pooled=real[:, :4])
    narrow = FrechetJudge(replace(reference, reference=str(tmp_path / "narrow.npz")))
    with pytest.raises(ValueError, match="features of width 6 cannot be added to those of width 4"):
        narrow.see(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 2 pictures"):
        FrechetJudge(reference).distance()
    lonely = FrechetJudge(reference)
    lonely.see(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        lonely.merged(Ranks(0, 1, "cpu")).distance()


def test_any_network_judges_by_name_and_wrong_names_are_refused(reference):
    for old in ("harness.metrics.features:Lite0", "encoder.metrics.inception:Inception", "lite9"):
        with pytest.raises(ValueError, match="is not lite0, inception, or an importable module:Class"):
            FrechetJudge(replace(reference, network=old))
    with pytest.raises(FileNotFoundError, match="2015 Inception weights not found"):
        FrechetJudge(replace(reference, network="inception", weights="nowhere/inception.pth"))
    with pytest.raises(ValueError, match="weights are for inception, not for lite0"):
        JudgeConfig(reference="x", weights="inception.pth")
    assert JudgeConfig(reference="x").network == "lite0"


@pytest.fixture
def config(tmp_path, invertible, reference, write_model) -> SweepConfig:
    model = write_model(tmp_path / "model", invertible)
    about = {"model": str(model), "encoder": invertible, "judge": reference}
    grid = {"scales": (1.0, 2.0), "steps": (2, 4), "default_steps": 4}
    return SweepConfig(**about, **grid, num_samples=6, batch_size=3)


def test_a_sweep_scores_each_point_once_draws_and_goes_on(config, tmp_path, monkeypatch):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    original, drawn = stage.stream_samples, []

    def counted(flow, codec, settings, guidance, ranks):
        drawn.append((settings.num_steps, guidance and guidance.scale))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return original(flow, codec, settings, guidance, ranks)

    monkeypatch.setattr(stage, "stream_samples", counted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, out_dir)
    result = stage.run(config, out_dir)
    assert drawn == [(4, None), (4, 2.0), (4, 2.0), (2, None)]
    assert list(result["distances"]) == ["scale=1 steps=4", "scale=2 steps=4", "scale=1 steps=2"]
    assert json.loads((out_dir / "sweep.json").read_text()) == result["distances"]
    assert len(set(result["distances"].values())) == 3 and result["best"] in result["distances"]
    assert Image.open(out_dir / "sweep.png").size[0] > 500


def test_the_best_guidance_is_drawn_with(config, tmp_path):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    config = replace(config, scales=(1.0, 2.0, 6.0), ends=(0.5,), steps=(4,))
    distances = stage.run(config, out_dir)["distances"]
    assert len(distances) == 5 and "scale=6 steps=4 until=0.5" in distances
    best = min((key for key in distances if "scale=1 " not in key), key=distances.get)
    scale, until = float(best.split()[0][6:]), 0.5 if "until" in best else 1.0
    held = json.loads((out_dir / "best.json").read_text())
    assert held == {"kind": "cfg", "scale": scale, "interval": [0.0, until], "model": None}
    about = {"model": config.model, "encoder": config.encoder, "num_samples": 6, "num_steps": 4}
    named = GuidanceConfig(kind="cfg", scale=scale, interval=(0.0, until))
    for name, guided in (("found", {"guidance_from": str(out_dir)}), ("named", {"guidance": named})):
        (tmp_path / name).mkdir()
        generate.run(GenerateConfig(**about, **guided), tmp_path / name)
    found, same = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("found", "named"))
    assert np.array_equal(found, same)
    with pytest.raises(ValueError, match="not both"):
        GenerateConfig(**about, guidance_from="x", guidance=named)
    with pytest.raises(FileNotFoundError, match="guidance_from is a folder by rae_bridge"):
        generate.run(GenerateConfig(**about, guidance_from=str(tmp_path)), tmp_path / "found")


def test_impossible_sweeps_are_refused(config):
    fields = {name: getattr(config, name) for name in ("model", "encoder", "judge")}
    with pytest.raises(ValueError, match="at least one value"):
        SweepConfig(**fields, scales=())
    with pytest.raises(ValueError, match="needs the weaker model"):
        SweepConfig(**fields, kind="autoguidance")


def test_a_guide_of_other_tokens_is_refused_before_anything_is_drawn(
    config, tmp_path, invertible, write_model, monkeypatch
):
    guide = write_model(tmp_path / "guide", invertible, seed=1)
    tokens = json.loads((guide / "tokens.json").read_text())
    (guide / "tokens.json").write_text(json.dumps(tokens | {"fingerprint": "f" * 64}))
    monkeypatch.setattr(stage, "stream_samples", lambda *_: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=r"guide .* knows tokens of"):
        stage.run(replace(config, kind="autoguidance", weaker=str(guide)), tmp_path)
