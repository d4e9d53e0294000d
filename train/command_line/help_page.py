"""The help of a run's command line: its first page, and what stands above all options."""

from storage.options.short_help import short_help
from train.command_line.computed_presets import COMPUTED_PRESETS
from train.config import Config
from train.optimizers.registry import OPTIMIZERS
from train.presets import PRESETS

_FIRST = "the first word; PRESET --help shows its settings; none: gpt2"


def first_page(config: Config, preset: str, prog: str, description: str, known: bool) -> str:
    """The presets and the usual settings. `known`: whether the settings of the preset are known."""
    presets = [(name, _about(entry)) for name, entry in PRESETS.items()]
    computed = [(name, _first_line(make.__doc__)) for name, make in COMPUTED_PRESETS.items()]
    return short_help(
        config,
        f"{prog} [PRESET] [options]",
        description,
        [(f"presets ({_FIRST})", presets + computed)],
        _own_flags(),
        defaults=f"those of {preset}" if known else "",
    )


def introduction(description: str) -> str:
    """What stands above the list of all options."""
    names = ", ".join((*PRESETS, *COMPUTED_PRESETS))
    own = " ".join(f"{flag}: {text[:1].lower()}{text[1:]}" for flag, text in _own_flags())
    return (
        f"{description} First argument: a preset (default: gpt2), one of {names}; without one, the "
        f"settings of a run in --out are the defaults. {own}"
    )


def _own_flags() -> list[tuple[str, str]]:
    """The options that are no fields of the configuration."""
    return [
        ("--continue RUN", "Continue the run in this folder; flags change it."),
        ("--config FILE", "Settings from a .toml or .json file."),
        ("--optimizer NAME", f"Another optimizer, one of {', '.join(OPTIMIZERS)}."),
    ]


def _about(preset: Config) -> str:
    """What a preset is, in a line."""
    shape = preset.model
    family = "GPT-2" if shape.position == "learned" else "modern"
    length = "one epoch" if preset.steps is None else f"{preset.steps:,} steps"
    return f"{family}, {shape.n_layer} layers of {shape.n_embd}: {length} of {preset.data_text}"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]
