"""A replica's networks, opened by the loaders of others: transformers, open_clip, diffusers, timm, lpips,
torchvision and torch-fidelity."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from harness.replica import adm, bert, clip, dino, judges, language_model, openvision3, vae
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README

CONFIG = ReplicaConfig(seed=2, adm_pictures=5)


WRITERS = (
    language_model.write, openvision3.write, vae.write, clip.write, judges.write_inception,
    judges.write_lpips, bert.write, dino.write, adm.write,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("replica")
    for make in WRITERS:
        make(root, CONFIG)
    return root


def _read(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")


def test_the_language_model_opens_with_transformers_and_spells_every_byte(root):
    from transformers import AutoModelForCausalLM

    folder = root / language_model.FOLDER
    assert not (folder / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token == "<unk>"
    text = "USER: What colour is the boat? ASSISTANT: \u00e9\u732b 42"
    ids = tokenizer(text).input_ids
    assert ids[0] == 1 and 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert len(tokenizer) == model.config.vocab_size == language_model.VOCAB_SIZE
    first = _read(folder / "pytorch_model-00001-of-00002.bin")["model.embed_tokens.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight.float(), first.float())
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    held = {name: file for file in set(index["weight_map"].values()) for name in _read(folder / file)}
    assert held == index["weight_map"]


def test_a_sentence_is_cut_as_sentencepiece_cuts_it(root):
    import sentencepiece

    folder = root / language_model.FOLDER
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    assert [pieces.id_to_piece(number) for number in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    text = "there is a small red boat at the top left."
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids
    assert ids == pieces.encode(text)
    assert len(ids) < len(text) / 2  # words of the world are pieces


@pytest.mark.parametrize("name", openvision3.RELEASES)
def test_a_release_loads_strictly_into_open_clip_s_tower(root, name):
    from open_clip.transformer import VisionTransformer

    folder = root / openvision3.FOLDER / name
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    vision = config["vision_cfg"]
    assert vision["image_size"] * 8 == {"28": 224, "32": 256}[name.rpartition("-")[2]]
    tower = VisionTransformer(
        image_size=vision["image_size"], patch_size=vision["patch_size"], width=vision["width"],
        layers=vision["layers"], heads=vision["width"] // vision["head_width"], mlp_ratio=4.0,
        no_ln_pre=vision["no_ln_pre"], pool_type=vision["pool_type"], output_dim=config["embed_dim"],
        final_ln_after_pool=vision["final_ln_after_pool"], output_tokens=vision["output_tokens"],
    )  # fmt: skip
    tower.conv1 = nn.Conv2d(vision["in_channels"], vision["width"], 2, 2, bias=False)
    tower.load_state_dict(_read(folder / "open_clip_pytorch_model.bin"), strict=True)
    latents = torch.randn(2, 16, vision["image_size"], vision["image_size"])
    pooled, tokens = tower(latents)
    assert tokens.shape == (2, (vision["image_size"] // 2) ** 2, vision["width"])
    assert tokens.std() > 0.1 and pooled.isfinite().all()


def test_the_positions_are_the_sheet_s_formula():
    """Row y, column x: [sin(x w), cos(x w), sin(y w), cos(y w)], w_i = 10000^(-i / (D/4 - 1))."""
    table, width, grid = openvision3.positions(4, 48), 48, 4
    y, x, i = 3, 1, 5
    omega = 10000.0 ** (-i / (width / 4 - 1))
    row = table[1 + y * grid + x]
    expected = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    np.testing.assert_allclose(row[i :: width // 4].tolist(), expected, rtol=1e-6)
    assert not table[0].any()


def test_the_vae_opens_with_diffusers_as_flux_s(root):
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    model = AutoencoderKL.from_pretrained(root / "FLUX.1-dev", subfolder="vae")
    model.load_state_dict(load_file(root / vae.FOLDER / vae.VAE_WEIGHTS), strict=True)
    config = model.config
    assert (config.scaling_factor, config.shift_factor, config.latent_channels) == (0.3611, 0.1159, 16)
    assert model.quant_conv is None and model.post_quant_conv is None
    with torch.no_grad():
        latents = model.encode(torch.rand(1, 3, 64, 48) * 2 - 1).latent_dist.mean
        assert latents.shape == (1, 16, 8, 6)
        assert model.decode(latents).sample.isfinite().all()


@pytest.mark.parametrize("name", clip.MODELS)
def test_clip_opens_with_transformers(root, name):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel

    folder = root / name
    for kind in (CLIPModel, CLIPVisionModel):
        model, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
    patch_size, width, _, _ = clip.MODELS[name]
    picture = np.random.default_rng(0).integers(0, 255, (75, 150, 3), np.uint8)
    pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    tokens = model(pixels).last_hidden_state
    assert tokens.shape == (1, 1 + (224 // patch_size) ** 2, width)
    ids = AutoTokenizer.from_pretrained(folder)("a red boat").input_ids
    assert len(ids) == 2 + len("aredboat")


def test_inception_loads_strictly_into_torch_fidelity_s(root):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = root / judges.INCEPTION / judges.INCEPTION_FILE
    assert all(isinstance(value, torch.Tensor) for value in _read(path).values())
    names = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=path)
    pictures = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    pooled, logits = network(pictures)
    assert pooled.shape == (2, 2048) and logits.shape == (2, 1008)
    assert pooled.isfinite().all() and (pooled[0] - pooled[1]).abs().max() > 1e-3


@pytest.mark.parametrize("net", judges.TRUNKS)
def test_trunks_and_heads_load_strictly_into_torchvision_s_and_lpips(root, net):
    import lpips
    import torchvision

    path = root / judges.LPIPS / judges.TRUNKS[net]
    assert path.stat().st_size < 62e6
    with torch.device("meta"):
        whole = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net](weights=None)
    whole.load_state_dict(_read(path), strict=True, assign=True)
    heads = root / judges.LPIPS / "v0.1" / f"{net}.pth"
    published = Path(lpips.__file__).parent / "weights/v0.1" / heads.name
    shapes = [{name: value.shape for name, value in _read(file).items()} for file in (heads, published)]
    assert shapes[0] == shapes[1]
    distance = lpips.LPIPS(net=net, pnet_rand=True, model_path=str(heads), verbose=False)
    places = {name.partition(".")[2]: name for name in distance.net.state_dict()}
    features = whole.features.state_dict()
    distance.net.load_state_dict({places[name]: features[name] for name in features}, strict=True)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert distance(pixels, pixels).item() == 0 < distance(pixels, 1 - pixels).item()


def test_dino_loads_strictly_into_timm_s(root):
    import timm
    from safetensors.torch import load_file

    folder = root / dino.FOLDER
    network = timm.create_model("vit_small_patch8_224.dino", pretrained=False, num_classes=0)
    network.load_state_dict(load_file(folder / dino.DINO_WEIGHTS), strict=True)
    from_folder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        pixels = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(from_folder(pixels), network.eval()(pixels))
    assert from_folder.pretrained_cfg["tag"] == "dino"


def test_adm_s_statistics_are_legal(root):
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    with np.load(root / adm.FOLDER / adm.FILE, allow_pickle=False) as file:
        assert set(file) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
        assert file["arr_0"].shape == (5, 256, 256, 3) and file["arr_0"].dtype == np.uint8
        assert file["mu_s"].shape == (2023,) and file["sigma_s"].shape == (2023, 2023)
        mu, sigma = file["mu"].astype(np.float64)[:256], file["sigma"][:256, :256]
        assert file["sigma"].shape == (2048, 2048)
    assert np.linalg.eigvalsh(sigma).min() > 0
    same = fid_statistics_to_metric({"mu": mu, "sigma": sigma}, {"mu": mu, "sigma": sigma}, False)
    moved = fid_statistics_to_metric({"mu": mu + 1, "sigma": sigma}, {"mu": mu, "sigma": sigma}, False)
    distance = moved["frechet_inception_distance"] - same["frechet_inception_distance"]
    assert distance == pytest.approx(256, rel=1e-6)


def test_every_network_s_folder_says_that_it_is_a_replica(root):
    folders = [language_model.FOLDER, vae.FOLDER, judges.INCEPTION, judges.LPIPS, dino.FOLDER, adm.FOLDER]
    folders += [*clip.MODELS, *(f"{openvision3.FOLDER}/{name}" for name in openvision3.RELEASES)]
    for folder in folders:
        assert "Replica" in (root / folder / README).read_text()


def test_the_vocabulary_is_bert_s_to_its_marks_and_spells_what_it_does_not_know(root):
    from transformers import BertTokenizer

    words = BertTokenizer.from_pretrained(root / bert.FOLDER)
    marks = ("[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused99]", "!")
    assert [words.convert_tokens_to_ids(mark) for mark in marks] == [0, 1, 2, 100, 101, 102, 103, 104, 999]
    assert words.tokenize("A red Boat, zq!") == ["a", "red", "boat", ",", "z", "##q", "!"]


def test_our_own_readers_take_them_too(root):
    """What was written without them."""
    from encoder.data.tokenizer import Tokenizer
    from encoder.load import load_encoder
    from encoder.metrics.inception import Inception
    from encoder.metrics.lpips import Lpips
    from encoder.metrics.statistics import Statistics
    from rae_bridge.config import AdversarialConfig
    from rae_bridge.discriminator import FrozenFeatures

    pixels = torch.rand(1, 3, 100, 80)
    codec = str(root / vae.FOLDER)
    for name, (side, width, *_) in openvision3.RELEASES.items():
        frozen = load_encoder(str(root / openvision3.FOLDER / name), vae=codec)
        assert frozen.encode(pixels).shape == (1, (side // 2) ** 2, width)
    for name, (patch_size, width, _, _) in clip.MODELS.items():
        frozen = load_encoder(f"clip:{root / name}", features="penultimate")
        assert frozen.encode(pixels).shape == (1, (224 // patch_size) ** 2, width)
    words = Tokenizer(str(root / bert.FOLDER))
    assert (words.pad, words.bos, words.eos, words.unk, words.cls) == (0, 1, 2, 100, 101)
    assert Inception.load(str(root / judges.INCEPTION / judges.INCEPTION_FILE)) is not None
    for net, file in judges.TRUNKS.items():
        assert Lpips(net, str(root / judges.LPIPS / file))(pixels, 1 - pixels).item() > 0
    seen = FrozenFeatures(AdversarialConfig(checkpoint=str(root / dino.FOLDER / dino.DINO_WEIGHTS)))
    assert [tuple(each.shape) for each in seen(pixels)] == [(1, 384, 784)] * 5
    path = root / adm.FOLDER / adm.FILE
    assert Statistics.load(path).mean.shape == (2048,)
    assert Statistics.load(path, "mu_s", "sigma_s").mean.shape == (2023,)
