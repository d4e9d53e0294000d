"""A published model and the files of a tokenizer, for all tests of the format."""

import pytest

from data_prep.tokenizer import gpt2_tokenizer
from model.hf_format.tokenizer_files import write_hf_tokenizer
from storage.atomic import write_json
from storage.byte_pairs import GPT2_PATTERN, BytePairs
from tests.model.hf_format.models import published


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_hf_tokenizer(folder, BytePairs("gpt2", GPT2_PATTERN, gpt2_tokenizer().ranks), 48)
    write_json(folder / "config.json", {"model_type": "gpt2"})
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "theirs"
    published(folder)
    return folder
