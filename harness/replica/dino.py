"""DINO ViT-S/8 as timm's hub folder holds it, for the discriminator of RAE's decoder, at its true shape.

Source: timm 1.0.31, `models/vision_transformer.py` (vit_small_patch8_224.dino; names and shapes) and
`models/_hub.py` (config.json, model.safetensors: 86.7 MB); reference sheet "RAE", Sec. 1.5 (which network).
"""

from pathlib import Path

from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.networks import Shape, layer, random_weights

FOLDER, NAME = "dino", "vit_small_patch8_224"
DINO_WEIGHTS = "model.safetensors"
WIDTH, LAYERS, PATCH_SIZE, GRID = 384, 12, 8, 28


def write(root: Path, config: ReplicaConfig) -> str:
    """The folder, fp32."""
    from safetensors.torch import save_file

    folder = root / FOLDER
    folder.mkdir()
    state = random_weights(_shapes(), config.seed, f"{NAME}.dino")
    save_file(state, folder / DINO_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", {
        "architecture": NAME, "num_classes": 0, "num_features": WIDTH, "global_pool": "token",
        "pretrained_cfg": {
            "tag": "dino", "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": True,
            "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 0,
            "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    })  # fmt: skip
    (folder / README).write_text(readme("DINO ViT-S/8", f"hub: timm/{NAME}.dino"))
    return f"{len(state)} tensors"


def _shapes() -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + GRID * GRID, WIDTH)}
    shapes |= layer("patch_embed.proj", WIDTH, 3, PATCH_SIZE, PATCH_SIZE)
    for number in range(LAYERS):
        block = f"blocks.{number}"
        shapes |= layer(f"{block}.norm1", WIDTH) | layer(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= layer(f"{block}.attn.proj", WIDTH, WIDTH) | layer(f"{block}.norm2", WIDTH)
        shapes |= layer(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | layer(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return shapes | layer("norm", WIDTH)
