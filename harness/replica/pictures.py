"""Pictures with a truth, drawn by Scenes, as files of the kinds that are found in the wild."""

import io
import itertools
import zlib
from collections.abc import Iterator

from PIL import Image

from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.render import MIN_SIZE, render
from encoder.data.scenes.scene import Scene, Split

# width, height: wide, tall, square, odd, and one smaller than any crop
SIZES = ((250, 187), (187, 250), (257, 255), (320, 213), (224, 224), (161, 241), (75, 56))
_QUALITY = 90


def scenes(seed: int, source: str, split: Split) -> Iterator[Scene]:
    """Scenes without end, others for each source."""
    own = zlib.crc32(f"{seed}/{source}".encode())
    return (make_scene(own, index, split) for index in itertools.count())


def draw(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """The whole scene squeezed into width x height, RGB: what is true of it stays true."""
    pixels = render(scene, max(*size, MIN_SIZE))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def size_of(number: int) -> tuple[int, int]:
    """Width and height of the picture `number` of a source."""
    return SIZES[number % len(SIZES)]


def jpeg(picture: Image.Image) -> bytes:
    """A JPEG file in the picture's own mode: RGB, L (grey) or CMYK."""
    return _file(picture, "JPEG", quality=_QUALITY)


def png(picture: Image.Image) -> bytes:
    """A PNG file."""
    return _file(picture, "PNG", compress_level=3)


def _file(picture: Image.Image, form: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **settings)
    return buffer.getvalue()
