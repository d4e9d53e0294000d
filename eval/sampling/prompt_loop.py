"""Prompts typed at a terminal, one a line; each is continued at once, token by token.

A line that begins with a colon changes a setting. Ctrl-C stops a text, Ctrl-D the loop.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

from data_prep.tokenizer import without_surrogates
from eval.sampling.decoding import PartialSample
from eval.sampling.kept_cache import TextWriter
from eval.sampling.next_token import GenerateOptions
from eval.sampling.printing import SEPARATOR, write
from eval.subject import Subject
from model.estimates.parameters import count_parameters
from storage.option_values import finite_number, whole_number

_READ: dict[str, Callable[[str], object]] = {
    "temperature": finite_number,
    "top_k": whole_number,
    "top_p": finite_number,
    "repetition_penalty": finite_number,
    "max_tokens": whole_number,
    "seed": whole_number,
    "stop": lambda text: (text.replace("\\n", "\n").replace("\\t", "\t"),) if text else (),
}
_HELP = r"""A line is the beginning of a text, which the model continues.
An empty line continues the last text; after its end, or before the first, it starts a new one.
  :add TEXT           put TEXT behind the last text and continue it (also spaces count)
  :temperature 0.7    and :top-k 50, :top-p 0.9, :repetition-penalty 1.2, :max-tokens 200
  :seed 1             begin again with these random numbers
  :stop \n            end each text before this string (\n is a line break); :stop alone: none
  :settings           show all of them
  :quit               or Ctrl-D: end. Ctrl-C stops a text; twice at a prompt, it ends, too.
A prompt that begins with a colon: put a space before it."""

log = logging.getLogger(__name__)


class PromptLoop:
    """Reads lines until there are no more, and writes the texts that continue them."""

    def __init__(
        self, subject: Subject, options: GenerateOptions, read: Callable[[str], str] = input
    ) -> None:
        """`read` shows its argument and returns a line. Raises: EOFError after the last."""
        self.options = options
        self._subject = subject
        self._read = read
        self._writer = TextWriter(subject.model, options)
        self._ids: list[int] = []
        """The tokens of the last text, with its prompt; none before the first, and after its end"""
        self._interrupted = False
        """Whether Ctrl-C was typed since the present text began."""
        self._number = 0
        """Of the next text since the seed was set, as the prompts of a file are numbered."""

    def run(self) -> None:
        """Until Ctrl-D, `:quit`, or Ctrl-C twice at the prompt."""
        parameters = count_parameters(self._subject.model.config, padded=False).total
        log.info(
            "%s parameters. Type the beginning of a text; :help lists what else. Ctrl-D ends.",
            f"{parameters:,}",
        )
        interrupted = False
        while True:
            try:
                line = without_surrogates(self._read("> "))
            except KeyboardInterrupt:
                write("\n")
                if interrupted:
                    return
                log.info("Ctrl-C again, or Ctrl-D, ends")
                interrupted = True
                continue
            except EOFError:
                write("\n")
                return
            except UnicodeDecodeError:
                log.info("this line is not UTF-8; type it again")
                continue
            interrupted = False
            if line.strip() in (":quit", ":exit", ":q"):
                return
            with suppress(KeyboardInterrupt), self._noting_interrupts():
                self._answer(line)

    @contextmanager
    def _noting_interrupts(self) -> Iterator[None]:
        """Inside the block Ctrl-C is noted, and ends the text after its next token."""
        # Raised at any place, KeyboardInterrupt can be lost where a library swallows it, as in an
        # import that it tries. A second one is raised at once.
        self._interrupted = False

        def note(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _show(self, new: str) -> None:
        """Write what a token adds. Raises: KeyboardInterrupt after Ctrl-C."""
        write(new)
        if self._interrupted:
            raise KeyboardInterrupt

    def _answer(self, line: str) -> None:
        """Do what a line asks for; a mistake is told and changes nothing."""
        try:
            if line.startswith(":add "):
                self._continue(line.removeprefix(":add "))
            elif line.startswith(":"):
                self._command(line)
            elif line:
                self._begin(line)
            else:
                self._continue("")
        except ValueError as error:
            log.error("%s", error)

    def _command(self, line: str) -> None:
        word, _, value = line[1:].partition(" ")
        name = word.replace("-", "_")
        if name == "help":
            log.info("%s", _HELP)
        elif name == "settings":
            log.info("%s", "\n".join(f":{_typed(n)} {self._shown(n)}" for n in _READ))
        elif name in _READ:
            if value.strip() or name == "stop":
                self.options = self._changed(name, value.strip())
                self._number = 0 if name == "seed" else self._number
            log.info(":%s %s", _typed(name), self._shown(name))
        else:
            raise ValueError(
                f":{word} is no setting; :help lists all (a prompt that begins with a colon: put "
                "a space before it)"
            )

    def _changed(self, name: str, value: str) -> GenerateOptions:
        """The settings with another value of one. Raises: ValueError if it is none."""
        try:
            read = _READ[name](value)
        except ValueError:
            raise ValueError(
                f":{_typed(name)} {value} is no number; such as :{_typed(name)} {self._shown(name)}"
            ) from None
        return replace(self.options, **{name: read})

    def _shown(self, name: str) -> str:
        value = getattr(self.options, name)
        return " ".join(map(repr, value)) or "(none)" if isinstance(value, tuple) else str(value)

    def _begin(self, prompt: str) -> None:
        """A new text."""
        self._write(self._subject.tokenizer.encode(prompt), prompt)

    def _continue(self, more: str) -> None:
        """The last text with `more` behind it."""
        self._write(self._ids + self._subject.tokenizer.encode(more), more)

    def _write(self, prompt: list[int], shown: str) -> None:
        """Continue the tokens of a prompt, and remember them with what follows."""
        tokenizer, options = self._subject.tokenizer, self.options
        begin = prompt or [tokenizer.end_of_text]  # which starts a document
        number, self._number = self._number, self._number + 1
        for i in range(options.samples):
            write((SEPARATOR if i else "") + shown)
            sample = PartialSample(begin, (number, i), tokenizer, options)
            try:
                self._writer.finish(sample, options, lambda _, new: self._show(new))
            finally:
                write("\n")
                self._ids = self._rest_of(sample, begin)

    def _rest_of(self, sample: PartialSample, begin: list[int]) -> list[int]:
        """What an empty line continues after this sample, finished or not."""
        if sample.finish_reason == "end_of_text":
            log.info("(the end of the text)")
            return []
        if sample.finish_reason == "stop":
            return begin + self._subject.tokenizer.encode(sample.to_sample().text)
        return sample.ids


def _typed(name: str) -> str:
    return name.replace("_", "-")
