"""The program `vae-qwen3vl` (`python -m vae_qwen3vl`): every job as a subcommand.

Knows what there is and how to find it. A subcommand's module is imported when it is asked for, so that `--help`
answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

from sdf_vqvae.utils.programs import (
    USER_ERROR,
    Command,
    add_version,
    help_texts,
    main_of,
)

PROGRAM = "vae-qwen3vl"
ABOUT = "A mesh in; discrete codes, words about it, and the same mesh out."
_TOKENIZER, _WORDS = "sdf_vqvae.commands", "vae_qwen3vl.commands"
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "try it": {
        "demo": (_WORDS, "everything on one mesh: codes, words, the mesh rebuilt, a picture"),
        "doctor": (_WORDS, "what this machine can do, what is missing, how to get it"),
        "smoke-test": (_WORDS, "check that the whole path works here"),
    },
    "one object": {
        "encode": (_TOKENIZER, "mesh or field -> codes; a whole dataset -> a folder of codes"),
        "describe": (_WORDS, "words about a mesh, a field or codes; answers to questions"),
        "decode": (_TOKENIZER, "codes -> mesh, in the units of its source"),
        "create": (_WORDS, "words -> a mesh, by a generator of one's own training"),
        "complete": (_WORDS, "a part of a mesh -> a whole one, or variations of it"),
    },
    "use it": {
        "app": (_WORDS, "a page in the browser: drop a mesh, see codes, read and ask, see it rebuilt"),
        "serve": (_WORDS, "an HTTP server in OpenAI's form: chats about meshes, codes, meshes"),
        "index": (_WORDS, "a folder of meshes, fields or codes -> an index of its objects"),
        "search": (_WORDS, "the objects of an index that are like some words, or like a shape"),
        "pack-model": (_WORDS, "all parts of a model -> one folder, as transformers opens it"),
        "export": (_WORDS, "a plain Qwen or Llama checkpoint for vLLM, SGLang or llama.cpp, and requests to it"),
    },
    "make a dataset": {
        "voxelize": (_TOKENIZER, "meshes with captions -> fields"),
        "ct": (_TOKENIZER, "CT scans with labels -> masks, organs, fields"),
        "convert": (_TOKENIZER, "field files of another kind -> those that a tokenizer reads"),
        "make-questions": (_WORDS, "questions and answers about the objects of a pack"),
        "make-plain-text": (_WORDS, "the language model's own answers, for training to keep them"),
    },
    "train": {
        "train": (_WORDS, "shapes with words: projector and adapters of the language model"),
        "train-generator": (_WORDS, "shapes with words: a generator for create and complete"),
        "train-tokenizer": (_TOKENIZER, "meshes or fields: the tokenizer"),
        "checkpoint": (_TOKENIZER, "what a tokenizer's weights hold, and whether they fit"),
    },
    "measure": {
        "eval": (_WORDS, "what a model says about shapes, beside blind controls"),
        "evaluate": (_TOKENIZER, "how well a tokenizer rebuilds shapes"),
    },
}
"""What a person wants to do -> subcommand -> where its module is, and what it does."""
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
_COMPLETION = "completion"
_SHELLS = ("bash", "zsh")
_FOLDERS = {"DIR", "FOLDER", "PACK", "INDEX"}
_FILES = {*_FOLDERS, "FILE", "JSON", "JSONL", "YAML", "PATH", "MESH", "FIELD", "CODES", "DATASET", "DATA", "SHAPES"}
"""What options and arguments that take paths are shown with."""


def command_of(name: str) -> Command:
    """Return the module of a subcommand."""
    return cast(Command, importlib.import_module(f"{COMMANDS[name][0]}.{name.replace('-', '_')}"))


def overview() -> str:
    """Return what `vae-qwen3vl --help` says."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"usage: {PROGRAM} COMMAND ...", "", ABOUT, ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<{width}}{about}" for name, (_, about) in group.items()), ""]
    lines += [
        f"{PROGRAM} COMMAND --help says what a command takes, and has examples.",
        f"{PROGRAM} --version says which versions run, and on what.",
        f"{PROGRAM} {_COMPLETION} {'|'.join(_SHELLS)} writes a script that completes these words:",
        f'  eval "$({PROGRAM} {_COMPLETION} bash)"',
    ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Return one parser of all commands, for completion; it imports every one of them."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=ABOUT)
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, about) in COMMANDS.items():
        command = command_of(name)
        command.add_arguments(commands.add_parser(name, help=about, **help_texts(command)))
    commands.add_parser(_COMPLETION, help="a script that completes commands and options").add_argument(
        "shell", choices=_SHELLS
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in COMMANDS:
        return main_of(command_of(name), f"{PROGRAM} {name}", words[1:])
    if name == _COMPLETION:
        return _complete(words[1:])
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        parser = argparse.ArgumentParser(prog=PROGRAM)
        add_version(parser)
        parser.parse_args(words)
    return _refuse(name)


def _refuse(name: str) -> int:
    """Say what is wrong with a command line that names no command."""
    if not name:
        print(overview(), file=sys.stderr)
        return USER_ERROR
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"{PROGRAM}: error: there is no command {name!r}{hint} ({PROGRAM} --help has them)", file=sys.stderr)
    return USER_ERROR


def _complete(words: Sequence[str]) -> int:
    """Print a script for a shell."""
    import shtab

    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {_COMPLETION}", description="Complete commands and options.")
    parser.add_argument("shell", choices=_SHELLS)
    shell: Any = parser.parse_args(words).shell
    whole = make_parser()
    for command in (part for action in whole._actions for part in _subparsers(action)):
        for action in command._actions:
            shown = set(str(action.metavar).split("|"))
            if shown <= _FILES:
                action.complete = shtab.DIRECTORY if shown <= _FOLDERS else shtab.FILE  # type: ignore[attr-defined]
            elif len(shown) > 1 and action.choices is None:
                action.choices = sorted(shown)
    print(shtab.complete(whole, shell))
    return 0


def _subparsers(action: argparse.Action) -> Iterable[argparse.ArgumentParser]:
    return action.choices.values() if isinstance(action, argparse._SubParsersAction) else ()
