"""One case of a CT dataset to its folder of outputs, whole or not at all.

`processed/<case>/` appears under its name only when everything in it is written. Its `info.json` holds all that the
tables say about the case, so the tables can be made again from the folders at any time.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdf_vqvae.data.field_file import field_file_name
from sdf_vqvae.geometry.volume import label_surface
from sdf_vqvae.preprocessing.ct.cases import Case, load_case
from sdf_vqvae.preprocessing.ct.layouts import CaseFiles, nifti_files
from sdf_vqvae.preprocessing.ct.masks import Label, ids_of, label_text
from sdf_vqvae.preprocessing.ct.names import chosen_labels
from sdf_vqvae.preprocessing.ct.organs import Organ, field_of, make_organ, organ_of
from sdf_vqvae.preprocessing.ct.settings import Settings
from sdf_vqvae.preprocessing.ct.windows import (
    AIR,
    Window,
    grid_side,
    why_not_hounsfield,
    window_for,
    windows_for,
    write_padded,
)
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import atomic_folder, write_json, write_text
from sdf_vqvae.utils.strict_files import parse_json

PROCESSED, ORGANS, LOGS = "processed", "organs", "debug_logs"
_INFO = "info.json"


@dataclass(kw_only=True)
class _Log:
    """Lines of a case's log."""

    start: float = field(default_factory=time.perf_counter)
    lines: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> None:
        self.lines.append(f"{time.perf_counter() - self.start:8.2f} s  {text}")


def make_case_worker(settings: Settings, device: str) -> Callable[[CaseFiles], dict[str, Any]]:
    """Return what processes a case (for `run_jobs`)."""
    return functools.partial(process_case, settings=settings, device=device)


def case_folder(settings: Settings, case_id: str) -> Path:
    """Return where a case's outputs lie."""
    return settings.output / PROCESSED / case_id


def finished(files: CaseFiles, settings: Settings) -> dict[str, Any] | None:
    """Return what an earlier run with the same settings and inputs recorded; None where there is no such case."""
    info = read_info(case_folder(settings, files.case_id))
    if info is None or info.get("settings") != settings.fingerprint() or info.get("inputs") != _inputs(files):
        return None
    for organ in info["organs"]:
        made = settings.compute_sdf and not organ["error"]
        name = field_file_name(organ["sha256"], settings.organ.resolution)
        if made and not (settings.output / ORGANS / name).is_file():
            return None
    return info


