"""A language model in Vicuna's folder: a Llama in two .bin files, a sentencepiece tokenizer.

Source: the hub's lmsys/vicuna-7b-v1.5 and its copies (file names, config.json, generation_config.json; there
is no tokenizer.json); sentencepiece's BPE with bytes for what it has not seen, <unk> <s> </s> as 0 1 2, as
Llama's; special_tokens_map.json: padding with <unk>. The index of the published weights still names each
layer's rotary_emb.inv_freq, which transformers passes over.
"""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoder.data.scenes.conversations import conversation
from encoder.data.scenes.text import org_caption, re_caption
from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.pictures import scenes

FOLDER = "vicuna-7b-v1.5"
VOCAB_SIZE, WIDTH, LAYERS, HEADS, HIDDEN = 512, 64, 2, 4, 176
_TEXTS = 300
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: ASSISTANT:"
)


def write(root: Path, config: ReplicaConfig) -> str:
    """The folder, weights in half precision."""
    import torch

    folder = root / FOLDER
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(_tokenizer(config.seed))
    marks = {
        name: {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    write_json(folder / "special_tokens_map.json", marks | {"pad_token": "<unk>"})
    write_json(folder / "tokenizer_config.json", _tokenizer_config(marks))
    write_json(folder / "config.json", _config())
    write_json(folder / "generation_config.json", {
        "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0, "temperature": 0.9,
        "top_p": 0.6, "transformers_version": "4.31.0",
    })  # fmt: skip
    state = dict(_weights(config.seed))
    halves = list(state)[: len(state) // 2], list(state)[len(state) // 2 :]
    where = {}
    for number, names in enumerate(halves, start=1):
        file = f"pytorch_model-{number:05d}-of-{len(halves):05d}.bin"
        torch.save({name: state[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(
        folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": where}
    )
    (folder / README).write_text(readme("Vicuna-7B v1.5", "hub: lmsys/vicuna-7b-v1.5"))
    return f"a Llama of {LAYERS} layers, width {WIDTH}, {VOCAB_SIZE} pieces"


def _tokenizer(seed: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts(seed)), model_writer=model, model_type="bpe", vocab_size=VOCAB_SIZE,
        byte_fallback=True, split_digits=True, character_coverage=1.0, add_dummy_prefix=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, num_threads=1,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _texts(seed: int) -> Iterator[str]:
    yield _SYSTEM
    for number, scene in zip(range(_TEXTS), scenes(seed, FOLDER, "train"), strict=False):
        yield from (org_caption(scene), re_caption(scene))
        for turn in conversation(scene, random.Random(number)):
            yield from "\n".join(turn).split("\n")


def _tokenizer_config(marks: dict[str, dict]) -> dict[str, Any]:
    return {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "legacy": False, "model_max_length": 4096, "pad_token": None, "padding_side": "right",
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        **{name: {"__type": "AddedToken", **mark} for name, mark in marks.items()},
    }  # fmt: skip


def _config() -> dict[str, Any]:
    return {
        "_name_or_path": "vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": HIDDEN, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS,
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0",
        "use_cache": True, "vocab_size": VOCAB_SIZE,
    }  # fmt: skip


def _weights(seed: int) -> Iterator[tuple[str, Any]]:
    """Names and tensors in the order of the published index."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=generator)).half()

    yield "model.embed_tokens.weight", matrix(VOCAB_SIZE, WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", matrix(WIDTH, WIDTH)
        frequencies = 10000.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
        yield f"{prefix}.self_attn.rotary_emb.inv_freq", frequencies.half()
        for name in ("gate", "up"):
            yield f"{prefix}.mlp.{name}_proj.weight", matrix(HIDDEN, WIDTH)
        yield f"{prefix}.mlp.down_proj.weight", matrix(WIDTH, HIDDEN)
        for name in ("input", "post_attention"):
            yield f"{prefix}.{name}_layernorm.weight", torch.ones(WIDTH).half()
    yield "model.norm.weight", torch.ones(WIDTH).half()
    yield "lm_head.weight", matrix(VOCAB_SIZE, WIDTH)
