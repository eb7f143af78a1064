"""Who judges: weights by path (hashed, never unpickled), published statistics, any encoder; their names."""

import dataclasses
import io
import os
import pickle

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from encoder.metrics import weights
from encoder.metrics.inception import Inception
from encoder.metrics.lpips import Lpips
from encoder.metrics.seen import Seen
from encoder.runtime.config import ConfigError
from encoder.runtime.stage import sha256_file
from harness.command_line import make_plans
from harness.config import parse
from harness.metrics import fid, numbers, reference, score
from harness.metrics.config import PICTURES, Judge, ReferenceConfig, ScoreConfig, judge_of, keys_of
from harness.running.stages import Graph
from rae_bridge.judge import FrechetJudge
from rae_bridge.watch_config import JudgeConfig


def noise(num, size=64, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (num, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Weights of the right shapes, drawn at random."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    held = {}

    class Bare(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, strict=True):
            held.update(self.state_dict())

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    Bare("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    torch.save(held, path)
    return path


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_inception_by_path_sees_what_torch_fidelity_sees(inception_file, tmp_path):
    pictures = torch.from_numpy(noise(1)).permute(0, 3, 1, 2)
    ours = Inception.load(str(inception_file))
    seen = ours(pictures)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    maps = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *args: maps.append(args[2]))
    pooled, logits = theirs(pictures)
    torch.testing.assert_close(seen.pooled, pooled, atol=0, rtol=0)
    torch.testing.assert_close(seen.logits, logits, atol=0, rtol=0)
    spatial = maps[0].movedim(1, -1)[..., :7].flatten(1)  # ADM's order: places before maps
    assert spatial.shape == (1, 2023)
    torch.testing.assert_close(seen.spatial, spatial, atol=0, rtol=0)

    tensors = tmp_path / "inception.safetensors"
    save_file(torch.load(inception_file, weights_only=True), tensors)
    read = weights.read(weights.INCEPTION, str(tensors))
    assert all(torch.equal(value, read[name]) for name, value in ours.network.state_dict().items())


def test_the_judge_of_trainings_and_sweeps_may_be_inception(inception_file, tmp_path):
    np.savez(tmp_path / "features.npz", pooled=np.zeros((2, 2048), np.float32))
    config = JudgeConfig(
        reference=str(tmp_path / "features.npz"), network="inception", weights=str(inception_file)
    )
    judge, pictures = FrechetJudge(config), torch.from_numpy(noise(2))
    judge.see(pictures)
    seen = Inception.load(str(inception_file))(pictures.permute(0, 3, 1, 2)).pooled
    torch.testing.assert_close(judge.moments.mean().float(), seen.mean(dim=0))


def test_only_the_published_file_bears_the_reserved_names(inception_file, monkeypatch):
    digest = sha256_file(inception_file)
    config = ReferenceConfig(data="x", extractor="inception", weights=str(inception_file))
    assert keys_of("reconstruction", config)[0] == f"rFD-inception-{digest[:8]}"
    mine = dataclasses.replace(weights.INCEPTION, file=f"inception-{digest[:8]}.pth")
    monkeypatch.setattr(weights, "INCEPTION", mine)
    assert judge_of(config) == Judge(extractor="inception", label=None, sha256=digest)
    of_samples = ("gFID", "sFID", "KID", "precision", "recall", "class-accuracy", "IS", "IS/std")
    assert keys_of("generation", config) == of_samples
    assert keys_of("reconstruction", config) == ("rFID", "PSNR", "SSIM")


def test_weights_that_would_run_code_are_refused_and_run_nothing(tmp_path):
    mark = tmp_path / "ran"
    for name, content in (
        ("plain.pth", pickle.dumps(Bomb(mark))),
        ("cut.pth", b"PK\x03\x04 not all of it"),
        ("cut.safetensors", b"\xff" * 40),
    ):
        (tmp_path / name).write_bytes(content)
    torch.save({"fc.weight": Bomb(mark)}, tmp_path / "zipped.pth")
    for name in ("plain.pth", "cut.pth", "cut.safetensors", "zipped.pth"):
        for published in (weights.INCEPTION, weights.TRUNKS["vgg"]):
            with pytest.raises(ValueError, match="damaged or unsafe") as caught:
                weights.read(published, str(tmp_path / name))
            assert len(str(caught.value).splitlines()) == 1
    assert not mark.exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        weights.read(weights.INCEPTION, str(tmp_path / "list.pth"))
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not the 2015 Inception"):
        Inception.load(str(tmp_path / "other.pth"))


def test_missing_weights_say_where_they_should_lie_and_are_downloaded_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"weights-inception-2015-12-05-6726825d.pth"):
        weights.read(weights.INCEPTION, None)
    asked = []

    def fetch(url, path, digits, progress):
        asked.append((url, digits))
        torch.save({"a": torch.ones(1)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert weights.read(weights.INCEPTION, "download")["a"] == 1
    assert weights.read(weights.INCEPTION, "download")["a"] == 1  # it is there now
    assert [digits for _, digits in asked] == ["6726825d"]
    assert asked[0][0].endswith(f"/{weights.INCEPTION.file}")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_on_a_trunk_by_path_equals_the_formula(tmp_path, net):
    import torchvision

    makers = {"alex": torchvision.models.alexnet, "squeeze": torchvision.models.squeezenet1_1}
    trunk = makers[net](weights=None).eval()
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 64, 64, generator=generator) for _ in "ab")
    got = Lpips(net, str(tmp_path / "trunk.pth"))
    assert got(a, a).tolist() == [0.0, 0.0]

    # Eq. 1, by hand: features after each stage's ReLU, unit length over channels, weighted squares, mean
    ends = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12)}[net]
    folder = os.path.dirname(lpips.__file__)
    heads = torch.load(f"{folder}/weights/v0.1/{net}.pth", map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected = torch.zeros(2)
    with torch.no_grad():
        x, y = (((2 * pixels - 1) - shift) / scale for pixels in (a, b))
        stage = 0
        for index, layer in enumerate(trunk.features):
            x, y = layer(x), layer(y)
            if index in ends:
                unit = [part / (part.norm(dim=1, keepdim=True) + 1e-10) for part in (x, y)]
                squares = (unit[0] - unit[1]).square()
                expected += (squares * heads[f"lin{stage}.model.1.weight"]).sum(1).mean(dim=(1, 2))
                stage += 1
    torch.testing.assert_close(got(a, b), expected, atol=1e-6, rtol=1e-4)


def test_published_statistics_are_the_reference(tmp_path):
    generator = torch.Generator().manual_seed(0)
    real, seen = (torch.randn(50, 8, generator=generator, dtype=torch.float64) for _ in "ab")
    mean, cov = real.mean(0), real.T.cov()
    path = tmp_path / "virtual.npz"
    np.savez(path, mu=mean.float(), sigma=cov, mu_s=mean[:4], sigma_s=cov[:4, :4])
    statistics = fid.Statistics.load(path)
    theirs = fid.frechet_distance(seen.mean(0), seen.T.cov(), mean, cov)
    assert fid.distance(fid.moments_of(seen), statistics) == pytest.approx(theirs, abs=1e-6)  # mu was float32
    assert fid.Statistics.load(path, "mu_s", "sigma_s").cov.shape == (4, 4)
    with pytest.raises(ValueError, match="statistics of 8 features, the extractor gives 3"):
        fid.distance(fid.moments_of(seen[:, :3]), statistics)
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no mean and covariance"):
        fid.Statistics.load(tmp_path / "bad.npz")
    mark = tmp_path / "ran"
    np.savez(tmp_path / "bomb.npz", mu=np.array([Bomb(mark)], dtype=object), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="damaged or unsafe"):
        fid.Statistics.load(tmp_path / "bomb.npz")
    assert not mark.exists()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    from encoder.data.options import ScenesConfig
    from encoder.data.scenes.write import run

    counts = ("num_train", "num_val", "num_llava_images", "num_text", "num_seed_questions", "num_pope_pairs")
    folder = tmp_path_factory.mktemp("scenes")
    run(ScenesConfig(image_size=64, num_test=24, **dict.fromkeys(counts, 0)), folder)
    return folder


def test_both_stages_judge_with_inception_published_statistics_and_lpips(
    shards, inception_file, tmp_path, monkeypatch
):
    import torchvision

    class Small(nn.Module):
        """In Inception's place: all its kinds of features, few of each."""

        def forward(self, pictures):
            small = functional.adaptive_avg_pool2d(pictures.float() / 255, 3).flatten(1)
            return Seen(pooled=small[:, :16], logits=small, spatial=small[:, :9])

    for module in (reference, score):
        monkeypatch.setattr(module, "load_extractor", lambda config, device: Small())

    digest = sha256_file(inception_file)
    mine = dataclasses.replace(weights.INCEPTION, file=f"inception-{digest[:8]}.pth")
    monkeypatch.setattr(weights, "INCEPTION", mine)
    statistics = tmp_path / "virtual.npz"
    eye = {"sigma": np.eye(16), "sigma_s": np.eye(9), "mu": np.zeros(16), "mu_s": np.zeros(9)}
    np.savez(statistics, arr_0=noise(11), **eye)
    judge = {"extractor": "inception", "weights": str(inception_file), "statistics": str(statistics)}
    config = ReferenceConfig(data=str(shards), num_samples=10, kernel_subset_size=5, **judge)
    floor = reference.run(config, tmp_path)["metrics"]
    assert tuple(floor) == keys_of("generation", config)
    assert floor["gFID"]["judge"] == f"inception sha256:{digest}"
    assert floor["gFID"]["against"] == f"virtual.npz sha256:{sha256_file(statistics)}"
    assert floor["recall"]["num_samples"] == 11
    assert floor["IS"]["stderr"] == pytest.approx(floor["IS/std"]["value"] / 3)

    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "trunk.pth")
    trunk = sha256_file(tmp_path / "trunk.pth")
    np.savez(tmp_path / "rebuilt.npz", arr_0=noise(10, size=48))  # of another size: resized to the reference
    files = {"pictures": str(tmp_path / "rebuilt.npz"), "reference": str(tmp_path)}
    scoring = ScoreConfig(kind="reconstruction", lpips=str(tmp_path / "trunk.pth"), **files)
    rebuilt = score.run(scoring, tmp_path)["metrics"]
    assert list(rebuilt) == ["rFID", "PSNR", "SSIM", f"LPIPS-alex-{trunk[:8]}"]
    assert rebuilt["rFID"]["against"] is None
    assert rebuilt["PSNR"]["judge"] is None


