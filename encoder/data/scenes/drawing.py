"""How scenes become pictures: at which size, with objects how large, and whether with all the detail that the
size allows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from encoder.data.scenes.render import render
from encoder.data.scenes.scene import Pose, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Pictures of `size` px.

    object_scale: objects and signs at this part of their size, where they are, so that a large picture shows
    small things; an object that is tied to another or sits on it comes nearer to it. What words tell of a
    scene is the same. rendered_at: drawn at this size and enlarged (bicubic), so that a larger picture shows
    nothing more.
    """

    size: int
    object_scale: float = 1.0
    rendered_at: int | None = None

    @classmethod
    def of(cls, how: Drawing | int) -> Drawing:
        """A number stands for pictures of that size."""
        return cls(size=how) if isinstance(how, int) else how

    def __call__(self, scene: Scene) -> np.ndarray:
        """The picture of a scene, uint8 (size, size, 3)."""
        drawn = render(shrunk(scene, self.object_scale), self.rendered_at or self.size)
        if len(drawn) == self.size:
            return drawn
        return np.asarray(Image.fromarray(drawn).resize((self.size, self.size), Image.Resampling.BICUBIC))


def shrunk(scene: Scene, scale: float) -> Scene:
    """The scene with its objects and its sign at `scale` of their size (0 to 1)."""
    if scale == 1:
        return scene
    anchor = None
    if scene.interaction is not None:
        actor, _, base = scene.interaction
        anchor = (actor, scene.items[base].pose)
    items = tuple(
        dataclasses.replace(
            item, pose=_shrunk(item.pose, scale, anchor[1] if anchor and number == anchor[0] else item.pose)
        )
        for number, item in enumerate(scene.items)
    )
    sign = scene.sign and dataclasses.replace(
        scene.sign, pose=_shrunk(scene.sign.pose, scale, scene.sign.pose)
    )
    return dataclasses.replace(scene, items=items, sign=sign)


def _shrunk(pose: Pose, scale: float, anchor: Pose) -> Pose:
    """A pose at `scale` of its size, as much nearer to an anchor, which keeps its place."""
    x, y = (at + scale * (each - at) for each, at in ((pose.x, anchor.x), (pose.y, anchor.y)))
    return dataclasses.replace(pose, x=x, y=y, half=scale * pose.half)
