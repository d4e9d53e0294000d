"""The n-gram search, compared with sets of words in plain Python."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from eval.text_search.ngrams import DOCUMENT_BREAK, NOT_FOUND, Search, all_runs, whole_texts


def naive_words(text: str) -> list[str]:
    kept = (c for c in text if c.isspace() or unicodedata.category(c)[0] in "LMN")
    return "".join(c if c.isspace() else c.lower()[0] for c in kept).split()


def runs_of(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


TEXT = st.text(alphabet="aAb  \n.\u2019\u00c9\u00e9\u0130\u00b2\u3000", max_size=40)


@given(
    items=st.lists(TEXT, min_size=1, max_size=4),
    documents=st.lists(TEXT, min_size=1, max_size=4),
    length=st.integers(1, 4),
    piece=st.integers(1, 30),
)
def test_the_search_equals_sets_of_words_in_plain_python(items, documents, length, piece):
    runs, wholes = all_runs(items, length), whole_texts(items, length)
    search = Search((runs, wholes))
    stream = "".join(DOCUMENT_BREAK + text for text in documents)
    for start in range(0, len(stream), piece):
        search.feed(stream[start : start + piece])
    search.feed("", last=True)

    in_documents = [naive_words(text) for text in documents]
    for patterns, finder in zip((runs, wholes), search.finders, strict=True):
        for i, first in enumerate(finder.first):
            pattern = tuple(patterns.words(i).split())
            holders = [d for d, w in enumerate(in_documents) if pattern in runs_of(w, len(pattern))]
            assert first == min(holders, default=NOT_FOUND)
    texts = [naive_words(text) for text in items]
    found_runs = sorted((t, *runs.words(i).split()) for i, t in enumerate(runs.texts))
    assert {*found_runs} == {(t, *r) for t, w in enumerate(texts) for r in runs_of(w, length)}
    assert sorted(wholes.texts) == [t for t, w in enumerate(texts) if len(w) >= length]