def test_any_encoder_can_judge_and_is_named(shards, tmp_path):
    config = ReferenceConfig(data=str(shards), num_samples=12, extractor="encoder:clip-demo")
    config = dataclasses.replace(config, kernel_subset_size=6)
    floor = reference.run(config, tmp_path)["metrics"]
    assert tuple(floor) == keys_of("generation", config)
    names = ("gFD", "KID", "precision", "recall", "class-accuracy")
    assert list(floor) == [f"{name}-clip-demo" for name in names]
    assert floor["gFD-clip-demo"]["judge"].startswith("encoder:clip-demo sha256:")
    files = {"pictures": str(tmp_path / PICTURES), "reference": str(tmp_path)}
    rebuilt = score.run(ScoreConfig(kind="reconstruction", **files), tmp_path)["metrics"]
    assert rebuilt["rFD-clip-demo"]["value"] == pytest.approx(0, abs=1e-3)


def planned(tmp_path, *words):
    options, preset = parse([f"runs_dir={tmp_path}", "suite=generation", *words])
    (plan,) = make_plans(Graph(options.runs_dir), options, preset)
    return plan


def test_a_plan_asks_for_the_keys_of_its_judge_and_reads_its_files(tmp_path, inception_file):
    words = ("reference.extractor=inception", f"reference.weights={inception_file}", "device=cuda")
    row, *_, floor = planned(tmp_path, *words).rows
    name = f"inception-{sha256_file(inception_file)[:8]}"
    assert row.parts[0].keys == (f"rFD-{name}", "PSNR", "SSIM")
    assert f"sFD-{name}" in row.parts[1].keys
    assert inception_file in floor.parts[0].stage.files
    assert {part.stage.config.device for part in (*row.parts, *floor.parts)} == {"cuda"}
    with pytest.raises(ConfigError, match="ov3-demo is both a row and the judge"):
        planned(tmp_path, "reference.extractor=encoder:ov3-demo")
    with pytest.raises(ValueError, match="extractor 'inceptoin'; choices: lite0"):
        planned(tmp_path, "reference.extractor=inceptoin")
    with pytest.raises(FileNotFoundError, match="2015 Inception weights not found"):
        planned(tmp_path, "reference.extractor=inception", "reference.weights=no/such/file.pth")


def test_scores_of_a_worse_set_are_worse_whoever_judges():
    generator = torch.Generator().manual_seed(0)
    real, near, far = (torch.randn(60, 6, generator=generator) + shift for shift in (0.0, 0.1, 2.0))
    against = numbers.Against.of(numbers.Features(pooled=real))
    judge = Judge(extractor="encoder:x", label="x")
    values = [
        numbers.generation_metrics(numbers.Features(pooled=seen), against, 20, judge)["gFD-x"]["value"]
        for seen in (real, near, far)
    ]
    assert values == sorted(values)
