"""The directive ``command-line``: what ``cbam-edu --help`` and each command's help say."""

import argparse
from functools import partial

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from cbam_edu.cli import build_parser

COLUMNS = 80  # whatever the width of the terminal in which the book is built


def parsers() -> list[argparse.ArgumentParser]:
    """Return the parser of the command line and those of its commands, in order."""
    main = build_parser()
    commands = [
        command
        for action in main._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]
    return [main, *commands]


def help_of(parser: argparse.ArgumentParser) -> str:
    """Return what `parser` prints for ``--help``."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=COLUMNS)
    return parser.format_help()


class CommandLine(SphinxDirective):
    """One block a command, as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        """Return the blocks."""
        return [
            nodes.literal_block("", f"$ {parser.prog} --help\n{help_of(parser)}", language="text")
            for parser in parsers()
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
