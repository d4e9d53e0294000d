"""More than 65,536 ids: from a text by shards and steps to the proofs of a run."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.browse import BrowseOptions, browse
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.lookup import LookupOptions, look_up
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.verify import VerifyOptions, verify
from eval.text_search.ngrams import all_runs
from eval.text_search.shard_search import search_split
from tests.data_prep.stories import texts_of, write_lines
from tests.launching import together
from tests.runs import (
    KEEP_ALL,
    NANO,
    alone,
    built,
    flags,
    forget_after,
    losses,
    run_to_end,
    tiny_config,
)
from tests.wide_data import wide_text, wide_tokenizer
from train.audit import Arguments, audit
from train.auditing.recorded_run import read_recorded_run
from train.guards.window_by_window import score_windows
from train.reporting.black_box import own_windows

TEXTS = [wide_text(number) for number in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The data set of TEXTS, and a run that two ranks began and one continued from step 2."""
    folder = tmp_path_factory.mktemp("wide")
    wide_tokenizer().save(folder / "tokenizer")
    write_lines(folder / "a.jsonl", TEXTS)
    options = PrepareOptions(workers=1, val_tokens=200, tokenizer=folder / "tokenizer")
    prepare(file_source([str(folder / "a.jsonl")]), folder / "data", options)
    config = tiny_config(folder / "data", folder / "run", model=NANO, steps=4, save=KEEP_ALL)
    config = replace(config, eval=replace(config.eval, every=4))
    done = together(2, *flags(config, "--save.keep", "99", "--reduction", "tree"))
    assert done.returncode == 0, done.stderr[-2000:]
    both = losses(folder / "run")
    forget_after(config.out, 2)
    run_to_end(replace(config, reduction="tree"))
    assert losses(folder / "run") == both  # on one rank, after a resume
    return folder


def test_shards_have_four_bytes_a_token_and_every_reader_gives_the_texts(made):
    data = open_data_set(made / "data")
    content = json.loads((made / "data" / "manifest.json").read_text())
    assert (content["format_version"], content["token_bytes"]) == (3, 4)
    check_data_set(data, "full")
    shard = data.manifest.train.shards[0]
    assert shard.max_id == wide_tokenizer().end_of_text == 66_047
    assert np.load(made / "data" / f"{shard.name}.npy").dtype == np.dtype("<u4")
    assert {*texts_of(data), *texts_of(data, "val")} == set(TEXTS)
    last = texts_of(data)[-1].split()[-1]
    assert browse(BrowseOptions((made / "data",), find=last))[0]["places"]
    text = " ".join(texts_of(data)[1].split(maxsplit=1)[1:])
    patterns = all_runs([text], 8)
    assert set(search_split(data, "train", [patterns], 1)[0].tolist()) == {1}


def test_the_run_is_proven_looked_up_and_repeated(made, caplog):
    caplog.set_level(logging.INFO, "data_prep")
    verify(VerifyOptions((made / "data",), run=made / "run"))
    assert "steps 0 to 3: 4 of 4 agree with the shards" in caplog.text
    parts = look_up(LookupOptions((made / "data",), made / "run", step=3))[0]["documents"]
    assert sum(part["tokens"] for part in parts) == 128
    arguments = Arguments(run=made / "run", segments=2, seed=1)
    found = audit(arguments, read_recorded_run(made / "run"), alone())
    assert found.holds
    assert {segment.how for segment in found.segments} == {"bit for bit"}


def test_a_black_box_would_examine_the_windows_that_the_step_took(made, tmp_path):
    run = built(tiny_config(made / "data", tmp_path / "run", model=NANO, steps=4))
    findings = score_windows(run.model, own_windows(run, 0), torch.float32)
    run.close()
    found = [finding.loss for finding in findings.windows]
    assert np.mean(found) == pytest.approx(losses(made / "run")[0], rel=1e-6)
