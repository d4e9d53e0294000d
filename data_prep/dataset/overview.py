"""What a split consists of: lengths of documents, tokens of sources, kinds of characters."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset.documents import Documents

_QUANTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)  # percent
_SAMPLED_BYTES = 1 << 20
_SAMPLED_OF_ONE = 1 << 14  # characters, so that one long document does not stand for all
_BINS = 60
# The first word of a letter's Unicode name is its script, for all but these.
_SCRIPTS = {
    **{"CJK": "HAN", "KANGXI": "HAN", "HALFWIDTH": "KATAKANA", "FULLWIDTH": "LATIN"},
    **{"MASCULINE": "LATIN", "FEMININE": "LATIN", "MICRO": "GREEK", "MODIFIER": "ACCENTS"},
}
_KINDS = {"N": "digits", "P": "punctuation", "S": "symbols", "Z": "white space", "C": "white space"}


def draw(documents: int, count: int, seed: int) -> list[int]:
    """`count` different documents, or all if there are fewer, by chance from the seed; sorted."""
    if count >= documents:
        return list(range(documents))
    random = np.random.default_rng(seed)
    found: set[int] = set()
    while len(found) < count:  # a permutation of all would need their memory
        found.update(random.integers(0, documents, count - len(found)).tolist())
    return sorted(found)


def longest(lengths: np.ndarray, count: int) -> list[int]:
    """The documents of most tokens, the longest first; of equal ones the earliest."""
    count = min(count, len(lengths))
    least = np.partition(lengths, len(lengths) - count)[len(lengths) - count]
    found = np.flatnonzero(lengths >= least)
    return sorted(found.tolist(), key=lambda document: (-int(lengths[document]), document))[:count]


def length_quantiles(lengths: np.ndarray) -> dict[int, int]:
    """Tokens of the document at each of `_QUANTILES`, in percent of the documents."""
    found = np.percentile(lengths, _QUANTILES, method="lower")
    return {percent: int(value) for percent, value in zip(_QUANTILES, found, strict=True)}


def shares_by_script(documents: Documents, seed: int) -> tuple[dict[str, float], int]:
    """Share of the bytes of each script, and of digits, punctuation, symbols and white space.

    From documents drawn by chance, at least 1 MB of their text or all of it; also returns how many
    bytes those are. The largest share comes first.
    """
    kinds: dict[str, str] = {}
    total: Counter[str] = Counter()
    order = np.random.default_rng(seed).integers(0, documents.shards.documents, 1 << 14)
    for document in dict.fromkeys(order.tolist()):
        text = documents.text(document, _SAMPLED_OF_ONE)
        for character, count in Counter(text).items():
            kind = kinds.get(character)
            if kind is None:
                kind = kinds[character] = kind_of(character)
            total[kind] += count * len(character.encode("utf-8", "replace"))
        if total.total() >= _SAMPLED_BYTES:
            break
    size = total.total()
    return {kind: count / size for kind, count in total.most_common()}, size


def kind_of(character: str) -> str:
    """The script of a letter in lower case, such as `latin`; else `digits`, `punctuation`, …"""
    category = unicodedata.category(character)
    if character == "\ufffd":
        return "not decodable"
    if category[0] not in "LM":
        return _KINDS[category[0]]
    word = unicodedata.name(character, "UNNAMED").split()[0]
    if word == "COMBINING":
        return "accents"
    return _SCRIPTS.get(word, word).lower()


def draw_lengths(lengths: np.ndarray, title: str, path: Path) -> None:
    """A picture of how long documents are: how many there are, and how many tokens they hold."""
    # Costs 0.4 seconds, which only a picture should cost.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    edges = _edges(int(lengths.min()), int(lengths.max()))
    panels: Any = figure.subplots(1, 2)
    heights = (("documents", None), ("tokens", lengths.astype(np.float64)))
    for panel, (what, weights) in zip(panels, heights, strict=True):
        counts, _ = np.histogram(lengths, edges, weights=weights)
        panel.stairs(counts, edges, fill=True)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("tokens of a document")
        panel.set_ylabel(what)
        panel.xaxis.set_major_formatter(_in_short)
        panel.yaxis.set_major_formatter(EngFormatter(sep=""))
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _in_short(tokens: float, _: int | None = None) -> str:
    """A power of two as a mark on an axis: 512, 1k, 16k."""
    return f"{tokens / 1024:.0f}k" if tokens >= 1024 else f"{tokens:.0f}"


def _edges(least: int, most: int) -> Sequence[float]:
    """Edges of bins on a scale of logarithms; each holds at least one whole number."""
    edges = np.geomspace(least, most + 1, _BINS + 1)
    return np.unique(np.ceil(edges)).tolist() if most > least else [least, least + 1]
