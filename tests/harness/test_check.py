"""`run.py check`: every broken rule of the contract is found, by name, before any training."""

import re

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from encoder.frozen import FrozenEncoder
from examples.own_encoder import PatchColours
from harness import check, subcommands
from harness.encoders import resolve_encoder
from harness.retrieval import NoTextTowerError, find_embed_pairs


class Own(PatchColours):
    """The example with one thing wrong."""


class WrongCount(Own):
    def _tokens(self, inputs):
        return super()._tokens(inputs)[:, :-1]


class NotFinite(Own):
    def _tokens(self, inputs):
        return super()._tokens(inputs).log()  # of black: minus infinity


class Trainable(Own):
    def __init__(self, **options):
        super().__init__(**options)
        self.head = torch.nn.Linear(48, 48)
        torch.nn.init.eye_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def requires_grad_(self, requires_grad=True):
        return torch.nn.Module.requires_grad_(self, True)

    def _tokens(self, inputs):
        return self.head(super()._tokens(inputs))


class MovingStatistics(Own):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = torch.nn.BatchNorm1d(48, affine=False)

    def train(self, mode=True):
        return torch.nn.Module.train(self, mode)

    def _tokens(self, inputs):
        return self.norm(super()._tokens(inputs).transpose(1, 2)).transpose(1, 2)


class Random(Own):
    def _tokens(self, inputs):
        tokens = super()._tokens(inputs)
        return tokens + torch.rand_like(tokens)


class Half(Own):
    def encode(self, pixels):
        return super().encode(pixels).half()


class TooLarge(Own):
    def _tokens(self, inputs):
        return 1e6 * super()._tokens(inputs)


class OtherPixels(Own):
    def encode(self, pixels):
        return super().encode(pixels.float() / 255)


class DarkDecoder(Own):
    @torch.no_grad()
    def decode(self, z_u):
        return 2 * super().decode(z_u) - 1


class Raises(Own):
    def _tokens(self, inputs):
        raise KeyError("blocks.11")


class NewEachTime(Own):
    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("drawn", torch.rand(3))


class WithText(Own):
    """Knows each text's picture by heart."""

    def embed_pairs(self, pixels, texts):
        return pixels.flatten(1), pixels.flatten(1)


@pytest.fixture(scope="module")
def probes():
    return check.Probes.scenes()


def faults_of(cls, probes):
    return list(check.violations(cls().freeze(), probes.pixels[:4]))


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (WrongCount, r"tokens are \(4, 15, 48\), grid \(4, 4\) and width 48 promise \(4, 16, 48\)"),
        (NotFinite, "not finite"),
        (Trainable, "2 weights are trainable, such as head.weight"),
        (MovingStatistics, "moving batch statistics"),
        (Random, "something is random or moves"),
        (Half, "tokens are torch.float16"),
        (TooLarge, "fp16 cannot hold"),
        (OtherPixels, "integer pixels are taken without a word"),
        (DarkDecoder, r"decoded pixels lie in \[-"),
        (Raises, "encode fails: KeyError: 'blocks.11'"),
    ],
)
def test_each_broken_rule_is_named(cls, words, probes):
    probes.pixels[0, :, :8, :8] = 0  # a black patch
    faults = faults_of(cls, probes)
    assert any(re.search(words, fault) for fault in faults), faults
    assert all(len(fault.splitlines()) == 1 for fault in faults)


def test_the_example_keeps_the_contract(probes):
    assert issubclass(PatchColours, FrozenEncoder)
    assert faults_of(PatchColours, probes) == []


def test_proxies_are_given_where_they_can_be(probes, monkeypatch):
    word = "module:tests.harness.test_check:WithText"
    monkeypatch.setattr(check, "load_encoder", lambda *args, **options: WithText().freeze())
    report = check.check(resolve_encoder("module:examples.own_encoder:PatchColours"), word, probes)
    assert report.faults == ()
    assert (report.num_tokens, report.width, report.retrieval_percent) == (16, 48, 100.0)
    assert report.probe_percent > 10  # of 16 classes; its colours tell the place at least
    assert report.psnr_db > 15
    monkeypatch.undo()
    sees = report.questions_percent
    blind = check.check(resolve_encoder("blind"), "blind", probes)
    assert (blind.psnr_db, blind.retrieval_percent) == (None, None)
    assert blind.questions_percent < 40 < sees  # the commonest answer, against colours of patches
    assert [reason.partition(": ")[0] for reason in blind.not_run] == ["retrieval", "PSNR"]
    assert report.not_run == ()


def test_a_folder_of_clip_brings_its_text_tower(probes, tmp_path, monkeypatch):
    words = sorted({word for text in probes.texts for word in text.lower().split()})
    clip_folder(tmp_path, words)
    report = check.check(resolve_encoder(f"clip:{tmp_path}"), f"clip:{tmp_path}", probes)
    assert report.faults == ()
    model, tokenizer = CLIPModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    test = slice(check.NUM_TRAIN, None)
    pixels = torch.nn.functional.interpolate(probes.pixels[test], (32, 32), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    inputs = tokenizer(probes.texts[test], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, pixel_values=(pixels.clamp(0, 1) - mean) / std).logits_per_image
    right, own = 0, torch.arange(50)
    for start in range(0, len(logits), 50):  # 50 pictures and texts at a time
        some = logits[start : start + 50, start : start + 50]
        right += sum((some.argmax(dim) == own).sum().item() for dim in (0, 1))
    assert report.retrieval_percent == pytest.approx(100 * right / (2 * len(logits)))
    assert report.not_run == ("PSNR: no decoder, neither its own nor one that its config names",)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(NoTextTowerError, match=r"^no text tower from .*: \S"):
        find_embed_pairs(Own().freeze(), f"clip:{tmp_path}", "cpu")
    with pytest.raises(NoTextTowerError, match="the vision tower alone"):
        find_embed_pairs(Own().freeze(), "weights/demo/clip", "cpu")


def clip_folder(folder, words):
    """A CLIP of random weights as transformers saves it, with a tokenizer of these words."""
    ids = {word: i for i, word in enumerate(["<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(ids, "<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **size,
        "vocab_size": len(ids),
        "max_position_embeddings": 16,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def test_weights_drawn_anew_and_what_cannot_be_loaded_are_found(probes, monkeypatch):
    monkeypatch.setattr(check, "load_encoder", lambda *args, **options: NewEachTime().freeze())
    report = check.check(resolve_encoder("blind"), "blind", probes)
    assert "weights are drawn anew" in report.faults[0]
    monkeypatch.undo()
    (fault,) = check.check(resolve_encoder("blind"), "no-such-one", probes).faults
    assert fault.startswith("cannot be loaded: no encoder 'no-such-one'")


def test_the_verb_says_what_it_found_and_by_its_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(check, "NUM_TRAIN", 60)
    monkeypatch.setattr(check, "NUM_TEST", 30)
    console = Console(width=150)
    good = "encoders=[module:examples.own_encoder:PatchColours]"
    assert subcommands.run("check", [good], console) == 0
    assert "holds" in capsys.readouterr().out
    monkeypatch.setattr(check, "violations", lambda encoder, pixels: ["tokens are odd"])
    assert subcommands.run("check", [good], console) == 1
    assert "PatchColours: tokens are odd" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown encoder 'ov3-dmo'"):
        subcommands.run("check", ["encoders=[ov3-dmo]"], console)
