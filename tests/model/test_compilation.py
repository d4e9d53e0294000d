"""Which of Inductor's settings torch.compile gets. Nothing is compiled."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model import compilation
from model.compilation import compile_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its compiler


@pytest.fixture
def options(monkeypatch):
    """The options of each call of torch.compile, which checks their names itself."""
    found, plain = [], torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda module, dynamic, options: (
            found.append(options) or plain(module, dynamic=dynamic, options=options)
        ),
    )
    return found


def test_tuning_is_an_option_of_the_module_and_only_if_asked_for(options):
    for tuned in (False, True):
        compile_module(nn.Linear(2, 2), tuned, deterministic=False)
    assert options == [None, {"coordinate_descent_tuning": True}]


def test_determinism_holds_for_the_whole_process(options, monkeypatch):
    config = compilation._inductor()
    monkeypatch.setattr(config, "deterministic", False)
    compile_module(nn.Linear(2, 2), tuned=False, deterministic=False)
    assert not config.deterministic
    compile_module(nn.Linear(2, 2), tuned=False, deterministic=True)
    assert config.deterministic


def test_a_torch_without_these_settings_compiles_with_a_warning(options, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "_inductor", SimpleNamespace)
    compile_module(nn.Linear(2, 2), tuned=True, deterministic=True)
    assert options == [None]
    assert [record.message.rpartition(".")[2] for record in caplog.records] == [
        "deterministic",
        "coordinate_descent_tuning",
    ]
