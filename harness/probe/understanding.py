"""Stage: a probe answers the questions that a language model is asked, from the same frozen tokens.

`python -m harness.probe.understanding <config.yaml> <out_dir>` fits a linear probe and a small network to
what is known of the pictures that the language model is taught with, keeps for each dimension the one that
answers better about held-out ones of them, and lets lmms-eval ask and score it as it does a language model.
It writes out_dir/samples.jsonl, every answer. Test pictures are seen when they are asked about, their truths
never. What the tokens do not hold no bridge can read from them; what this reads and the language model does
not is lost in the bridge.
"""

import contextlib
import json
import shutil
from pathlib import Path

import torch

from encoder.data.options import ScenesConfig
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.scene import Scene
from encoder.load import load_encoder
from encoder.metrics.readout import ReadoutConfig
from encoder.runtime.config import ROOT, load
from encoder.runtime.device import require_device
from encoder.runtime.files import replacing
from encoder.runtime.stage import main, progress
from encoder.token_store import TokenStore
from harness.probe.config import ProbeConfig
from harness.probe.readers import READERS, configs_of
from harness.probe.sight import Sight
from llava_bridge.config import EvaluateConfig
from llava_bridge.evaluate import go_offline, load_tasks, score_own, scorer

_CACHE = "datasets"  # lmms-eval's copy of the parquet files, removed at the end
_LEAST = 20  # pictures to fit a probe to, so that some can choose


def scenes_of(data: Path, keys: list[str]) -> list[Scene]:
    """The scenes of pictures `images/<number>.png`, made again by the config in card.json.

    Raises:
        ConfigError: that is no config of encoder.data.scenes.write.
        FileNotFoundError: the folder has no card.
        ValueError: a picture is no numbered scene.
    """
    path = data / "card.json"
    if not path.is_file():
        raise FileNotFoundError(f"{data} is no folder of encoder.data.scenes.write: no {path.name}")
    config = load(ScenesConfig, json.loads(path.read_text())["config"], name=str(path))
    stems = [Path(key).stem for key in keys]
    if unknown := [stem for stem in stems if not stem.isdecimal()]:
        raise ValueError(f"{data}: picture {unknown[0]} is no numbered scene")
    return [
        make_scene(config.seed, int(stem), "train", config.composition, config.held_out) for stem in stems
    ]


def captions_of(data: Path, keys: list[str]) -> list[str]:
    """The captions of pictures, by the records of llava/pretrain.json.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a picture has no record.
    """
    path = data / "llava" / "pretrain.json"
    if not path.is_file():
        raise FileNotFoundError(f"no captions: {path}")
    said = {record["image"]: record["conversations"][-1]["value"] for record in json.loads(path.read_text())}
    if missing := [key for key in keys if key not in said]:
        raise ValueError(f"{path}: no record of picture {missing[0]}")
    return [said[key] for key in keys]


def open_tokens(config: ProbeConfig, fingerprint: str) -> TokenStore:
    """The tokens of the pictures that are known, of the encoder with this fingerprint.

    Raises:
        FileNotFoundError, ValueError: no tokens, those of another encoder, or too few.
    """
    store = TokenStore(ROOT / config.tokens)
    if store.origin["features"] != config.features:
        raise ValueError(f"{config.tokens} holds features {store.origin['features']}, not {config.features}")
    if len(store) < _LEAST:
        raise ValueError(f"{config.tokens} holds {len(store)} pictures; a probe needs {_LEAST} or more")
    if store.origin["fingerprint"] != fingerprint:
        raise ValueError(
            f"{config.tokens} holds tokens of another encoder than {config.encoder} "
            f"({store.origin['fingerprint'][:12]}, not {fingerprint[:12]}); write them anew"
        )
    return store


def run(config: ProbeConfig, out_dir: Path) -> dict:
    """Fit, ask, score; see the module's docstring."""
    out_dir = out_dir.resolve()
    go_offline(out_dir / _CACHE)
    from harness.probe.answerer import ProbeAnswerer

    torch.set_flush_denormal(True)
    encoder = load_encoder(
        config.encoder, features=config.features, device=str(require_device(config.device))
    )
    store = open_tokens(config, encoder.fingerprint)
    sight = Sight.of(store, encoder, config.grid)
    keys, features = sight.known(store)
    known = {"scenes": scenes_of, "captions": captions_of}[config.truth](ROOT / config.data, keys)
    base = ReadoutConfig(
        num_epochs=config.num_epochs, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    num_validation = max(1, round(config.validation_fraction * len(keys)))
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(config.seed)).tolist()
    reader = READERS[config.truth](
        features[order], [known[i] for i in order], configs_of(base, config.hidden), num_validation,
        config.seed,
    )  # fmt: skip
    asked = EvaluateConfig(model="", tasks=config.tasks, task_dir=config.task_dir, seed=config.seed)
    answerer = ProbeAnswerer(
        sight,
        reader,
        batch_size=config.batch_size,
        report=lambda done, total: progress(out_dir, done, total, "questions"),
    )
    with contextlib.chdir(out_dir):  # lmms-eval writes what it likes there
        metrics, rows = score_own(asked, load_tasks(asked), scorer(asked, answerer))
    shutil.rmtree(out_dir / _CACHE, ignore_errors=True)
    with replacing(out_dir / "samples.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"metrics": metrics, "probe": dict(reader.about)}


if __name__ == "__main__":
    main(ProbeConfig, run)
