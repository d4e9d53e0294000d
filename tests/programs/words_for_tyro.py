"""Prints, as JSON, the words that reach tyro for each command line of standard input.

A command line is a list of a script's path and its words. Nothing else of the script is run.
"""

import json
import runpy
import sys

import tyro


class Reached(BaseException):
    """tyro would read these words now."""


def record(*_, args=None, **__):
    raise Reached(sys.argv[1:] if args is None else args)


def words_for_tyro(command):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Reached as reached:
        return reached.args[0]
    raise AssertionError(f"{command[0]} ended without reading its command line")


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    tyro.cli = record
    sys.stdout.write(json.dumps([words_for_tyro(command) for command in commands]))
