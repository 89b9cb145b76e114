"""The page as an application to be served.

Gradio has the upload, the chat, the queue and a session for each visitor. The two views are a block of ours around
Google's <model-viewer>: Gradio's own view of a mesh can't turn together with another one. Everything is served from
here, and browsers are told to ask nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_qwen3vl.page import asset_text
from vae_qwen3vl.page.components import TITLE, Components
from vae_qwen3vl.page.guide import Guide, Visit
from vae_qwen3vl.page.steps import Steps
from vae_qwen3vl.page.store import FileStore
from vae_qwen3vl.page.views import ERROR_COLORS
from vae_qwen3vl.page.workbench import Workbench

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

_SERVED = {"model-viewer.min.js": "text/javascript", "model-viewer.LICENSE": "text/plain"}
_TOKENIZER = "tokenizer"
"""Takes turns: it uses all cores."""
_WRITERS = 32
"""Answers that are written at a time."""
_KEPT_SECONDS = 3600
"""An upload stays so long on the disk."""
# Gradio needs scripts in the page and makes functions of templates; the views make URLs of what they loaded.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def make_app(bench: Workbench, examples: Sequence[Path] = (), *, max_upload_mb: int = 64) -> FastAPI:
    """Return the whole page as an application.

    Args:
        bench: does the work; whoever gives it starts and closes its engine.
        examples: mesh files that are offered.
        max_upload_mb: a larger upload is refused.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: an example can't be read.
    """
    import gradio as gr
    from fastapi import FastAPI, HTTPException, Response

    store = FileStore()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Headers)

    @app.get("/viewer/{name}", response_class=Response)
    def asset(name: str) -> Any:
        if name not in _SERVED:
            raise HTTPException(404)
        return Response(asset_text(name), media_type=_SERVED[name], headers={"Cache-Control": "max-age=86400"})

    @app.get("/files/{token}/{name}", response_class=Response)
    def file(token: str, name: str) -> Any:
        data = store.get(token, name)
        if data is None:
            raise HTTPException(404, "the file is not kept any more: open the shape again")
        kind = "model/gltf-binary" if name.endswith(".glb") else "application/octet-stream"
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    stops = ", ".join(f"rgb({', '.join(f'{255 * part:.0f}' for part in color)})" for color in ERROR_COLORS)
    return gr.mount_gradio_app(
        app,
        make_blocks(Guide(bench, store), examples),
        path="/",
        max_file_size=max_upload_mb * 2**20,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        theme=_theme(),
        css=f"{asset_text('page.css')}\n.bar {{ background: linear-gradient(to right, {stops}) }}",
        head='<script type="module" src="viewer/model-viewer.min.js"></script>',
    )


def make_blocks(guide: Guide, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Return the components of the page, wired to the steps of a visit."""
    import gradio as gr

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    turns: dict[str, Any] = {"concurrency_id": _TOKENIZER, "concurrency_limit": 1}
    many: dict[str, Any] = {"concurrency_limit": _WRITERS}
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
    ) as blocks:
        visit = gr.State(Visit())
        parts = Components.lay_out(guide.bench, examples)
        steps = Steps(guide, parts, {path.stem: path for path in examples})

        def listen(event: Any, step: Any, *inputs: Any, **more: Any) -> Any:
            wired = event(step, [visit, *inputs], parts.changing, **quiet, **more)
            wired.failure(steps.fail, None, parts.status, **quiet)
            return wired

        opened = [
            listen(parts.upload.upload, steps.open_upload, parts.upload, parts.up),
            listen(parts.picked.select, steps.open_example, parts.picked, parts.up),
            listen(parts.up.select, steps.open_again, parts.up),
            listen(parts.organ.select, steps.choose_organ, parts.organ),
        ]
        written = []
        for event in opened:
            encoded = listen(event.then, steps.encode, **turns)
            written.append(listen(encoded.then, steps.describe, **many))
            listen(encoded.then, steps.find, **many)
            listen(encoded.then, steps.rebuild, parts.resolution, **turns)
        listen(parts.chat.clear, steps.forget)
        listen(parts.resolution.release, steps.rebuild, parts.resolution, trigger_mode="always_last", **turns)
        for event, asked in [
            (parts.send.click, parts.question),
            (parts.question.submit, parts.question),
            *((button.click, button) for button in parts.offered),
        ]:
            written.append(listen(event, steps.ask, asked, **many))
        parts.stop.click(steps.stop, None, [parts.send, parts.stop], cancels=written, **quiet)
    return blocks.queue(max_size=256)


class _Headers:
    """Adds to every answer what a browser may do with it: the page asks no address but its own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, sending)


def _theme() -> gr.Theme:
    """Return the look of Gradio's own components: the system's fonts, quiet colours, in light and dark."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # the theme's own are just too faint to read: white on the colour, and the words inside of fields
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
    )
