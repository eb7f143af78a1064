"""Do two checkouts train alike, to the last bit? Tiny trainings by command lines alone, and what they leave.

    python tests/same_losses.py record CHECKOUT OUT.json     about 4 minutes on one core, most of them imports
    python tests/same_losses.py compare A.json B.json        names each difference; exit code 1 for any

Record both on the same machine with the same packages: other kernels round otherwise. The interpreter that
runs this runs the stages, with CHECKOUT before whatever is installed. Nothing of the project is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMES = ("second", "mfu", "flops")  # names with one of these are measured, not trained
HASHED = ("**/*.safetensors", "**/*.pt", "**/*.tar", "llava/*.json", "text.jsonl", "layouts.jsonl")


def cases(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Module and config of each stage, by the name of its folder in `folder`; each after those it reads."""
    scenes, llava = f"{folder}/scenes", f"{folder}/scenes/llava"
    pretrain, instruct = f"{llava}/pretrain.json", f"{llava}/instruct.json"
    steps = {"num_steps": 20, "batch_size": 16, "log_steps": 1}
    held_out = {"eval_split": "test", "eval_limit": 32}
    optim = {"lr": 1e-3, "warmup_steps": 5, "weight_decay": 0.05}
    train = {"data": scenes, **steps, **held_out, "optim": optim, "precision": "fp32", "device": "cpu"}
    block = {"width": 64, "layers": 2, "head_width": 32}
    vision = {**block, "image_size": 8, "patch_size": 2, "in_channels": 16, "embed_dim": 64}
    text = {**block, "tokenizer": "scenes", "context_length": 24}
    towers = {"encoder": vision, "decoder": {**block, "in_width": 64}, "text": text}
    towers["captioner"] = {**block, "context_length": 100}
    clip = {"encoder": {**vision, "image_size": 64, "patch_size": 16, "in_channels": 3}, "text": text}
    openvision3 = {**train, "vae": "weights/demo/vae", "openvision3": towers, "pixel_fraction": 0.25}
    perceptual = {"objective": {"perceptual_weight": 0.5}, "perceptual_from": 0.8}  # the last four steps
    stream = {"sources": [{"shards": f"{scenes}/train"}], "image_size": 64, "crop": "random", "num_lanes": 2}
    streamed = {**openvision3, "stream": {**stream, "shuffle_window": 32}}
    codec = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
    dit = {"hidden_size": [64, 96], "depth": [2, 1], "num_heads": [2, 3]}
    latents = {"tokens": f"{folder}/tokens_train", "num_classes": 16, "size": dit}
    decoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {f"decoder_{name}": value for name, value in decoder.items()}
    bridge = {"encoder": "ov3-demo", "features": "last", "tokens": f"{folder}/tokens_llava", "log_steps": 1}
    bridge |= {"num_epochs": 2, "batch_size": 8, "max_length": 512, "learning_rate": 1e-3}
    align = {"stage": 1, "data": [pretrain], "init": "weights/demo/llama", "precision": "fp32"}
    adapt = {"stage": 2, "data": [instruct], "init": f"{folder}/llava_align/weights", "precision": "bf16"}
    llm = {"layouts": [f"{scenes}/layouts.jsonl"], "num_held_out": 20, "precision": "fp32", "muon_lr": 0.02}
    phases = [
        {"num_steps": 5, "batch_size": 16, "topics": ["any"]},
        {"num_steps": 5, "batch_size": 8, "unclear": 1},
    ]
    llm |= {"phases": phases, "log_steps": 1}
    llm["shape"] = {"width": 64, "depth": 2, "num_heads": 2, "mlp_width": 128}
    shown = {"encoder": "ov3-demo", "data": llava}
    world = {"image_size": 64, "shard_size": 64, "num_train": 256, "num_val": 0, "num_test": 32}
    world |= {
        "num_llava_images": 40,
        "num_text": 200,
        "num_layouts": 200,
        "num_seed_questions": 0,
        "num_pope_pairs": 0,
    }
    pixels = {"encoder": "clip-demo", "data": scenes, **steps, **held_out, "optim": optim, "size": decoder}
    vae = {"data": scenes, **steps, **held_out, "num_steps": 5, "train_limit": 64, "shape": codec}
    return {
        "scenes": ("encoder.data.scenes.write", world),
        "encoder_memory": ("encoder.train", {**openvision3, **perceptual}),
        "encoder_streamed": ("encoder.train", streamed),
        "encoder_micro_batches": ("encoder.train", {**streamed, "micro_batch": 8}),
        "clip": ("encoder.train", {**train, "clip": clip, "ema_decay": 0.9}),
        "vae": ("encoder.train_vae", vae),
        "tokens_train": ("encoder.tokens", {"encoder": "ov3-demo", "data": scenes}),
        "dit": ("rae_bridge.train", {**latents, **steps}),
        "pixel_decoder": ("rae_bridge.train_decoder", {**pixels, "perceptual_from": 0.8}),
        "tokens_llava": ("encoder.tokens", {**shown, "records": [pretrain, instruct]}),
        "llava_align": ("llava_bridge.train", {**bridge, **align}),
        "llava_instruct": ("llava_bridge.train", {**bridge, **adapt}),
        "llm": ("llava_bridge.train_llm", llm),
    }


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists with its path; states of generators are left out."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "generators":
                yield from tensors_in(item, f"{name}.{key}")


