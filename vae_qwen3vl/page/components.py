"""What the page consists of, and where it stands. Knows nothing of what a click does."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdf_vqvae.evaluation.page import picture_bytes
from sdf_vqvae.geometry.formats.registry import READABLE
from sdf_vqvae.geometry.mesh import load_mesh
from sdf_vqvae.geometry.picture import render_mesh
from sdf_vqvae.geometry.up import AUTO, UP_AXES
from vae_qwen3vl.page import asset_text
from vae_qwen3vl.page.guide import status_html
from vae_qwen3vl.page.workbench import Workbench

TITLE = "Shapes in words"
NO_SCORES = "<p class='hint'>How near the rebuilt mesh is to the input.</p>"
NO_HITS = "<p class='hint'>The objects of the index that are most like your shape.</p>"
_QUESTIONS = ("Which category does it belong to?", "What is it used for?", "Which parts does it have?")
_UPS = [("By the file, or its shape", ""), ("By its shape alone", AUTO), *((f"{a} is up", a) for a in UP_AXES)]
_THUMBNAIL, _THUMBNAIL_BYTES = 128, 6000


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """The components that steps read or change."""

    upload: Any
    picked: Any
    """The examples; its value is the name of the one that was picked last."""
    organ: Any
    up: Any
    status: Any
    stage: Any
    """The two views."""
    chat: Any
    question: Any
    send: Any
    stop: Any
    offered: Sequence[Any]
    """Buttons with questions."""
    scores: Any
    resolution: Any
    facts: Any
    links: Any
    near: Any
    """Like shapes of the index."""

    @property
    def changing(self) -> list[Any]:
        """What a step may change."""
        return [
            self.organ, self.status, self.stage, self.chat, self.question, self.send, self.stop, self.scores,
            self.facts, self.links, self.near,
        ]  # fmt: skip

    @classmethod
    def lay_out(cls, bench: Workbench, examples: Sequence[Path]) -> Components:
        """Make them, inside of Gradio's blocks."""
        import gradio as gr

        gr.HTML(
            f"<h1>{TITLE}</h1><p>A mesh becomes discrete codes. A language model reads them and says what it sees, "
            "and the same codes become a mesh again.</p>",
            elem_id="heading",
        )
        with gr.Row(elem_id="bench", equal_height=False):
            with gr.Column(elem_id="side", scale=0, min_width=280):
                chosen = cls._choosing(examples)
            with gr.Column(elem_id="main", min_width=280):
                seen: dict[str, Any] = {
                    "status": gr.HTML(
                        status_html("Drop a mesh, or take an example."),
                        js_on_load="element.setAttribute('role', 'status')",
                        elem_id="status",
                    ),
                    "stage": gr.HTML(
                        {},
                        html_template=asset_text("stage.html"),
                        js_on_load=asset_text("stage.js"),
                        elem_id="stage",
                    ),
                }
                with gr.Row(elem_id="below", equal_height=False):
                    with gr.Column(elem_id="words", min_width=280):
                        words = cls._words()
                    with gr.Column(elem_id="numbers", min_width=280):
                        numbers = cls._numbers(bench)
                found = bench.index is not None
                gr.HTML("<h2>Like it in the index</h2>", visible=found)
                seen["near"] = gr.HTML(NO_HITS, visible=found, elem_id="near")
        return cls(**chosen, **seen, **words, **numbers)

    @staticmethod
    def _choosing(examples: Sequence[Path]) -> dict[str, Any]:
        import gradio as gr

        upload = gr.File(
            label="Mesh, or labels of a CT",
            file_count="multiple",
            file_types=[*READABLE, ".nii", ".gz", ".json"],
            height=164,
            elem_id="upload",
        )
        gr.HTML(
            f"<p class='hint'>{', '.join(suffix[1:].upper() for suffix in READABLE)}; or a volume of labels (NIfTI), "
            "with the names of its labels (JSON) beside it.</p>"
        )
        picked = gr.HTML(
            "",
            html_template=asset_text("examples.html"),
            js_on_load=asset_text("examples.js"),
            items=[{"name": path.stem, "picture": _thumbnail(path)} for path in examples],
            visible=bool(examples),
            elem_id="examples",
        )
        organ = gr.Dropdown([], label="Organ", visible=False, elem_id="organ")
        up = gr.Dropdown(_UPS, value="", label="Which way is up", filterable=False, elem_id="up")
        return {"upload": upload, "picked": picked, "organ": organ, "up": up}

    @staticmethod
    def _words() -> dict[str, Any]:
        import gradio as gr

        gr.HTML("<h2>In words</h2>")
        chat = gr.Chatbot(
            label="Chat about the shape",
            show_label=False,
            height=320,
            render_markdown=False,
            feedback_options=None,
            buttons=[],
            placeholder="The description appears here as it is written.",
            elem_id="chat",
        )
        with gr.Row(elem_id="asking"):
            question = gr.Textbox(
                label="Ask about the shape",
                placeholder="Ask about the shape",
                show_label=False,
                container=False,
                max_lines=4,
                max_length=2000,
                elem_id="question",
            )
            send = gr.Button("Ask", variant="primary", scale=0, min_width=84, elem_id="send")
            stop = gr.Button("Stop", scale=0, min_width=84, visible=False, elem_id="stop")
        with gr.Row(elem_id="offered"):
            offered = [gr.Button(text, size="sm", scale=0, min_width=0) for text in _QUESTIONS]
        return {"chat": chat, "question": question, "send": send, "stop": stop, "offered": offered}

    @staticmethod
    def _numbers(bench: Workbench) -> dict[str, Any]:
        import gradio as gr

        side = bench.vae.config.data_resolution
        gr.HTML("<h2>In numbers</h2>")
        scores = gr.HTML(NO_SCORES, elem_id="scores")
        resolution = gr.Slider(
            side // 2,
            side,
            value=side,
            step=max(1, side // 8),
            label="Resolution of the rebuilt mesh",
            info="Voxels along each side of its grid",
            buttons=[],
            elem_id="resolution",
        )
        facts, links = gr.HTML("", elem_id="facts"), gr.HTML("", elem_id="links")
        return {"scores": scores, "resolution": resolution, "facts": facts, "links": links}


def _thumbnail(path: Path) -> str:
    """Return a picture of an example as a URL that holds it. Raises a ValueError where it can't be read."""
    picture = picture_bytes(render_mesh(load_mesh(path), _THUMBNAIL), _THUMBNAIL_BYTES)
    kind = "webp" if picture[:4] == b"RIFF" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
