"""The judge: a small convolutional network that finds the things in a picture of Scenes, from pixels alone.

On a grid of a quarter of the picture's side it says, per cell, how much it responds to each kind of object
(and to a sign), the object's colour and size or the sign's word, and how far off the cell the middle is; and
once for the whole picture, the place. A thing is where a response is the largest around and above a
threshold: also between the world's slots, where a model may draw one.

Letters: B pictures, S pixels on a side, G = S / 4 cells on a side.

Source of the form: objects as points, arXiv:1904.07850 (heat maps by a penalty-reduced focal loss).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.data.scenes.objects import COLORS, KINDS, PLACES, SIGN_WORDS, SIZES
from encoder.data.scenes.scene import Scene
from encoder.frozen import resize_square
from encoder.runtime import checkpoint
from encoder.runtime.config import load
from encoder.runtime.stage import sha256_file, write_json
from harness.scene_eval.config import JudgeConfig
from harness.scene_eval.facts import Seen, Thing

STRIDE = 4  # pixels of a cell's side
SIGN = len(KINDS)  # the channel of signs, after those of the kinds
_FEW = -2.2  # logit of a response before training: objects are rare
_SPREAD = 0.8  # cells: how fast the penalty for a response grows with its distance from a middle
WEIGHTS, CONFIG = "judge.safetensors", "judge.json"
PARTS = {"color": len(COLORS), "size": len(SIZES), "word": len(SIGN_WORDS)}


@dataclass(frozen=True, slots=True)
class Responses:
    """heat B 17 G G (logits), looks: color, size, word (B K G G each, logits), offset B 2 G G (x, y, cells),
    place B 8 (logits)."""

    heat: Tensor
    looks: dict[str, Tensor]
    offset: Tensor
    place: Tensor


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width), _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def _convolution(width: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out))


class Judge(nn.Module):
    """Pixels (B 3 S S in [0, 1]) -> `Responses`."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.stem = nn.Sequential(
            _convolution(3, width // 2, 2), nn.ReLU(), _convolution(width // 2, width, 2), nn.ReLU()
        )
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(config.blocks)])
        self.heat = nn.Conv2d(width, len(KINDS) + 1, 1)
        self.looks = nn.ModuleDict({name: nn.Conv2d(width, num, 1) for name, num in PARTS.items()})
        self.offset = nn.Conv2d(width, 2, 1)
        self.place = nn.Linear(width, len(PLACES))
        nn.init.constant_(self.heat.bias, _FEW)

    def forward(self, pixels: Tensor) -> Responses:
        x = self.blocks(self.stem(2 * pixels - 1))  # B D G G
        looks = {name: layer(x) for name, layer in self.looks.items()}
        return Responses(self.heat(x), looks, self.offset(x), self.place(x.mean(dim=(2, 3))))

    @torch.no_grad()
    def read(self, images: np.ndarray, batch_size: int = 100, device: str = "cpu") -> Iterator[Seen]:
        """What is in uint8 images (N S S 3), one after another. Eval mode is the caller's."""
        size = self.config.image_size
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            pixels = part.permute(0, 3, 1, 2).float() / 255
            if pixels.shape[-1] != size:
                pixels = resize_square(pixels, size).clamp(0, 1)
            yield from things_of(self(pixels), self.config.threshold)

    def save(self, folder: Path) -> None:
        """Write its weights and config."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(folder / WEIGHTS, self.state_dict())
        write_json(folder / CONFIG, dataclasses.asdict(self.config))

    @staticmethod
    def load(folder: Path, device: str = "cpu") -> "Judge":
        """Read what `save` wrote, in eval mode.

        Raises: FileNotFoundError, ValueError: it is missing or damaged.
        """
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"no judge in {folder} ({CONFIG}); run harness.scene_eval.train_judge")
        judge = Judge(load(JudgeConfig, folder / CONFIG))
        judge.load_state_dict(checkpoint.load_tensors(folder / WEIGHTS))
        return judge.eval().requires_grad_(False).to(device)


def name_of(folder: Path) -> str:
    """The judge in a folder as results name it."""
    return f"scene-judge sha256:{sha256_file(folder / WEIGHTS)}"


def things_of(responses: Responses, threshold: float) -> Iterator[Seen]:
    """What each picture shows: peaks of the heat maps, of one cell the strongest kind alone; of signs the
    strongest."""
    heat = responses.heat.float().sigmoid()
    is_peak = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat > threshold)
    is_peak &= heat == heat.amax(dim=1, keepdim=True)
    heat, is_peak, offset = heat.cpu(), is_peak.cpu(), responses.offset.float().cpu()
    looks = {name: logits.argmax(dim=1).cpu() for name, logits in responses.looks.items()}
    places, cells = responses.place.argmax(dim=1).tolist(), heat.shape[-1]
    for i, place in enumerate(places):
        things, signs = [], []
        for kind, row, column in is_peak[i].nonzero().tolist():
            color, size, word = (int(looks[name][i, row, column]) for name in ("color", "size", "word"))
            if kind == SIGN:
                signs.append((float(heat[i, kind, row, column]), SIGN_WORDS[word]))
                continue
            x, y = ((at + 0.5 + float(offset[i, axis, row, column])) / cells
                    for axis, at in ((0, column), (1, row)))  # fmt: skip
            things.append(Thing(KINDS[kind], list(COLORS)[color], list(SIZES)[size], x, y))
        yield Seen(tuple(things), list(PLACES)[place], max(signs)[1] if signs else None)


@dataclass(frozen=True, slots=True)
class Targets:
    """What `Responses` should be. heat B 17 G G in [0, 1], 1 at middles. Of the M things of all pictures:
    where (M 4: picture, channel, row, column), offset M 2, looks (M each; -1 where a thing has none)."""

    heat: Tensor
    where: Tensor
    offset: Tensor
    looks: dict[str, Tensor]
    place: Tensor


def targets_of(scenes: Sequence[Scene], cells: int) -> Targets:
    """Of pictures of scenes, on a grid of `cells` x `cells`."""
    heat = torch.zeros(len(scenes), len(KINDS) + 1, cells, cells)
    where, offsets, looks = [], [], {name: [] for name in PARTS}
    grid = torch.arange(cells) + 0.5
    for i, scene in enumerate(scenes):
        for thing in (*scene.items, *([scene.sign] if scene.sign else [])):
            is_sign = thing is scene.sign
            x, y = thing.pose.x * cells, thing.pose.y * cells
            column, row = (min(cells - 1, max(0, int(each))) for each in (x, y))
            channel = SIGN if is_sign else KINDS.index(thing.kind)
            near = -((grid[None] - x).square() + (grid[:, None] - y).square()) / (2 * _SPREAD**2)
            heat[i, channel] = torch.maximum(heat[i, channel], near.exp())
            heat[i, channel, row, column] = 1.0
            where.append((i, channel, row, column))
            offsets.append((x - column - 0.5, y - row - 0.5))
            looks["color"].append(-1 if is_sign else list(COLORS).index(thing.color))
            looks["size"].append(-1 if is_sign else list(SIZES).index(thing.size))
            looks["word"].append(SIGN_WORDS.index(thing.word) if is_sign else -1)
    place = torch.tensor([list(PLACES).index(scene.place) for scene in scenes])
    return Targets(
        heat, torch.tensor(where), torch.tensor(offsets),
        {name: torch.tensor(values) for name, values in looks.items()}, place,
    )  # fmt: skip


def judge_loss(responses: Responses, targets: Targets) -> Tensor:
    """Focal loss of the heat maps per thing, cross-entropies of looks and place, L1 of the offsets."""
    picture, channel, row, column = targets.where.T
    num = max(1, len(picture))
    is_middle = torch.zeros_like(targets.heat)
    is_middle[picture, channel, row, column] = 1
    share = responses.heat.float().sigmoid()
    log_share, log_rest = F.logsigmoid(responses.heat.float()), F.logsigmoid(-responses.heat.float())
    found = (1 - share).square() * log_share * is_middle
    beside = share.square() * (1 - targets.heat) ** 4 * log_rest * (1 - is_middle)
    loss = -(found + beside).sum() / num
    at = responses.offset.float()[picture, :, row, column]  # M 2
    loss = loss + (at - targets.offset).abs().sum() / num
    for name, logits in responses.looks.items():
        own = targets.looks[name]
        if (own >= 0).any():
            loss = loss + F.cross_entropy(logits.float()[picture, :, row, column], own, ignore_index=-1)
    return loss + F.cross_entropy(responses.place.float(), targets.place)
