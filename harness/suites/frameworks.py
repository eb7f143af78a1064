"""Under which framework an encoder is judged: LLaVA-1.5, LLaVA-NeXT (`<encoder>/llava_next`), LLaVA-NeXT on
square canvases, and LLaVA-1.5 at as many tokens as LLaVA-NeXT has on average.
"""

from dataclasses import dataclass, field
from typing import Any

from encoder.runtime.config import ConfigError
from harness.config import merged
from harness.sections import LlavaSections

EQUAL, SQUARE = "equal_tokens", "square_eval"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One row for each encoder: which sections its stages take, and what its id gains."""

    framework: str
    suffix: str  # of the encoder's id
    align: dict[str, Any]  # fields of llava_bridge.config.LlavaConfig
    instruct: dict[str, Any]
    evaluate: dict[str, Any]  # of llava_bridge.config.EvaluateConfig
    says: tuple[str, ...] = field(default=())  # what a row's source adds
    mix: str = "llava_mix"  # the real source that stage 2 learns from

    @property
    def has_own_tokens(self) -> bool:
        """Whether it sees tokens that no other row of the encoder does, but for interpolation."""
        return not self.suffix.endswith((EQUAL, SQUARE))

    @property
    def is_next(self) -> bool:
        return self.framework == "llava_next"


def judgements(sections: LlavaSections) -> list[Judgement]:
    """The rows that the preset's sections ask for, of each encoder.

    Raises:
        ConfigError: LLaVA-NeXT with a number of tokens of one's own.
    """
    return [each for name in sections.frameworks for each in _ROWS[name](sections)]


def llava_1_5(sections: LlavaSections, num_image_tokens: int | None = None) -> Judgement:
    """LLaVA-1.5, where asked for at another number of tokens than the preset's."""
    align, suffix = sections.align, ""
    if num_image_tokens is not None:
        align, suffix = {**align, "num_image_tokens": num_image_tokens}, f"/{EQUAL}"
    resized = align.get("num_image_tokens")
    says = (f"resized to {resized} tokens",) if resized else ()
    return Judgement(
        framework="llava_1_5",
        suffix=suffix,
        align=align,
        instruct=sections.instruct,
        evaluate=sections.evaluate,
        says=says,
    )


def llava_next(sections: LlavaSections, *, is_square: bool = False) -> Judgement:
    """LLaVA-NeXT: the preset's sections, over them the recipe's, over those its own."""
    own, recipe = sections.next, sections.next.chosen
    stages = [
        merged(merged(sections.align, recipe.align), own.align),
        merged(merged(sections.instruct, recipe.instruct), own.instruct),
    ]
    for name, stage in zip(("align", "instruct"), stages, strict=True):
        if stage.get("num_image_tokens") is not None:
            raise ConfigError(
                f"llava.{name}.num_image_tokens={stage['num_image_tokens']} with llava.framework=llava_next, "
                "whose tiles are maps of the encoder's own grid: take it out, or set "
                "llava.framework=llava_1_5 (llava.equal_tokens=<n> adds such a row of LLaVA-1.5)"
            )
    common = {"framework": "llava_next"} | ({"tiles": own.tiles} if own.tiles is not None else {})
    evaluate = merged(sections.evaluate, own.evaluate)
    taught = () if own.recipe is None else (f"recipe {own.recipe} on {recipe.mix}",)
    return Judgement(
        framework="llava_next",
        suffix=f"/llava_next/{SQUARE}" if is_square else "/llava_next",
        align={**stages[0], **common},
        instruct={**stages[1], **common},
        evaluate={**evaluate, "square_eval": True} if is_square else evaluate,
        says=("LLaVA-NeXT", *taught, *(("evaluated on 2 x 2 tiles",) if is_square else ())),
        mix=recipe.mix,
    )


def _rows_1_5(sections: LlavaSections) -> list[Judgement]:
    equal = [sections.equal_tokens] if sections.equal_tokens is not None else []
    return [llava_1_5(sections), *(llava_1_5(sections, number) for number in equal)]


def _rows_next(sections: LlavaSections) -> list[Judgement]:
    return [llava_next(sections), *([llava_next(sections, is_square=True)] if sections.square_eval else [])]


_ROWS = {"llava_1_5": _rows_1_5, "llava_next": _rows_next}
