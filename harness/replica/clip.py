"""CLIP as the hub holds OpenAI's: both towers, the picture processor, the byte-level tokenizer.

Source: transformers' `models/clip` (configuration, names of the weights); openai/clip-vit-base-patch16 and
-large-patch14 on the hub (files, config.json, preprocessor_config.json; the old position_ids are among the
weights). From memory: the first holds pytorch_model.bin, the second model.safetensors too; here each has one
of them. The vocabulary is that of single bytes, without merges: 256 inside a word, 256 at its end, two marks.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.networks import Shape, layer, random_weights

# folder -> patch, width and layers of both towers, width of what they give
MODELS = {"clip-vit-base-patch16": (16, 48, 3, 32), "clip-vit-large-patch14": (14, 64, 4, 48)}
SAFETENSORS = ("clip-vit-large-patch14",)
IMAGE_SIZE, TEXT_LENGTH, HEADS = 224, 77, 4
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
START, END = "<|startoftext|>", "<|endoftext|>"


def write(root: Path, config: ReplicaConfig) -> str:
    """Both models, at 224 px."""
    from safetensors.torch import save_file

    vocabulary = _vocabulary()
    for name, (patch_size, width, layers, out) in MODELS.items():
        folder = root / name
        folder.mkdir()
        state = _weights(config.seed, name, len(vocabulary))
        if name in SAFETENSORS:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save(state, folder / "pytorch_model.bin")
        shared = {
            "hidden_act": "quick_gelu", "hidden_size": width, "intermediate_size": 4 * width,
            "layer_norm_eps": 1e-05, "num_attention_heads": HEADS, "num_hidden_layers": layers,
            "projection_dim": out,
        }  # fmt: skip
        text = {"vocab_size": len(vocabulary), "max_position_embeddings": TEXT_LENGTH, "pad_token_id": 1}
        text |= {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
        vision = {"image_size": IMAGE_SIZE, "patch_size": patch_size, "num_channels": 3}
        write_json(folder / "config.json", {
            "architectures": ["CLIPModel"], "model_type": "clip", "logit_scale_init_value": 2.6592,
            "projection_dim": out, "torch_dtype": "float32",
            "text_config": {"model_type": "clip_text_model", **shared, **text},
            "vision_config": {"model_type": "clip_vision_model", **shared, **vision},
        })  # fmt: skip
        _write_processors(folder, vocabulary)
        (folder / README).write_text(readme(name, f"hub: openai/{name}"))
    return ", ".join(MODELS)


def _weights(seed: int, name: str, vocab_size: int) -> dict[str, Tensor]:
    patch_size, width, layers, out = MODELS[name]
    num_patches = (IMAGE_SIZE // patch_size) ** 2
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    shapes: dict[str, Shape] = {
        f"{text}.token_embedding.weight": (vocab_size, width),
        f"{text}.position_embedding.weight": (TEXT_LENGTH, width),
        "text_projection.weight": (out, width),
        f"{vision}.class_embedding": (width,),
        f"{vision}.patch_embedding.weight": (width, 3, patch_size, patch_size),
        f"{vision}.position_embedding.weight": (1 + num_patches, width),
        "visual_projection.weight": (out, width),
    }
    for tower in ("text_model", "vision_model"):
        for number in range(layers):
            block = f"{tower}.encoder.layers.{number}"
            for part in "kvq":
                shapes |= layer(f"{block}.self_attn.{part}_proj", width, width)
            shapes |= layer(f"{block}.self_attn.out_proj", width, width) | layer(
                f"{block}.layer_norm1", width
            )
            shapes |= layer(f"{block}.mlp.fc1", 4 * width, width) | layer(
                f"{block}.mlp.fc2", width, 4 * width
            )
            shapes |= layer(f"{block}.layer_norm2", width)
    for norm in ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"):
        shapes |= layer(norm, width)
    counts = {text: TEXT_LENGTH, vision: 1 + num_patches}
    old = {f"{place}.position_ids": torch.arange(num)[None] for place, num in counts.items()}
    return {"logit_scale": torch.tensor(4.6052)} | old | random_weights(shapes, seed, name)


def _vocabulary() -> dict[str, int]:
    """CLIP's letters for the 256 bytes: those that can be printed, then the others from U+0100 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printed] + [chr(256 + place) for place in range(256 - len(printed))]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return {piece: number for number, piece in enumerate(pieces)}


def _write_processors(folder: Path, vocabulary: dict[str, int]) -> None:
    marks: dict[str, Any] = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "special_tokens_map.json", marks)
    write_json(folder / "tokenizer_config.json", marks | {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH, "errors": "replace",
        "do_lower_case": True,
    })  # fmt: skip
    write_json(folder / "preprocessor_config.json", {
        "crop_size": IMAGE_SIZE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD,
        "resample": 3, "size": IMAGE_SIZE,
    })  # fmt: skip
