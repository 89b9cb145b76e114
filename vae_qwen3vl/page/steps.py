"""What a click does: steps that lead a visit on, and yield which components change, and how."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.errors import is_out_of_memory
from sdf_vqvae.utils.extras import said_of
from vae_qwen3vl.page.components import NO_HITS, NO_SCORES, Components
from vae_qwen3vl.page.guide import (
    Guide,
    Visit,
    facts_html,
    hits_html,
    links_html,
    reason_of,
    scores_html,
    status_html,
)

logger = logging.getLogger(__name__)

Changes = dict[Any, Any]
"""Component -> what it shows now."""
Step = Callable[..., Iterator[Changes]]


def _told(step: Step) -> Step:
    """Say in the status line what a visitor can mend; anything else is a defect and goes on.

    A step that changes nothing says so: of one that yields nothing Gradio empties all components.
    """

    @functools.wraps(step)
    def wrapped(self: Steps, *values: Any) -> Iterator[Changes]:
        import gradio as gr

        changes = None
        try:
            for changes in step(self, *values):
                yield changes
            if changes is None:
                yield gr.skip()
        except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
            words = _words_of(error)
            if not words:
                raise
            logger.info("told a visitor: %s", words)
            yield {self.parts.status: status_html(words, "error"), **self._idle()}

    return wrapped


def _words_of(error: Exception) -> str:
    """Return what to tell a visitor of an error; nothing where it is a defect."""
    if is_out_of_memory(error):
        return "There is not enough memory for this shape here."
    if isinstance(error, ImportError):
        return said_of(error)
    if not isinstance(error, RuntimeError):
        return reason_of(error)
    from vae_qwen3vl.generation.engine import ClosedError, QueueFullError

    if isinstance(error, QueueFullError):
        return "Too many people ask at once: try again in a moment."
    return "The page is being closed." if isinstance(error, ClosedError) else ""


class Steps:
    """The steps of a visit, as generators of changes.

    Args:
        guide: leads visits.
        parts: the components.
        examples: name -> mesh file.
    """

    def __init__(self, guide: Guide, parts: Components, examples: Mapping[str, Path]) -> None:
        self.guide, self.parts, self.examples = guide, parts, examples

    @_told
    def open_upload(self, visit: Visit, files: Sequence[str] | None, up: str) -> Iterator[Changes]:
        """Open what was uploaded."""
        yield from self._open(visit, [Path(file) for file in files or ()], up)

    @_told
    def open_example(self, visit: Visit, name: str, up: str) -> Iterator[Changes]:
        """Open an example."""
        if name in self.examples:
            yield from self._open(visit, [self.examples[name]], up)

    @_told
    def open_again(self, visit: Visit, up: str) -> Iterator[Changes]:
        """Open the visit's mesh with another axis up; scans say themselves how they stand."""
        if visit.scan is None:
            yield from self._open(visit, visit.paths, up)

    @_told
    def choose_organ(self, visit: Visit, organ: str | None) -> Iterator[Changes]:
        """Take an organ of the visit's scan."""
        if visit.scan is None or not organ:
            return
        yield self._emptied(f"Finding the surface of {organ} …")
        self.guide.choose(visit, organ)
        yield self._taken(visit)

    @_told
    def encode(self, visit: Visit) -> Iterator[Changes]:
        """Encode what was opened."""
        parts = self.parts
        if visit.source is None or visit.shape is not None:
            return
        self.guide.encode(visit)
        if visit.shape is not None:
            said = "The language model reads the codes; the mesh is rebuilt next …"
            yield {
                parts.stage: visit.views,
                parts.facts: facts_html(visit.shape, None),
                parts.status: status_html(said, "busy"),
            }

    @_told
    def find(self, visit: Visit) -> Iterator[Changes]:
        """Look for like shapes in the index, where there is one."""
        shape = visit.shape
        if shape is None or self.guide.bench.index is None:
            return
        found = hits_html(self.guide.bench.similar(shape))
        if visit.shape is shape:
            yield {self.parts.near: found}

    @_told
    def describe(self, visit: Visit) -> Iterator[Changes]:
        """Ask the first question, once."""
        if visit.shape is not None and not visit.turns:
            yield from self._answer(visit, self.guide.bench.prompt)

    @_told
    def ask(self, visit: Visit, question: str) -> Iterator[Changes]:
        """Ask a question of the visitor's own."""
        if visit.shape is None:
            raise ValueError("there is no shape to ask about yet: drop a mesh, or take an example")
        if visit.is_answered:
            yield {self.parts.question: ""}
            yield from self._answer(visit, question.strip())

    @_told
    def rebuild(self, visit: Visit, side: float) -> Iterator[Changes]:
        """Rebuild the visit's object on a grid of so many voxels a side."""
        parts, shape = self.parts, visit.shape
        if shape is None:
            return
        yield {parts.status: status_html(f"Rebuilding the mesh on a grid of {side:.0f}³ …", "busy")}
        rebuilt = self.guide.rebuild(visit, int(side))
        if rebuilt is not None:
            done = f"{shape.source.name}: {shape.codes.count:,} codes, and the mesh rebuilt from them."
            yield {
                parts.stage: visit.views,
                parts.scores: scores_html(rebuilt, shape.source),
                parts.facts: facts_html(shape, rebuilt),
                parts.links: links_html(self.guide.links(visit, rebuilt)),
                parts.status: status_html(done),
            }

    @_told
    def forget(self, visit: Visit) -> Iterator[Changes]:
        """Begin the chat anew."""
        visit.turns = []
        yield self._idle()

    def stop(self) -> list[Any]:
        """Show that nothing is written any more."""
        return list(self._idle().values())

    def fail(self) -> str:
        """Say that a step broke."""
        return status_html("Something went wrong here; what it was stands in the program's log.", "error")

    def _open(self, visit: Visit, paths: Sequence[Path], up: str) -> Iterator[Changes]:
        import gradio as gr

        if not paths:
            return
        parts, names = self.parts, ", ".join(path.name for path in paths)
        yield self._emptied(f"Reading {names} …") | {parts.organ: gr.Dropdown(visible=False)}
        self.guide.open(visit, paths, up or None)
        if visit.scan is None:
            yield self._taken(visit)
            return
        organs = list(visit.scan.organs)
        count = "one label" if len(organs) == 1 else f"{len(organs)} labels"
        yield {
            parts.organ: gr.Dropdown(choices=organs, value=None, visible=True),
            parts.status: status_html(f"A scan with {count}: choose an organ."),
        }

    def _emptied(self, said: str) -> Changes:
        parts = self.parts
        empty = {
            parts.stage: {},
            parts.chat: [],
            parts.scores: NO_SCORES,
            parts.facts: "",
            parts.links: "",
            parts.near: NO_HITS,
        }
        return {parts.status: status_html(said, "busy"), **empty, **self._idle()}

    def _taken(self, visit: Visit) -> Changes:
        said = status_html("Finding its voxels and codes …", "busy")
        return {self.parts.stage: visit.views, self.parts.status: said}

    def _answer(self, visit: Visit, question: str) -> Iterator[Changes]:
        shape, turns = visit.shape, list(visit.turns)
        yield {self.parts.chat: _messages(turns, question, "…"), **self._idle(writing=True)}
        for written in self.guide.ask(visit, question):
            if visit.shape is not shape:
                return
            yield {self.parts.chat: _messages(turns, question, written)}
        yield self._idle()

    def _idle(self, *, writing: bool = False) -> Changes:
        import gradio as gr

        return {self.parts.send: gr.Button(visible=not writing), self.parts.stop: gr.Button(visible=writing)}


def _messages(turns: Sequence[tuple[str, str]], question: str, answer: str) -> list[dict[str, str]]:
    """Return a chat as Gradio shows it."""
    return [
        {"role": role, "content": text}
        for turn in [*turns, (question, answer)]
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
