"""A tiny encoder, language model and data set, so that the whole bridge runs in seconds."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import llava_bridge.model
import llava_bridge.tower
from encoder.runtime.checkpoint import save_tensors
from llava_bridge.config import LlamaShape, LlavaConfig
from llava_bridge.demo_llm.tokenizer import build_tokenizer
from llava_bridge.demo_llm.train_llm import build_llama

WORDS = "what is this a red cat it is big two birds one more thing yes no"
IMAGE_SIZE, NUM_TOKENS, WIDTH, NUM_PICTURES = 32, 4, 24, 12


class TinyEncoder(nn.Module):
    """What the bridge needs of a `FrozenEncoder`; its weights differ at every construction, as a file's do
    from a fresh model's."""

    name, image_size, num_tokens, grid, width, fingerprint, can_decode = (
        "tiny",
        IMAGE_SIZE,
        NUM_TOKENS,
        (2, 2),
        WIDTH,
        "tiny-1",
        False,
    )

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 16, 16)
        nn.init.constant_(self.patches.bias, 0.123)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("positions", torch.randn(NUM_TOKENS, WIDTH), persistent=False)

    def encode(self, pixels: Tensor) -> Tensor:
        pixels = nn.functional.interpolate(pixels, (IMAGE_SIZE, IMAGE_SIZE))
        return self.norm(self.patches(pixels).flatten(2).transpose(1, 2)) + self.positions  # B N D


@pytest.fixture(autouse=True)
def tiny_encoder(monkeypatch):
    """Every source names a new `TinyEncoder`."""
    torch.set_num_threads(1)
    for module in (llava_bridge.tower, llava_bridge.model):
        monkeypatch.setattr(module, "load_encoder", lambda source, **options: TinyEncoder())


@pytest.fixture
def train_until_killed(monkeypatch):
    """Runs a training stage that ends by an exception after one of its steps."""
    from llava_bridge import train as stage

    def train(config, out_dir, step):
        def die(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise InterruptedError

        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(stage.StageReport, "on_step_end", die)
            stage.train(config, out_dir)

    return train


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer([WORDS])


@pytest.fixture(scope="session")
def llm(tmp_path_factory, tokenizer) -> Path:
    """Folder of a two-layer Llama with random weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    model = build_llama(LlamaShape(width=32, depth=2, num_heads=2, mlp_width=64), tokenizer, "eager")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava_data(tmp_path_factory) -> Path:
    """Folder with 32 records (every fourth without a picture), and the cached tokens of their pictures."""
    folder = tmp_path_factory.mktemp("llava")
    generator = torch.Generator().manual_seed(0)
    words = WORDS.split()

    def sentence(longest: int) -> str:
        count = int(torch.randint(2, longest, (1,), generator=generator))
        return " ".join(words[i] for i in torch.randint(len(words), (count,), generator=generator).tolist())

    records = []
    for i in range(32):
        has_picture = i % 4 != 3
        turns = [
            {"from": "human", "value": ("<image>\n" if has_picture else "") + sentence(8)},
            {"from": "gpt", "value": sentence(5)},
            {"from": "human", "value": sentence(6)},
            {"from": "gpt", "value": sentence(4)},
        ]
        picture = {"image": f"images/{i % NUM_PICTURES}.png"} if has_picture else {}
        records.append({"id": f"sample-{i}", **picture, "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))
    tokens = torch.randn(NUM_PICTURES, NUM_TOKENS, WIDTH, generator=generator)
    save_tensors(folder / "tokens.safetensors", {"tokens": tokens})
    keys = [f"images/{i}.png" for i in range(NUM_PICTURES)]
    (folder / "index.json").write_text(json.dumps({"fingerprint": TinyEncoder.fingerprint, "keys": keys}))
    return folder


@pytest.fixture
def align(llava_data, llm, tmp_path) -> LlavaConfig:
    """Stage 1 on these records and their cached tokens: 8 steps."""
    return LlavaConfig(
        stage=1,
        encoder="tiny",
        data=[str(llava_data / "train.json")],
        tokens=str(llava_data),
        records_cache=str(tmp_path / "records"),
        init=str(llm),
        batch_size=4,
        learning_rate=1e-2,
        log_steps=1,
        checkpoint_steps=3,
        precision="fp32",
        attention="eager",
    )
