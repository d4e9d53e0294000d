"""A setting as the words that give it."""

from storage.options.as_words import command, flag_words


def test_a_setting_is_typed_as_its_flag():
    assert flag_words("optimizer.weight_decay", 0.1) == ["--optimizer.weight-decay", "0.1"]
    assert flag_words("guard.box_weights", False) == ["--guard.no-box-weights"]
    assert flag_words("rehearsal", True) == ["--rehearsal"]
    assert flag_words("steps", None) == ["--steps", "None"]
    assert flag_words("sample.prompts", ["a b", ""]) == ["--sample.prompts", "a b", ""]


def test_a_command_is_quoted_for_a_shell():
    assert command(["a.py", "--x", "b c"]) == "a.py --x 'b c'"
