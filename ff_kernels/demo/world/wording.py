"""Words and sentence patterns of the demo captions: lower-case letters, single spaces and commas only."""

from collections.abc import Callable

_DIRECTIONS = ("left", "right", "up", "down")

# The first phrase of each row is the canonical one.
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
COLOR_WORDS = {name: (name,) for name in ("red", "green", "blue", "yellow", "cyan")} | {"purple": ("purple", "violet")}
SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
}
BACKGROUND_WORDS = {name: (name,) for name in ("black", "white", "brown")} | {"gray": ("gray", "grey")}
FINITE_WORDS = {way: (f"moves {way}", f"goes {way}", f"slides {way}") for way in _DIRECTIONS} | {
    "grows": ("grows", "gets bigger", "expands"),
    "shrinks": ("shrinks", "gets smaller"),
    "bounces": ("bounces", "hops"),
    "stays": ("stays still", "stands still", "does not move"),
}
GERUND_WORDS = {way: (f"moving {way}", f"going {way}", f"sliding {way}") for way in _DIRECTIONS} | {
    "grows": ("growing", "getting bigger", "expanding"),
    "shrinks": ("shrinking", "getting smaller"),
    "bounces": ("bouncing", "hopping"),
    "stays": ("staying still", "standing still", "not moving"),
}
ANY_SHAPE_WORDS = ("shape", "object")


def _on(background: str) -> str:
    return f" on a {background} background" if background else ""


def _say_plain(subject: str, finite: str, gerund: str, background: str) -> str:
    return " ".join(["a", subject, *finite.split()]) + _on(background)


def _say_background_first(subject: str, finite: str, gerund: str, background: str) -> str:
    place = f"on a {background} background, " if background else ""
    return place + " ".join(["a", subject, *finite.split()])


def _say_list(subject: str, finite: str, gerund: str, background: str) -> str:
    return ", ".join(part for part in (subject, gerund, background and f"{background} background") if part)


def _say_that(subject: str, finite: str, gerund: str, background: str) -> str:
    return f"a {subject}" + (f" that {finite}" if finite else "") + _on(background)


def _say_gerund(subject: str, finite: str, gerund: str, background: str) -> str:
    return " ".join(["a", subject, *gerund.split()]) + _on(background)


def _say_with(subject: str, finite: str, gerund: str, background: str) -> str:
    place = f"a {background} background with " if background else ""
    return place + " ".join(["a", subject, *gerund.split()])


TEMPLATES: tuple[Callable[[str, str, str, str], str], ...] = (
    _say_plain,
    _say_background_first,
    _say_list,
    _say_that,
    _say_gerund,
    _say_with,
)


def _flat(words: dict[str, tuple[str, ...]]) -> list[str]:
    return [phrase for phrases in words.values() for phrase in phrases]


def covering_captions() -> list[str]:
    """Captions in which every phrase of every table occurs at least once, the same each time."""
    sizes, colors, backgrounds = _flat(SIZE_WORDS), _flat(COLOR_WORDS), _flat(BACKGROUND_WORDS)
    nouns = [*_flat(SHAPE_WORDS), *ANY_SHAPE_WORDS]
    finites, gerunds = _flat(FINITE_WORDS), _flat(GERUND_WORDS)
    captions = []
    for index, (finite, gerund) in enumerate(zip(finites, gerunds, strict=True)):
        subject = " ".join(words[index % len(words)] for words in (sizes, colors, nouns))
        background = backgrounds[index % len(backgrounds)]
        captions.append(_say_that(subject, finite, gerund, background))
        captions.append(_say_with(subject, finite, gerund, background))
    return captions
