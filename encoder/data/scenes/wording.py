"""Every phrase that a text of the Scenes world is built from. `text.VOCABULARY` is made from this file and
`objects`."""

from __future__ import annotations

NUMBERS = ("no", "one", "two", "three", "four", "five")

# Alt texts, as the web has them: short, incomplete, with words that say nothing about the picture.
ALT_SUBJECTS = (
    "{color} {kind}",
    "{a_color} {kind}",
    "{kind}",
    "{a_kind}",
    "{size} {kind}",
    "{color} {kind} and {other}",
)
ALT_TEXTS = (
    "{subject}",
    "{subject} {where}",
    "{subject} photo",
    "picture of {subject}",
    "{subject} stock photo",
    "my {subject}",
    "{place} with {subject}",
    "{subject} wallpaper free download",
    "cute {subject} {where}",
    "{place} photo",
    "image {digit}",
    "{subject}, {place}, new",
    "best {subject} {where} {digit}",
)

# Dense captions.
OPENINGS = (
    "{num} {objects} {where}.",
    "the picture shows {num} {objects} {where}.",
    "{where} there {are} {num} {objects}.",
)
PLACED = ("{a_thing} is at the {slot}.", "at the {slot} is {a_thing}.", "there is {a_thing} at the {slot}.")
ATTACHED = "{a_thing} {does} {the_base}."
TIED = "{the_actor} is tied to {the_base}."
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
RELATED = "{the_first} is {relation} {the_second}."
COUNTED = "there are {num} {kinds}."
SIGNED = ("a sign at the {slot} says {word}.", "the word on the sign at the {slot} is {word}.")

# Questions: one wording per kind of question, so that twin scenes share every word. Dimensions as SEED-Bench
# numbers them.
DIMENSIONS = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
    9: "Text Understanding",
}
QUESTIONS: dict[str, tuple[int, str]] = {
    "place": (1, "which scene is this?"),
    "kind_of_color": (2, "what is the {color} object?"),
    "kind_at_slot": (2, "what is at the {slot}?"),
    "color": (3, "what color is the {kind}?"),
    "look": (3, "how does the {kind} look?"),
    "slot": (4, "where is the {kind}?"),
    "count": (5, "how many {kinds} are there?"),
    "relation": (6, "where is the {kind} relative to the {other}?"),
    "interaction": (7, "how does the {kind} interact with the {other}?"),
    "same_color": (8, "what has the same color as the {kind}?"),
    "color_beside": (8, "what color is the object {relation} the {kind}?"),
    "most": (8, "which kind appears most?"),
    "word": (9, "what does the sign say?"),
}
INTERACTION_ANSWERS = {
    "sits": "sits on it",
    "hides": "hides behind it",
    "tied": "is tied to it",
    "front": "stands before it",
}

POPE_QUESTION = "Is there {a_kind} in the image?"
LETTERS = ("A", "B", "C", "D")
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
WORD_PROMPT = "Answer the question using a single word or phrase."
DESCRIBE = ("describe the picture.", "what does the picture show?")
CHAT_WORDS = ("user", "assistant", "yes", "no", "<image>")  # what chat templates and answers add
