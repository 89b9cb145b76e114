"""What clients send, in the form of OpenAI's interface. What is not known, or not supported, is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sdf_vqvae.geometry.up import AUTO, UP_AXES

_UP = f"axis of the mesh that points up: {', '.join(UP_AXES)} or {AUTO}; by default as its format or its shape says"
Up = Annotated[Literal["x", "y", "z", "-x", "-y", "-z", "auto"] | None, Field(description=_UP)]


def _whole(text: str) -> str:
    """Refuse half a character, which JSON can hold and nothing after it."""
    text.encode()  # a UnicodeEncodeError is a ValueError
    return text


Words = Annotated[str, AfterValidator(_whole)]


class Strict(BaseModel):
    """What has no other fields than these."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: Words


class MeshAddress(Strict):
    """Where a mesh is."""

    url: str = Field(description="data:model/gltf-binary;base64,... or the like")
    up: Up = None


class MeshPart(Strict):
    """A mesh, or codes of one."""

    type: Literal["mesh_url"]
    mesh_url: MeshAddress


class UploadedFile(Strict):
    """Which upload it is."""

    file_id: str = Field(max_length=64)
    up: Up = None


class FilePart(Strict):
    """A mesh, or codes of one, that was uploaded to /v1/files."""

    type: Literal["file"]
    file: UploadedFile


ShapePart = Annotated[MeshPart | FilePart, Field(discriminator="type")]
Part = Annotated[TextPart | MeshPart | FilePart, Field(discriminator="type")]


class ChatTurn(Strict):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Words | list[Part]
    name: str | None = None
    refusal: None = None


class StreamOptions(Strict):
    """What a stream brings besides words."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(Strict):
    """The only format of answers."""

    type: Literal["text"]


class ChatRequest(Strict):
    """A chat about shapes."""

    model: str
    messages: list[ChatTurn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0 (the default) takes the likeliest word")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Words | Annotated[list[Words], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    candidates: int | None = Field(
        None,
        ge=0,
        description="answers drawn beside the likeliest one (at `temperature`), of which the best is given",
    )
    user: str | None = Field(None, description="not looked at")
    metadata: dict[str, str] | None = Field(None, description="not kept")
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    response_format: TextFormat | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the words that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(word for word in stops if word)

    def conversation(self) -> tuple[list[dict[str, Any]], list[MeshPart | FilePart]]:
        """Return the messages as `Processor3D` takes them, and the shapes in the order of their places."""
        messages, shapes = [], []
        for turn in self.messages:
            parts: list[dict[str, Any]] = []
            for part in [TextPart(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content:
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                else:
                    parts.append({"type": "3d"})
                    shapes.append(part)
            messages.append({"role": "system" if turn.role == "developer" else turn.role, "content": parts})
        return messages, shapes


class EncodeRequest(Strict):
    """A mesh that becomes codes."""

    input: ShapePart


class DecodeRequest(Strict):
    """Codes, or a mesh by way of its codes, that become a mesh."""

    input: ShapePart
    format: Literal["glb", "obj", "ply", "stl", "off"] = "glb"
    voxel_resolution: int | None = Field(None, ge=8, le=1024, description="side of the grid of the surface")


class SearchRequest(Strict):
    """Words or a shape, whose nearest objects are wanted."""

    query: Words | None = Field(None, min_length=1, max_length=1000, description="words, in English")
    input: ShapePart | None = None
    k: int = Field(10, ge=1, le=100)
