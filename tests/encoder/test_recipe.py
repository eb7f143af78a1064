"""The paper's recipes: Table 1 to the letter, and what a plan says of them."""

import subprocess
import sys

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from encoder import train
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import CaptionerShape, OpenVision3Shape, TextShape, VaeShape
from encoder.runtime.config import ROOT, load
from encoder.training import flops, plan, train_vae
from encoder.training.options import TrainConfig
from encoder.training.recipe import RecipeConfig

RECIPES = ("paper_b", "paper_l", "paper_b_short")


def recipe(name: str) -> RecipeConfig:
    return load(RecipeConfig, ROOT / f"configs/recipes/{name}.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_table_1(name, tmp_path):
    phases = recipe(name).configs(tmp_path)
    pre, fine, small = (phases[key] for key in ("pretrain_128", "finetune_256", "finetune_224"))
    epochs = (1000, 200) if name == "paper_b_short" else (4000, 400)
    table = [(pre, 8192, 8e-6, epochs[0], 40, 0.0), (fine, 4096, 4e-7, epochs[1], 20, 0.5)]
    for config, batch, base_lr, count, warmup, perceptual in [*table, (small, *table[1][1:])]:
        assert config.batch_size == batch
        assert config.num_steps == int(count * 1_281_167 / batch)
        assert config.optim.lr == pytest.approx(base_lr * batch / 256)
        assert config.optim.warmup_steps == int(warmup * 1_281_167 / batch)
        weights = config.objective
        assert (weights.beta, weights.alpha) == (0.4, 1.0)
        assert (weights.omega_rec, weights.omega_und) == (0.5, 1.0)
        assert weights.perceptual_weight == perceptual
        assert config.branches == ("understanding", "reconstruction") and config.pixel_fraction == 1
    assert pre.optim.lr == pytest.approx(2.56e-4) and fine.optim.lr == pytest.approx(6.4e-6)
    sizes = [(each.image_size, each.openvision3.encoder.grid**2) for each in (pre, fine, small)]
    assert sizes == [(128, 64), (256, 256), (224, 196)]
    assert pre.init is None and fine.init == small.init == str(tmp_path / "pretrain_128")
    encoder = fine.openvision3.encoder
    letter = (24, 1024, 16) if name == "paper_l" else (12, 768, 12)
    assert (encoder.layers, encoder.width, encoder.width // encoder.head_width) == letter
    decoder = fine.openvision3.decoder
    assert (decoder.layers, decoder.width) == (12, 768)  # B/1 for both


@pytest.mark.parametrize(("change", "message"), [
    (["settings.batch_size=8"], "the phases give this"),
    (["settings.precisoin=fp32"], "did you mean 'precision'"),
    (["settings.objective.tua=1"], "did you mean 'tau'"),
])  # fmt: skip
def test_a_recipe_that_contradicts_itself_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(RecipeConfig, ROOT / "configs/recipes/paper_b.yaml", change).configs(tmp_path)


def test_a_phase_that_starts_from_a_later_one_is_refused():
    phase = {"resolution": 128, "batch_size": 8, "base_lr": 1.0, "epochs": 1, "warmup_epochs": 0,
             "perceptual_weight": 0.0}  # fmt: skip
    phases = [{"name": "a", "init": "b", **phase}, {"name": "b", **phase}]
    with pytest.raises(ValueError, match="no earlier phase"):
        load(RecipeConfig, {"phases": phases, "settings": {}})


def test_phases_run_in_order_and_those_that_are_done_are_left_alone(tmp_path, monkeypatch):
    ran = []

    def fake(config, folder):
        ran.append(folder.name)
        assert load(TrainConfig, folder / "config.yaml") == config
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"psnr": 30.0}

    monkeypatch.setattr(train, "train", fake)
    with pytest.raises(KeyboardInterrupt):
        train.train_phases(recipe("paper_b"), tmp_path)
    assert set(train.train_phases(recipe("paper_b"), tmp_path)) == {"finetune_256", "finetune_224"}
    assert ran == ["pretrain_128", "finetune_256", "finetune_256", "finetune_224"]


def test_a_plan_names_its_numbers_without_loading_torch():
    code = (
        "import sys; from encoder.train import run; run(['configs/recipes/paper_b.yaml', '--plan', "
        "'plan.num_gpus=32']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    named = "5,124,661,248 (625,569 steps x 8192)|peak lr 0.000256|6,255 warm-up|encoder 85.7 M|GPU-hours"
    for part in (*named.split("|"), "memory a GPU", "G a sample", "on 32"):
        assert part in done.stdout, part


def test_a_plan_of_what_is_no_config_is_one_line(capsys):
    with pytest.raises(SystemExit):
        train.run(["nowhere.yaml", "--plan"])
    with pytest.raises(SystemExit):
        train.run(["configs/recipes/paper_b.yaml", "--plan", "plan.gpu=H1000"])
    error = capsys.readouterr().err
    assert "not found: nowhere.yaml" in error and "did you mean 'H100'" in error and error.count("\n") == 2


def small_towers(**captioner) -> OpenVision3Shape:
    return load(OpenVision3Shape, {
        "encoder": {"image_size": 8, "width": 32, "layers": 2, "head_width": 16, "embed_dim": 24,
                    "mlp_width": 48},
        "decoder": {"in_width": 32, "width": 16, "layers": 3, "head_width": 16},
        "text": {"context_length": 10, "width": 48, "layers": 2, "head_width": 16},
        "captioner": {"context_length": 12, "width": 16, "layers": 2, "head_width": 16, **captioner},
    })  # fmt: skip


def counted(run) -> int:
    """FLOPs of a forward pass; with gradients, since torch does not count fused attention on a CPU."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["autoregressive", "parallel"])
def test_parameters_and_flops_are_those_that_torch_counts(kind):
    shape = small_towers(kind=kind)
    model = OpenVision3(shape)
    values = {
        "data": "x",
        "num_steps": 1,
        "batch_size": 1,
        "vae": "x",
        "optim": {"lr": 1.0, "warmup_steps": 1},
    }
    config = load(TrainConfig, values | {"openvision3": shape})
    counts = flops.num_parameters(config)
    assert sum(counts.values()) == sum(each.numel() for each in model.parameters())
    assert counts["decoder"] == sum(each.numel() for each in model.decoder.parameters())
    z_u, ids = torch.randn(1, 16, 32), torch.ones(1, 10, dtype=torch.long)
    assert counted(lambda: model.encoder(torch.randn(1, 16, 8, 8))) == flops.encoder_flops(shape.encoder)
    assert counted(lambda: model.decoder(z_u)) == flops.decoder_flops(shape.decoder, 16)
    assert counted(lambda: model.text(ids)) == flops.text_flops(shape.text, 24)
    vocab = flops.vocabulary_size("scenes")
    if kind == "autoregressive":
        words = torch.ones(1, 11, dtype=torch.long)
        measured = counted(lambda: model.captioner(z_u, words))
    else:
        measured = counted(lambda: model.captioner(z_u, model.text.tokens(ids)[:, :-1], 12))
        measured -= counted(lambda: model.text.tokens(ids))
    assert measured == flops.captioner_flops(shape, vocab)


def test_the_baseline_is_counted_too():
    clip = load(TrainConfig, ROOT / "configs/weights/clip.yaml")
    counts = flops.num_parameters(clip)
    assert sum(counts.values()) == sum(each.numel() for each in Clip(clip.clip).parameters())
    assert set(flops.sample_flops(clip)) == {"encoder", "text encoder"}


def test_the_vae_is_counted_as_torch_counts_it():
    shape = VaeShape(block_out_channels=(8, 16, 16, 24), layers_per_block=2, norm_num_groups=4)
    codec = train_vae.build_codec(shape)
    codec.set_attn_processor(AttnProcessor())
    down, up = flops.vae_flops(shape, 32)
    assert counted(lambda: codec.encode(torch.rand(1, 3, 32, 32))) == down
    assert counted(lambda: codec.decode(torch.rand(1, 16, 4, 4))) == up


def test_crops_parts_and_caches_are_cheaper():
    short = recipe("paper_b_short").settings
    whole = recipe("paper_b_short").configs(ROOT)["finetune_256"]
    costs = flops.sample_flops(whole)
    assert costs["VAE decoding"] > 0.5 * sum(costs.values())  # what pixel_fraction and pixel_crop are for
    crop = RecipeConfig(phases=recipe("paper_b_short").phases, settings=short | {"pixel_crop": 16})
    cropped = flops.sample_flops(crop.configs(ROOT)["finetune_256"])["VAE decoding"]
    assert cropped < 0.25 * costs["VAE decoding"]  # a quarter of the area, and attention's square
    assert (
        plan.vae_shape("weights/demo/vae") != flops.FLUX_VAE == plan.vae_shape("black-forest-labs/FLUX.1-dev")
    )


def test_shapes_of_text_towers_default_to_openvision_1_beside_b():
    text, captioner = TextShape(), CaptionerShape()
    config = recipe("paper_b").configs(ROOT)["pretrain_128"]
    for given, default in ((config.openvision3.text, text), (config.openvision3.captioner, captioner)):
        assert (given.width, given.layers, given.context_length) == (
            default.width, default.layers, default.context_length)  # fmt: skip
