"""What a training tells of its averaged weights on the way: a loss, a Frechet distance, pictures."""

import functools
from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor

from encoder.runtime.files import replacing
from encoder.runtime.ranks import Ranks
from encoder.runtime.trackers import Journal
from rae_bridge.codec import Codec, check_tokens_alike, load_codec, origin_of
from rae_bridge.config import GenerateConfig, GuidanceConfig, TrainDiTConfig
from rae_bridge.generate import TrainedFlow, make_guidance, stream_samples
from rae_bridge.grids import draw_classes
from rae_bridge.held_out import NUM_EVALUATED, Tokens, evaluate, first_of
from rae_bridge.judge import FrechetJudge
from rae_bridge.run import Run

Codecs = Callable[[str, str | None], Codec]  # encoder, decoder


def codecs_on(device: str) -> Codecs:
    """Loads each encoder with its decoder once."""
    return functools.cache(lambda encoder, decoder: load_codec(encoder, decoder=decoder, device=device))


class OnlineScore:
    """The Frechet distance of a few samples, drawn by all processes together."""

    def __init__(
        self, config: TrainDiTConfig, tokens: Mapping[str, str], codecs: Codecs, ranks: Ranks
    ) -> None:
        """Raises: FileNotFoundError, ValueError: as `FrechetJudge`; the encoder cannot decode, or is not that
        of the tokens."""
        self.config, self.ranks = config.online, ranks
        encoder = self.config.encoder or tokens["encoder"]
        self.codec = codecs(encoder, self.config.decoder)
        check_tokens_alike(
            f"online.encoder {encoder}", origin_of(self.codec.encoder), "this training", tokens
        )
        self.judge = FrechetJudge(self.config.judge, ranks.device)
        sizes = {"num_samples": self.config.num_samples, "num_steps": self.config.num_steps}
        about = {"precision": config.precision, "device": ranks.device, "seed": config.seed}
        self.generate = GenerateConfig(model="", encoder=encoder, **sizes, **about)

    def measure(self, flow: TrainedFlow) -> float:
        """The distance of what `flow` draws."""
        judge = self.judge.again()
        for _, images in stream_samples(flow, self.codec, self.generate, None, self.ranks):
            judge.see(images)
        return judge.merged(self.ranks).distance()


class SampleGrid:
    """A row of pictures a class, from the same noise every time."""

    def __init__(self, config: TrainDiTConfig, tokens: Mapping[str, str], codecs: Codecs) -> None:
        """Raises: FileNotFoundError, ValueError: the encoder cannot decode, or is not that of the tokens."""
        self.config, self.classes = config.grid, config.grid.classes_of(config.num_classes)
        encoder = self.config.encoder or tokens["encoder"]
        self.codec = codecs(encoder, self.config.decoder)
        check_tokens_alike(f"grid.encoder {encoder}", origin_of(self.codec.encoder), "this training", tokens)
        scale = self.config.scale
        guidance = None if scale == 1 else GuidanceConfig(kind="cfg", scale=scale)
        num = {"num_samples": len(self.classes) * self.config.columns, "num_steps": self.config.num_steps}
        about = {"precision": config.precision, "seed": config.seed, "guidance": guidance}
        self.generate = GenerateConfig(model="", encoder=encoder, **num, **about)

    def draw(self, flow: TrainedFlow) -> Tensor:
        """The picture of all pictures: uint8, H W 3."""
        device = str(next(flow.model.parameters()).device)
        guidance = make_guidance(self.generate.guidance, flow, device)
        with torch.no_grad():
            return draw_classes(flow, self.codec, self.generate, self.classes, self.config.columns, guidance)


class Watch:
    """What is told of the averaged weights on the way: their loss on held-out tokens, a distance, samples."""

    def __init__(self, config: TrainDiTConfig, run: Run, held_out: Tokens, ranks: Ranks) -> None:
        self.config, self.run, self.ranks = config, run, ranks
        codecs = codecs_on(ranks.device)
        self.online = OnlineScore(config, run.tokens, codecs, ranks) if config.online else None
        self.grid = SampleGrid(config, run.tokens, codecs) if config.sample_steps else None
        self.held_out = None
        if config.held_out_steps:
            self.held_out = first_of(held_out, NUM_EVALUATED, run.statistics, ranks.device)

    def is_due(self, done: int) -> bool:
        """Whether anything is told after this step."""
        config = self.config
        every = (config.online and config.online.every_steps, config.sample_steps, config.held_out_steps)
        return any(self._is_due(done, steps) for steps in every)

    def _is_due(self, done: int, every: int | None) -> bool:
        return bool(every) and (done % every == 0 or done == self.config.num_steps)

    def tell(self, done: int, journal: Journal) -> dict[str, float]:
        """Measure and draw what is due; returns what was measured."""
        config, run, scores = self.config, self.run, {}
        flow = TrainedFlow(run.averaged, run.statistics, run.shift)
        if self.online and self._is_due(done, config.online.every_steps):
            scores["frechet_distance"] = self.online.measure(flow)
        if self._is_due(done, config.held_out_steps):
            scores["held_out_loss"] = evaluate(run.averaged, *self.held_out, config, run.shift)
        if scores:
            journal.write(done, config.num_steps, **scores)
        if self._is_due(done, config.sample_steps) and self.ranks.is_main:
            image = self.grid.draw(flow).numpy()
            folder = run.out_dir / "samples"
            folder.mkdir(exist_ok=True)
            with replacing(folder / f"step_{done:08}.png") as temporary:
                Image.fromarray(image).save(temporary, "png")
            journal.show(done, "samples", image)
        return scores
