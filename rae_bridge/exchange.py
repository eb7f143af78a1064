"""RAE's released layout in and out: a folder that the official code samples from, and ours from such a one.

    python -m rae_bridge.exchange export <weights folder> <out_dir> [--decoder <folder>] [--guide <folder>]
    python -m rae_bridge.exchange adopt <config.yaml> <out_dir> --encoder <name> [--root <folder>]

The layout: sample.yaml, which RAE's src/sample.py and sample_ddp.py take; stage2_model.pt, a bare state dict;
stat.pt; decoder/config.json (transformers' ViT-MAE) and decoder/model.pt; with a guide its stage2_model.pt.
`adopt` takes any sampling config of RAE's with the files that it names (relative ones to --root, its
checkout) and leaves weights/, decoder/, guide/ and a generate.yaml with the official sampler.

Source: RAE, github.com/bytetriper/RAE at a4d18c4 (configs/stage2/sampling, utils/model_utils.py, stage1).
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from encoder.frozen import FrozenEncoder
from encoder.load import encoder_config
from encoder.runtime import checkpoint
from encoder.runtime.config import dump, read_yaml
from encoder.runtime.files import replacing
from encoder.runtime.stage import write_json
from rae_bridge.codec import TOKENS_FILE, check_tokens_alike, load_for_generation, origin_of
from rae_bridge.config import GenerateConfig, GuidanceConfig
from rae_bridge.decoder import PixelDecoder
from rae_bridge.dit import DiT
from rae_bridge.flow import shift_factor
from rae_bridge.latents import LatentStatistics
from rae_bridge.release import load_decoder, load_dit
from rae_bridge.shapes import DecoderConfig, DiTConfig
from rae_bridge.weights_folder import WEIGHTS, WeightsFolder, check_guide, write_weights

CONFIG, MODEL, STATISTICS, DECODER, GUIDE = "sample.yaml", "stage2_model.pt", "stat.pt", "decoder", "guide"
TOKENS = "tokens"
POINTS = 50  # in time; RAE's number of steps
GUIDE_SCALE = 1.42  # RAE's at 256 px
NUM_SAMPLES = 50_000
_DINO = "clip:facebook/dinov2-with-registers-"  # the sources that its Dinov2withNorm is for


# ---- out


def export(
    weights: Path, out_dir: Path, *, decoder: Path | None = None, guide: Path | None = None
) -> dict[str, Any]:
    """Write the layout from weights folders of ours; returns what sample.yaml says.

    Raises:
        FileNotFoundError, ValueError: a folder is none of ours, is of other tokens, or is of a kind that the
            official code does not have.
    """
    about, out_dir = WeightsFolder.read(weights.resolve()), out_dir.resolve()
    _check_exportable(about)
    config = _sampling(about)
    config["stage_2"] = _write_model(about, out_dir)
    about.statistics.save(out_dir / STATISTICS)
    stage_1 = _official_encoder(about.tokens["encoder"]) | {"noise_tau": 0.0, "reshape_to_2d": True}
    stage_1["normalization_stat_path"] = str(out_dir / STATISTICS)
    if decoder is not None:
        stage_1 |= _write_decoder(decoder.resolve(), about, out_dir / DECODER)
    if guide is not None:
        other = WeightsFolder.read(guide.resolve())
        check_guide(about, other)
        _check_exportable(other)
        config["guidance"] |= {"method": "autoguidance", "scale": GUIDE_SCALE}
        config["guidance"]["guidance_model"] = _write_model(other, out_dir / GUIDE)
    config = {"stage_1": {"target": "stage1.RAE", "params": stage_1}, **config}
    config[TOKENS] = dict(about.tokens)  # a section that RAE's code passes over and `adopt` checks
    with replacing(out_dir / CONFIG) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return config


def _check_exportable(about: WeightsFolder) -> None:
    if about.name != DiT.name:
        raise ValueError(f"{about.path} is a {about.name}, a student; RAE's code knows velocity fields alone")
    if about.shape.prediction != "velocity":
        raise ValueError(f"{about.path} predicts {about.shape.prediction}; RAE's code knows velocity alone")
    if about.shift < 1:
        raise ValueError(f"{about.path} was trained under shift {about.shift}; RAE's code wants 1 or more")


def _write_model(about: WeightsFolder, folder: Path) -> dict[str, Any]:
    """The weights as a bare state dict; returns the section of sample.yaml that loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / MODEL, about.weights())
    shape, parts = about.shape, len(about.shape.hidden_size)
    sizes = {name: list(getattr(shape, name)) for name in ("hidden_size", "depth", "num_heads")}
    plain = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False}
    if parts == 2:
        target, plain = "stage2.models.DDT.DiTwDDTHead", plain | {"use_pos_embed": True}
    else:
        target, plain = "stage2.models.lightningDiT.LightningDiT", plain | {"use_gembed": True}
        sizes = {name: values[0] for name, values in sizes.items()}
    names = ("input_size", "in_channels", "mlp_ratio", "class_dropout_prob", "num_classes", "use_qknorm")
    params = {**{name: getattr(shape, name) for name in names}, **sizes, "patch_size": 1, **plain}
    return {"target": target, "params": params, "ckpt": str(folder / MODEL)}