def sha256(path: Path) -> str:
    """Of a file's bytes; of tensors in a file: names, types, shapes and bytes, in the order of the names."""
    if path.suffix not in (".safetensors", ".pt"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    for name, tensor in sorted(tensors_in(held), key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trace(out: Path) -> dict[str, Any]:
    """What a stage leaves: its log and scores without times; hashes of weights, checkpoints and data."""
    log, result = out / "log.jsonl", json.loads((out / "DONE.json").read_text())["result"]
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rows.append({k: v for k, v in result.items() if isinstance(v, float)})
    rows = [{k: v for k, v in row.items() if not any(each in k for each in TIMES)} for row in rows]
    paths = sorted(path for pattern in HASHED for path in out.glob(pattern))
    return {"log": rows, "sha256": {str(path.relative_to(out)): sha256(path) for path in paths}}


def record(checkout: Path) -> dict[str, Any]:
    """Run every case on the code in `checkout`; their traces."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options: dict[str, Any] = {"env": env, "cwd": checkout, "capture_output": True, "text": True}
    asked = subprocess.run([sys.executable, "-c", "import encoder; print(encoder.__file__)"], **options)
    if not Path(asked.stdout.strip()).is_relative_to(checkout):
        sys.exit(f"imported is not {checkout} but {asked.stdout}{asked.stderr}")
    traces = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (module, config) in cases(Path(folder)).items():
            started, out = time.monotonic(), Path(folder) / name
            Path(f"{out}.yaml").write_text(json.dumps(config))  # JSON is YAML
            done = subprocess.run([sys.executable, "-m", module, f"{out}.yaml", str(out)], **options)
            if done.returncode:
                sys.exit(f"{name}: {module} failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            traces[name] = trace(out)
            print(f"{name}: {len(traces[name]['log'])} rows, {time.monotonic() - started:.1f} s", flush=True)
    return traces


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Where two recordings differ; numbers by their last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a | b:
            yield from differences(a.get(key), b.get(key), f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{place}/{i}")
    elif repr(a) != repr(b):
        yield f"{place}: {str(a)[:80]} != {str(b)[:80]}"


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    if sys.argv[1] == "record":
        Path(sys.argv[3]).write_text(json.dumps(record(Path(sys.argv[2]).resolve()), indent=1) + "\n")
    elif found := list(differences(*(json.loads(Path(path).read_text()) for path in sys.argv[2:]))):
        sys.exit("\n".join(found))
