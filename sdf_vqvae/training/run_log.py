"""What a training run writes for people: `log.jsonl`, TensorBoard's files and pictures."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.utils.files import atomic_path, write_json_lines
from sdf_vqvae.utils.strict_files import parse_json

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"


class RunLog:
    """The logs of a run folder; a run that goes on continues them, without the records after its checkpoint.

    Args:
        folder: the run folder.
        step: where the run goes on.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        earlier = read_log(folder / LOG_NAME) if step else []
        write_json_lines(folder / LOG_NAME, (record for record in earlier if record["step"] <= step))
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            logger.info("no TensorBoard files are written: pip install 'vae-qwen3vl[training]' brings it")
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Append a record of a kind (`train`, `held_out`) and return it."""
        record = {"kind": kind, "step": step, **{k: round(float(v), 6) for k, v in values.items()}}
        self.records.append(record)
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()
        return record

    def picture(self, step: int, rows: Sequence[Sequence[Image.Image]]) -> None:
        """Write `pictures/step_0001000.png`: rows of pictures of one size."""
        from PIL import Image

        width, height = rows[0][0].size
        sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                sheet.paste(image, (x * width, y * height))
        (self.folder / "pictures").mkdir(exist_ok=True)
        with atomic_path(self.folder / "pictures" / f"step_{step:07d}.png") as temporary:
            sheet.save(temporary, format="PNG")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a `log.jsonl`; a last line that was cut off is left out."""
    records = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        record = parse_json(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