def _write_decoder(folder: Path, about: WeightsFolder, out_dir: Path) -> dict[str, Any]:
    """The decoder's config and bare state dict, fp32; returns their keys of sample.yaml."""
    decoder = PixelDecoder.from_pretrained(folder)
    check_tokens_alike(f"decoder {folder}", _tokens_of(folder), f"the model {about.path}", about.tokens)
    config = decoder.config
    if config.grid != about.shape.input_size:
        raise ValueError(
            f"decoder {folder} is for {config.grid} tokens on a side, not {about.shape.input_size}"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out_dir / "model.pt", decoder.state_dict())
    names = [field.name for field in dataclasses.fields(DecoderConfig) if not field.name.startswith("image_")]
    values = {name: getattr(config, name) for name in (*names, "image_size")}
    mae = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    mae |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    write_json(out_dir / "config.json", mae | values)
    paths = {"decoder_config_path": str(out_dir), "pretrained_decoder_path": str(out_dir / "model.pt")}
    return paths | {"decoder_patch_size": config.patch_size}


def _tokens_of(folder: Path) -> Mapping[str, str]:
    path = folder / TOKENS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no weights folder of rae_bridge ({TOKENS_FILE} is missing)")
    return json.loads(path.read_text())


def _official_encoder(name: str) -> dict[str, Any]:
    """The encoder's keys of sample.yaml; null where RAE has no class for it and one must be registered."""
    config = encoder_config(name)
    if not config.source.startswith(_DINO):
        return {"encoder_cls": None, "encoder_config_path": None, "encoder_input_size": None}
    source = config.source.removeprefix("clip:")
    params = {"dinov2_path": source, "normalize": config.features.generation == "last_norm"}
    size = {"encoder_input_size": config.image_size, "encoder_params": params}
    return {"encoder_cls": "Dinov2withNorm", "encoder_config_path": source, **size}


def _sampling(about: WeightsFolder) -> dict[str, Any]:
    """RAE's sampler under the shift that the model was trained with."""
    shape = about.shape
    dim = shape.in_channels * shape.input_size**2
    is_own = math.isclose(about.shift, shift_factor(dim)) if dim >= 4096 else False
    latents = {"latent_size": [shape.in_channels, shape.input_size, shape.input_size]}
    dims = {"time_dist_shift_dim": dim if is_own else about.shift**2 * 4096, "time_dist_shift_base": 4096}
    euler = {"sampling_method": "euler", "num_steps": POINTS, "atol": 1e-6, "rtol": 1e-3, "reverse": False}
    return {
        "transport": {
            "params": {"path_type": "Linear", "prediction": "velocity", "time_dist_type": "uniform"}
        },
        "sampler": {"mode": "ODE", "params": euler},
        "guidance": {"method": "cfg", "scale": 1.0, "t_min": 0.0, "t_max": 1.0},
        "misc": {**latents, "num_classes": shape.num_classes, **dims},
    }


# ---- in


