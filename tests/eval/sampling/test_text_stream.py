"""Text decoded token by token: no half characters, nothing of a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import gpt2_tokenizer
from eval.sampling.text_stream import TextStream

TOKENIZER = gpt2_tokenizer()


def streamed(ids, stops=()):
    """The pieces in which a text appears, and its stream."""
    stream = TextStream(TOKENIZER, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50255), max_size=30))
def test_the_pieces_of_any_tokens_join_to_their_decoded_text(ids):
    pieces, stream = streamed(ids)
    assert "".join(pieces) == stream.text == TOKENIZER.decode(ids)


@settings(max_examples=60)
@given(st.text(max_size=20))
def test_no_piece_ends_inside_a_character(text):
    pieces, stream = streamed(TOKENIZER.encode(text))
    assert stream.text == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=100)
@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_its_first_stop_string(text, stops):
    ids = [token for c in text for token in TOKENIZER.encode(c)]
    pieces, stream = streamed(ids, stops)
    found = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    wanted = text
    if found:
        head = text[: found[0]]
        wanted = min((head[: head.find(s)] for s in stops if s in head), key=len)
    assert "".join(pieces) == stream.text == wanted
    assert stream.stopped == bool(found)


def test_text_that_cannot_begin_a_stop_string_is_not_held_back():
    stream = TextStream(TOKENIZER, ["###"])
    assert stream.add(*TOKENIZER.encode(" list")) == " list"
    assert stream.add(*TOKENIZER.encode("#")) == ""
    assert stream.add(*TOKENIZER.encode("a")) == "#a"