def read_info(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished case, None where the folder has none that is whole."""
    try:
        info = parse_json((folder / _INFO).read_bytes())
        good = isinstance(info, dict) and isinstance(info["row"], dict)
        good = good and all(isinstance(row, dict) for row in info["organ_rows"])
        good = good and all(isinstance(o["sha256"], str) and isinstance(o["error"], str) for o in info["organs"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return info if good else None


def process_case(files: CaseFiles, settings: Settings, device: str) -> dict[str, Any]:
    """Make all outputs of a case and return its record (`info.json`).

    Raises:
        ValueError: the case can't be read, is too large, or lacks what the settings need.
        OSError: its folder can't be written.
    """
    log = _Log()
    case = load_case(files, with_image=not settings.use_mask)
    if settings.use_mask and case.masks is None:
        raise ValueError("the case has no mask: leave --use_mask out")
    log(f"read: shape {list(case.shape)}, spacing {_numbers(case.spacing)} mm")
    if not case.spacing_known:
        log("no spacing is recorded in this layout: voxels of 1 mm are assumed (--spacing sets others)")
    for note in case.notes:
        log(note)
    side = grid_side(case.shape, settings.default_resolution)
    target = case_folder(settings, files.case_id)
    before = read_info(target)
    with atomic_folder(target) as folder:
        wanted = _wanted_labels(case, settings)
        organs = _make_organs(case, files.case_id, wanted, settings, folder, side, device, log)
        windows, reason = ([], "") if settings.use_mask else _make_windows(
            case, organs, settings, folder, side, device, log
        )  # fmt: skip
        info = _record(files, case, settings, side, organs, windows, reason)
        info["row"]["file_size_mb"] = f"{_disk_bytes(folder) / 2**20:.3f}"
        info["row"]["processing_time_sec"] = f"{time.perf_counter() - log.start:.3f}"
        write_json(folder / _INFO, info, indent=1, ensure_ascii=False)
    _remove_old_fields(before, info, settings)
    log("done")
    write_text(settings.output / LOGS / f"{files.case_id}.log", "\n".join(log.lines) + "\n")
    return info


def _wanted_labels(case: Case, settings: Settings) -> list[Label]:
    """Return the labels of a case that are to be made, in the order of their ids."""
    if case.masks is None:
        return []
    present = case.masks.labels(case.names)
    if not settings.organ_names:
        return present
    chosen, _ = chosen_labels(settings.organ_names, {label: case.names.of(label) for label in present})
    return sorted(chosen, key=ids_of)


def _absent(case: Case) -> list[str]:
    """Return the names of labels without a voxel."""
    if case.masks is None:
        return []
    present = set(case.masks.labels(case.names))
    return [f"{name} ({label_text(label)})" for label, name in case.names.named.items() if label not in present]


def _make_organs(
    case: Case,
    case_id: str,
    labels: Sequence[Label],
    settings: Settings,
    folder: Path,
    side: int,
    device: str,
    log: _Log,
) -> list[Organ]:
    """Write masks, fields and meshes of the labels."""
    assert case.masks is not None or not labels
    organs = []
    for label in labels:
        organ = organ_of(case, case_id, label)
        mask_file, field_link = _organ_paths(folder, organ, settings.use_mask)
        if settings.compute_sdf:
            fields = settings.output / ORGANS
            organ = make_organ(
                case, organ, settings.organ, field_folder=fields, mesh_folder=folder / "meshes", device=device
            )
            if not organ.error:
                _link(fields / field_file_name(organ.sha256, settings.organ.resolution), field_link)
        if organ.error or not (settings.compute_sdf and settings.replace_npy):
            corner, crop = case.masks.crop(label)  # type: ignore[union-attr]
            write_padded(mask_file, side, crop, dtype=np.uint8, corner=corner)
        found = f", {organ.num_points} voxels in {organ.seconds:.2f} s" if organ.num_points else ""
        found = f"; {organ.error}" if organ.error else found
        log(f"label {label_text(label)} {organ.name!r}: {organ.volume_ml:.3f} ml{found}")
        organs.append(organ)
    absent = _absent(case)
    if absent:
        log(f"no voxel of {', '.join(absent)}")
    if labels:
        about = _organ_labels(case, organs, case_id, side)
        write_json(folder / _labels_file(settings), about, indent=1, ensure_ascii=False)
    return organs


def _organ_paths(folder: Path, organ: Organ, use_mask: bool) -> tuple[Path, Path]:
    """Return where an organ's dense mask and its field lie in the folder of the case."""
    if use_mask:
        label = label_text(organ.label)
        return folder / "masks" / f"{label}_binary.npy", folder / "masks" / f"{label}_sdf.npz"
    own = folder / "organs" / organ.file_name
    return own / "mask.npy", own / "sdf.npz"


def _labels_file(settings: Settings) -> str:
    return "masks/organ_labels.json" if settings.use_mask else "organs/organ_labels.json"


def _organ_labels(case: Case, organs: Sequence[Organ], case_id: str, side: int) -> dict[str, Any]:
    return {
        "label_to_name": {label_text(o.label): o.name for o in organs},
        "label_to_window": {label_text(o.label): window_for(o.name).name for o in organs},
        "label_to_volume_ml": {label_text(o.label): o.volume_ml for o in organs},
        "dataset_name": case_id,
        "modality": "CT",
        "resolution": side,
        "num_organs": len(organs),
        "description": "Masks of the organs of one CT scan, by label.",
        "spacing_mm": list(case.spacing),
        "affine": case.affine.tolist(),
    }


def _make_windows(
    case: Case, organs: Sequence[Organ], settings: Settings, folder: Path, side: int, device: str, log: _Log
) -> tuple[list[Window], str]:
    """Write the image and its windows; return those made and why there are none."""
    if case.image is None:
        return [], "the case has no image"
    reason = why_not_hounsfield(case.image)
    if reason and settings.assume_hu and "not finite" not in reason:
        log(f"taken as Hounsfield units as asked for, although {reason}")
        reason = ""
    whole = case.image.dtype.kind in "biu" and case.image.min() >= -(2**15) and case.image.max() < 2**15
    write_padded(
        folder / f"ct_original_{side}.npy",
        side,
        case.image,
        dtype=np.int16 if whole else np.float32,
        background=float(np.nanmin(case.image)) if reason else AIR,
    )
    if reason:
        log(f"no windows: {reason}")
        return [], reason
    windows = windows_for(o.name for o in organs)
    for window in windows:
        _make_window(case, window, settings, folder / "windows", side, device, log)
    return windows, ""


def _make_window(
    case: Case, window: Window, settings: Settings, folder: Path, side: int, device: str, log: _Log
) -> None:
    mask = window.mask(np.asarray(case.image))
    with_field = settings.compute_sdf and bool(mask.any())
    if with_field:
        try:
            surface = label_surface(mask, case.affine)
            made = field_of(surface, settings.organ, device)
            made.save(folder / f"{window.file_stem}.npz")
        except (ValueError, MemoryError) as error:
            log(f"window {window.name}: no field: {brief(error)}")
            with_field = False
    if not (with_field and settings.replace_npy):
        write_padded(folder / f"{window.file_stem}.npy", side, mask, dtype=np.uint8)
    log(f"window {window.name}: {int(mask.sum())} voxels")


def _record(
    files: CaseFiles,
    case: Case,
    settings: Settings,
    side: int,
    organs: Sequence[Organ],
    windows: Sequence[Window],
    windows_error: str,
) -> dict[str, Any]:
    """Return what `info.json` says."""
    base = f"{PROCESSED}/{files.case_id}"
    has_image = not settings.use_mask and case.image is not None
    values: dict[str, Any] = {
        "case_id": files.case_id,
        "original_shape": ",".join(str(n) for n in case.shape),
        "adapted_shape": ",".join([str(side)] * 3),
        "resolution": side,
        "has_segmentation": case.masks is not None,
        "organs_present": _json([o.name for o in organs]),
        "windows_processed": _json([w.name for w in windows]),
        "use_mask": settings.use_mask,
        "ct_path": f"{base}/ct_original_{side}.npy" if has_image else "",
        "masks_path": f"{base}/{'masks' if settings.use_mask else 'organs'}" if organs else "",
        "organ_labels_file": f"{base}/{_labels_file(settings)}" if organs else "",
        "source_format": files.source,
        "spacing": _numbers(case.spacing),
        "spacing_known": case.spacing_known,
        "orientation_known": case.orientation_known,
        "hounsfield": has_image and not windows_error,
        "windows_error": windows_error,
        "organs_absent": _json(_absent(case)),
        "organs_failed": _json([o.name for o in organs if o.error]),
        "notes": _json(list(case.notes)),
    }
    rows = (
        [o.row(files.case_id, settings.organ.resolution, settings.organ.up) for o in organs]
        if settings.compute_sdf
        else []
    )
    return {
        "settings": settings.fingerprint(),
        "inputs": _inputs(files),
        "affine": case.affine.tolist(),
        "organs": [asdict(o) for o in organs],
        "organ_rows": rows,
        "row": {key: str(value) for key, value in values.items()},
    }


def _json(texts: Sequence[str]) -> str:
    return json.dumps(texts, ensure_ascii=False)


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def _inputs(files: CaseFiles) -> dict[str, Any]:
    """Return what tells whether a case's files have changed."""
    found: dict[str, Any] = {"spacing": None if files.spacing is None else list(files.spacing)}
    for key, path in {"image": files.image, "label": files.label, "names": files.names}.items():
        try:
            status = None if path is None else path.stat()
        except OSError:
            status = None
        found[key] = None if path is None or status is None else [path.name, status.st_size, status.st_mtime_ns]
    if files.organ_files and files.label is not None:
        files_there = [(p.name, p.stat()) for p in nifti_files(files.label)]
        found["organ_files"] = [list(files.organ_files), [[n, s.st_size, s.st_mtime_ns] for n, s in files_there]]
    return found


def _remove_old_fields(before: dict[str, Any] | None, now: dict[str, Any], settings: Settings) -> None:
    """Remove fields of an earlier version of a case that this one hasn't made again."""
    if before is None or not settings.compute_sdf:
        return
    kept = {o["sha256"] for o in now["organs"]}
    for organ in before["organs"]:
        name = organ["sha256"]
        if name not in kept and name.isalnum():
            (settings.output / ORGANS / field_file_name(name, settings.organ.resolution)).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _disk_bytes(folder: Path) -> int:
    """Return what a folder's files take on the disk: less than their lengths where they are sparse."""
    return sum(512 * p.stat().st_blocks for p in folder.rglob("*") if p.is_file())


def remove_leftovers(output: Path) -> None:
    """Remove what a killed run was writing. No other program may be writing there (`only_writer`)."""
    for folder in (output / PROCESSED).glob(".*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    for place in (output / ORGANS, output / LOGS, output):
        for file in place.glob(".*.tmp.*"):
            file.unlink(missing_ok=True)