@dataclass(frozen=True, slots=True)
class Official:
    """A sampling config of RAE's."""

    path: Path
    values: dict[str, Any]
    root: Path  # what its relative paths are relative to

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value at a.b.c."""
        value: Any = self.values
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value

    def file(self, *keys: str) -> Path:
        """The path at a.b.c.

        Raises:
            ValueError: the config has none there.
        """
        value = self.get(*keys)
        if value is None:
            raise ValueError(f"{self.path}: {'.'.join(keys)} is missing; give a sampling config of RAE's")
        return self.root / str(value)


def adopt(config: Path, out_dir: Path, *, encoder: str, root: Path | None = None) -> GenerateConfig:
    """Write weights folders of ours from an official sampling config; returns how its samples are drawn.

    encoder: what `encoder.load_encoder` takes; the one that the config names, whose tokens they know.

    Raises:
        FileNotFoundError: a file that the config names is not there.
        ValueError: a file does not fit, or the sampler is none of ours.
    """
    official = Official(config, read_yaml(config), root or Path())
    method = official.get("sampler", "params", "sampling_method", default="euler")
    if (official.get("sampler", "mode"), method) != ("ODE", "euler"):
        raise ValueError(f"{config}: sampler {official.get('sampler', 'mode')}/{method} is not ODE/euler")
    frozen = load_for_generation(encoder)
    if TOKENS in official.values:
        check_tokens_alike(f"{config}", official.values[TOKENS], f"encoder {encoder}", origin_of(frozen))
    statistics = LatentStatistics.load(official.file("stage_1", "params", "normalization_stat_path"))
    shift = shift_factor(
        official.get("misc", "time_dist_shift_dim", default=196608),
        official.get("misc", "time_dist_shift_base", default=4096),
    )
    shared = {"statistics": statistics, "shift": shift, "tokens": origin_of(frozen)}
    model = _adopt_model(official, ("stage_2",), frozen, out_dir / WEIGHTS, shared)
    guidance = _adopt_guidance(official, frozen, out_dir / GUIDE, shared)
    has_decoder = official.get("stage_1", "params", "pretrained_decoder_path") is not None
    if has_decoder:
        _adopt_decoder(official, frozen, model.input_size, out_dir / DECODER)
    drawn = GenerateConfig(
        model=str((out_dir / WEIGHTS).resolve()),
        encoder=encoder,
        decoder=str((out_dir / DECODER).resolve()) if has_decoder else None,
        num_samples=NUM_SAMPLES,
        num_steps=int(official.get("sampler", "params", "num_steps", default=POINTS)) - 1,
        end="rae",
        guidance=guidance,
        rounding="truncate",
        device="auto",
    )
    dump(drawn, out_dir / "generate.yaml")
    return drawn


def _adopt_model(
    official: Official, keys: tuple[str, ...], encoder: FrozenEncoder, folder: Path, shared: dict[str, Any]
) -> DiTConfig:
    """A weights folder from a section with `params` and `ckpt`; returns the model's shape."""
    model = load_dit(official.file(*keys, "ckpt"), official.get(*keys, "params", default={}))
    shape = model.config
    latents = (encoder.width, encoder.grid)
    if (shape.in_channels, (shape.input_size, shape.input_size)) != latents:
        theirs = f"{shape.input_size} x {shape.input_size} tokens of {shape.in_channels}"
        ours = f"{encoder.grid[0]} x {encoder.grid[1]} of {encoder.width}"
        raise ValueError(f"{official.path}: {'.'.join(keys)} is for {theirs}; {encoder.name} gives {ours}")
    write_weights(folder, model, **shared)
    return shape


def _adopt_guidance(
    official: Official, encoder: FrozenEncoder, folder: Path, shared: dict[str, Any]
) -> GuidanceConfig | None:
    section = official.get("guidance", default={})
    scale = float(section.get("scale", 1.0))
    if scale <= 1:  # RAE's samplers: no guidance
        return None
    first, last = (section.get(f"t_{end}", section.get(f"t-{end}")) for end in ("min", "max"))
    interval = (0.0 if first is None else float(first), 1.0 if last is None else float(last))
    if section.get("method", "cfg") == "cfg":
        return GuidanceConfig(kind="cfg", scale=scale, interval=interval)
    _adopt_model(official, ("guidance", "guidance_model"), encoder, folder, shared)
    return GuidanceConfig(kind="autoguidance", scale=scale, interval=interval, model=str(folder.resolve()))


def _adopt_decoder(official: Official, encoder: FrozenEncoder, side: int, folder: Path) -> None:
    params = ("stage_1", "params")
    path = official.file(*params, "decoder_config_path") / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{official.path}: no decoder config at {path}; name RAE's checkout by --root"
        )
    patch_size = int(official.get(*params, "decoder_patch_size", default=16))
    values = json.loads(path.read_text()) | {"hidden_size": encoder.width, "patch_size": patch_size}
    values |= {"image_size": patch_size * side, "image_mean": encoder.mean, "image_std": encoder.std}
    decoder = load_decoder(official.file(*params, "pretrained_decoder_path"), values)
    decoder.save_pretrained(folder, dtype=torch.float32)
    write_json(folder / TOKENS_FILE, origin_of(encoder))


# ---- the command


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rae_bridge.exchange", description="RAE's layout in and out."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="our weights folders -> RAE's layout")
    out.add_argument("weights", type=Path, help="weights folder by rae_bridge.train")
    out.add_argument("out_dir", type=Path)
    out.add_argument("--decoder", type=Path, help="a pixel decoder's folder")
    out.add_argument("--guide", type=Path, help="weights folder of AutoGuidance's model")
    into = commands.add_parser("adopt", help="RAE's sampling config and its files -> our weights folders")
    into.add_argument("config", type=Path, help="such as configs/stage2/sampling/ImageNet256/....yaml")
    into.add_argument("out_dir", type=Path)
    into.add_argument("--encoder", required=True, help="ours, such as dinov2-b")
    into.add_argument("--root", type=Path, help="what the config's paths are relative to (here)")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(words)
    try:
        if arguments.command == "export":
            export(arguments.weights, arguments.out_dir, decoder=arguments.decoder, guide=arguments.guide)
            print(f"{arguments.out_dir}: {CONFIG} for RAE's src/sample.py and sample_ddp.py, with its files")
        else:
            adopt(arguments.config, arguments.out_dir, encoder=arguments.encoder, root=arguments.root)
            print(f"python -m rae_bridge.generate {arguments.out_dir}/generate.yaml <folder>")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
