"""What the Scenes world is made of: kinds, colours, sizes, places, sign words, and what is found where.

A *kind* is also the class of a picture (the kind of its main object); `KINDS` is in the order of the class
labels. `AFFINITY[place][kind]` is the weight with which a kind is drawn at a place, so that boats are seen
at the beach and cups in a room, as in life. Colours are drawn evenly, whatever the kind: words alone must
not tell the colour.
"""

from __future__ import annotations

KINDS = (
    "house",
    "tree",
    "car",
    "boat",
    "fish",
    "bird",
    "flower",
    "star",
    "ball",
    "cup",
    "mushroom",
    "kite",
    "cat",
    "umbrella",
    "rocket",
    "butterfly",
)
PLURALS = {kind: kind + "s" for kind in KINDS} | {"fish": "fish", "butterfly": "butterflies"}

COLORS = {
    "red": (214, 44, 44),
    "orange": (242, 134, 30),
    "yellow": (248, 212, 48),
    "green": (52, 160, 76),
    "blue": (44, 100, 214),
    "purple": (132, 62, 178),
    "pink": (250, 136, 186),
    "white": (246, 245, 240),
}

SIZES = {"small": 0.205, "large": 0.325}  # side of an object's box, as a fraction of the picture's side
ROWS = ("top", "bottom")
COLUMNS = ("left", "middle", "right")
SLOTS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
COLUMN_X = (0.18, 0.5, 0.82)

# The order of preposition and article is how the captions say it: "at the beach".
PLACES = {
    "beach": "at the beach",
    "meadow": "in a meadow",
    "desert": "in the desert",
    "snow": "in the snow",
    "city": "in the city",
    "night": "at night",
    "room": "in a room",
    "sea": "under the sea",
}

SIGN_WORDS = ("stop", "open", "exit", "zoo", "sale", "home", "cafe", "park")

INTERACTIONS = {
    "sits": "sits on",
    "hides": "hides behind",
    "tied": "is tied to",
    "front": "stands before",
}
ACTORS = ("cat", "bird", "ball", "star", "butterfly", "flower")  # the small partner
BASES = ("house", "tree", "car", "boat", "cup", "mushroom", "umbrella", "rocket")  # the large one

# Where the silhouette of each kind ends inside its box [-1, 1]: half width, and top of the middle (y down).
EXTENT = {
    "house": (0.92, -0.92),
    "tree": (0.80, -0.98),
    "car": (0.98, -0.42),
    "boat": (0.90, -0.80),
    "fish": (0.95, -0.55),
    "bird": (0.85, -0.70),
    "flower": (0.68, -0.95),
    "star": (0.92, -0.95),
    "ball": (0.88, -0.80),
    "cup": (0.75, -0.60),
    "mushroom": (0.92, -0.82),
    "kite": (0.72, -0.98),
    "cat": (0.72, -0.92),
    "umbrella": (0.98, -0.90),
    "rocket": (0.62, -0.98),
    "butterfly": (0.95, -0.80),
}
FLYERS = frozenset({"bird", "kite", "star", "butterfly", "rocket"})

_OFTEN, _SOMETIMES, _RARELY = 6.0, 2.5, 0.35
_FOUND = {
    "beach": ("boat umbrella ball kite", "bird fish star cup"),
    "meadow": ("flower butterfly tree mushroom", "bird house cat kite ball"),
    "desert": ("rocket car", "house bird umbrella kite tree"),
    "snow": ("house tree", "cat car cup star bird mushroom"),
    "city": ("car house bird", "tree umbrella cat cup ball"),
    "night": ("star rocket cat", "house tree boat car mushroom butterfly"),
    "room": ("cup cat ball flower", "umbrella kite star butterfly fish"),
    "sea": ("fish star", "boat ball cup mushroom flower"),
}


def _affinity() -> dict[str, dict[str, float]]:
    table = {}
    for place, (often, sometimes) in _FOUND.items():
        weights = dict.fromkeys(KINDS, _RARELY)
        weights |= dict.fromkeys(sometimes.split(), _SOMETIMES) | dict.fromkeys(often.split(), _OFTEN)
        table[place] = weights
    return table


AFFINITY = _affinity()


def article(word: str) -> str:
    """`word` with its indefinite article: "a cat", "an umbrella"."""
    return ("an " if word[0] in "aeiou" else "a ") + word
