"""TensorBoard's pages as it reads them: curves, both losses, HParams and samples."""

import html
import re

import pytest
from markdown import markdown
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from storage.event_files import TensorBoard
from storage.writers.board_pages import curves, samples_page
from tests.curves import scalars

LINE = {
    "tokens": 100,
    "windows": 4,
    "train/loss": 2.5,
    "train/lr": 6e-4,
    "train/grad_norm": 1.25,
    "train/skipped": 0,
    "data/digest": "00ff",
    "data/first_window": 4,
    "guard/loss_z": 0.5,
    "speed/tokens_per_second": 4321.0,
    "speed/seconds_left": 61.0,
    "val/loss": 3.0,
    "val/bits_per_byte": 1.5,
    "hellaswag/acc_norm": 0.25,
    "hellaswag/acc_norm_stderr": 0.01,
}


def record(**changes):
    """The content of config.json, as far as it is shown."""
    config = {
        "seed": 1,
        "init": None,
        "data": "data/x",
        "optimizer": {"name": "muon", "lr": 0.025},
        "schedule": {"hold": 0.3, "warmup_steps": 5},
        "model": {"n_layer": 4},
        "eval": {"tasks": ["hellaswag"]},
    }
    return {"config": config | changes, "run": {"parameters": 1000}}


def test_the_curves_are_losses_first_and_no_bookkeeping():
    assert curves(LINE) == {
        "loss/train": 2.5,
        "loss/val": 3.0,
        "loss/val_bits_per_byte": 1.5,
        "score/hellaswag/acc_norm": 0.25,
        "speed/tokens_per_second": 4321.0,
        "train/grad_norm": 1.25,
        "train/lr": 6e-4,
    }
    assert curves(LINE | {"train/skipped": 1})["train/skipped"] == 1.0


def test_the_best_validation_loss_is_a_curve_also_over_starts_and_nan(tmp_path):
    for first, best in ((0, None), (4, 2.0)):
        board = TensorBoard(tmp_path, None, best)
        for step, loss in enumerate([3.0, float("nan"), 2.5, 2.75], start=first):
            board.write(step, {"val/loss": loss})
        board.close()
    found = [value for _, value in scalars(tmp_path, "loss/val_best")]
    assert found == [3.0, 3.0, 2.5, 2.5, 2.0, 2.0, 2.0, 2.0]


def test_settings_fill_the_hparams_page_and_put_both_losses_on_one_chart(tmp_path):
    for run, seed in (("a", 1), ("b", 2)):
        board = TensorBoard(tmp_path / run, None)
        board.write_settings(0, record(seed=seed))
        board.close()
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    rows = events.PluginRunToTagToContent(metadata.PLUGIN_NAME)
    for run, seed in (("a", 1), ("b", 2)):
        content = rows[run][metadata.SESSION_START_INFO_TAG]
        values = metadata.parse_session_start_info_plugin_data(content).hparams
        assert values["seed"].number_value == seed
        assert values["optimizer.name"].string_value == "muon"
        assert values["parameters"].number_value == 1000
        assert "init" not in values
    [event] = events.Tensors("a", "custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert layout.category[0].chart[0].multiline.tag == ["loss/train$", "loss/val$"]


@pytest.mark.parametrize(
    "text", ["# a\n  *b*  <i> [c](d) &amp; | 1. `e`", "\n\n- a\n", "a_b\\n", "|a|b|\n|-|-|\n|1|2|"]
)
def test_a_sample_is_shown_as_it_is(text):
    page = samples_page([("Hello", text), ("", text)])
    first, second = page.split("\n\n---\n\n")
    assert first.startswith("**Hello**")
    assert second.startswith("*new document:*\n")
    shown = markdown(first.removeprefix("**Hello**"), extensions=["fenced_code", "tables"])
    words = html.unescape(re.sub("<[^>]*>", "", shown)).split()
    assert words == text.split()
    assert not re.search("<(h1|em|ul|ol|table|code|a|i)>", shown)
