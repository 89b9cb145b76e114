"""Layouts of CT datasets: which files on disk belong to one case.

Knows names of files and folders. Nothing is opened but `dataset.json`, where it says which channel is the CT.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdf_vqvae.utils.strict_files import parse_json

M3D, NIFTI = "m3d_seg", "nifti"
JSON_BYTES = 16 * 2**20
"""Most bytes of a file of label names."""
Spacing = tuple[float, float, float]

_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})", re.ASCII)
_CT = re.compile(r"(?<![a-z])(cb|ce|hr|ld|nc)?cta?(?![a-z])", re.IGNORECASE)
"""CT, and what else a CT is called: CBCT, CTA, NCCT and so on."""
_IMAGE_WORDS = frozenset(("image", "img", "imaging", "ct", "scan", "volume", "vol"))
_LABEL_WORDS = frozenset(
    ("label", "lbl", "seg", "segmentation", "mask", "gt", "annotation", "organ", "labelmap", "roi")
)
_IMAGE_FOLDER = re.compile(r"(images?|imgs?|cts?|scans?|volumes?)(_?tr)?", re.IGNORECASE)
_LABEL_FOLDER = re.compile(r"(labels?|masks?|segs?|segmentations?|annotations?|gts?)(_?tr)?", re.IGNORECASE)
_FEW = 5
_SHARED = "image and label are paired by what their names share"


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where the parts of one case lie."""

    case_id: str
    source: str
    """`m3d_seg` or `nifti`."""
    image: Path | None
    label: Path | None
    """A file; or a folder with a NIfTI file an organ, named after it."""
    names: Path | None
    """JSON with the names of the labels."""
    spacing: Spacing | None
    """Millimetres between voxels, where the user says so; NIfTI files bring their own."""
    organ_files: tuple[str, ...] = ()
    """Where the label is a folder: the organs of the whole dataset, sorted. The first is label 1."""
    notes: tuple[str, ...] = ()
    """What to know about the choice of these files."""
    error: str = ""
    """Why the case can't be read, where the names of its files say so."""


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """The cases of one dataset."""

    name: str
    folder: str
    """Where its outputs go, below those of the whole; empty for the whole itself."""
    cases: tuple[CaseFiles, ...]
    notes: tuple[str, ...] = ()
    """What of the folder is not read."""

    def unpaired(self, *, with_windows: bool) -> dict[str, str]:
        """Return the cases that lack what their dataset has, by id, and what they lack.

        An image without a label counts where there are labels, a label without an image where windows are wanted.
        """
        whole = [c for c in self.cases if not c.error]
        labels = [c for c in whole if c.label is not None]
        alone = [c for c in labels if c.image is None]
        images = [c for c in whole if c.label is None and c.image is not None] if labels else []
        found = {c.case_id: f"no label goes with the image {_place(c.image)}{_among(alone)}" for c in images}
        if with_windows:
            found |= {c.case_id: f"no image goes with the label {_place(c.label)}{_among(images)}" for c in alone}
        return found


def _place(path: Path | None) -> str:
    assert path is not None
    return f"{path.parent.name}/{path.name}"


def _among(others: list[CaseFiles]) -> str:
    """Return the names of files that have no partner either."""
    names = [path.name for c in others if c.source == NIFTI and (path := c.image or c.label) is not None]
    return f" (left over: {_list(names)})" if names else ""


def _list(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_FEW])
    return shown + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def find_case_sets(root: Path, spacing: Spacing | None = None, names: Path | None = None) -> list[CaseSet]:
    """Return the datasets of a folder, with their cases in the order of their names.

    The folder is one dataset, or holds several, each in a folder of its own.

    Args:
        root: the folder.
        spacing: millimetres between voxels, for the M3D-Seg layout, which records none.
        names: JSON with the names of the labels; by default what lies beside the cases.

    Raises:
        ValueError: no such folder, no case in it, or a spacing for files that bring their own.
    """
    if not root.is_dir():
        raise ValueError(f"--data_root {root} is not a folder")
    found, not_read = _cases_in(root, spacing, names)
    sets = [CaseSet(name=root.resolve().name, folder="", cases=tuple(found), notes=not_read)] if found else []
    empty = []
    for folder in () if sets else _folders(root):
        cases, notes = _cases_in(folder, spacing, names)
        if cases:
            sets.append(CaseSet(name=folder.name, folder=folder.name, cases=tuple(cases), notes=notes))
        else:
            empty.append(folder.name)
    if not sets:
        raise ValueError(
            f"--data_root {root} holds no case: expected imagesTr/ and labelsTr/ (NIfTI), a folder a case with an "
            "image and its segmentation or segmentations/ (NIfTI), or the M3D-Seg layout CODE/CODE.json with "
            "CASE/image.npy and CASE/mask_(C, H, W, D).npz" + "".join(f"; {note}" for note in not_read)
        )
    if spacing is not None and any(case.source == NIFTI for one in sets for case in one.cases):
        raise ValueError("--spacing is for the M3D-Seg layout; NIfTI files bring their own")
    if any(case.organ_files for one in sets for case in one.cases):
        _check_names(names)
    if empty:
        sets[0] = replace(sets[0], notes=(*sets[0].notes, _no_case_in(empty)))
    return sets


def pair_case(image: Path | None, label: Path | None, names: Path | None) -> CaseFiles:
    """Return the case of one image, one label or both (NIfTI), named after the first of them.

    The label may be a folder with a file an organ, as TotalSegmentator writes it.

    Raises:
        ValueError: neither is given, or a file isn't NIfTI by its name.
    """
    chosen = image or label
    if chosen is None:
        raise ValueError("give --data_root, or --image and --label")
    organs: tuple[str, ...] = ()
    if label is not None and label.is_dir():
        organs = _organs_in(label)
        if not organs:
            raise ValueError(f"--label {label} is a folder without NIfTI files, one an organ")
        _check_names(names)
    for file in (image, None if organs else label):
        if file is not None and not _SUFFIX.search(file.name):
            raise ValueError(f"{file}: --image and --label are NIfTI files, .nii or .nii.gz")
    return CaseFiles(
        case_id=_stem(chosen),
        source=NIFTI,
        image=image,
        label=label,
        names=names or _names_of_pair([path for path in (image, label) if path is not None]),
        spacing=None,
        organ_files=organs,
    )


def _names_of_pair(files: list[Path]) -> Path | None:
    """Return the JSON beside one of a case's files, or beside their folders `imagesTr` and `labelsTr`."""
    folders = [file.parent for file in files]
    above = [
        p.resolve().parent for p in folders if _IMAGE_FOLDER.fullmatch(p.name) or _LABEL_FOLDER.fullmatch(p.name)
    ]
    return next((names for folder in (*folders, *above) if (names := _names_beside(folder))), None)


def nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files directly in a folder, by name, but no hidden ones (macOS leaves `._name`)."""
    if not folder.is_dir():
        return []
    return [p for p in sorted(folder.iterdir()) if _SUFFIX.search(p.name) and not p.name.startswith(".")]


def _files_below(folder: Path) -> int:
    """Return how many NIfTI files a folder and those in it hold."""
    return sum(len(nifti_files(p)) for p in (folder, *_folders(folder)))


def _organs_in(folder: Path) -> tuple[str, ...]:
    """Return the organs of a folder with a file an organ, sorted."""
    return tuple(sorted({_stem(p) for p in nifti_files(folder)} - {"background"}))


def _check_names(names: Path | None) -> None:
    if names is not None:
        raise ValueError("--organ_labels names the numbers in a label file; here files are named after their organs")


def organ_file(folder: Path, organ: str) -> Path | None:
    """Return the file of an organ in a folder of files by organ, None where there is none.

    Raises:
        ValueError: there are two, as .nii and as .nii.gz.
    """
    found = [p for p in nifti_files(folder) if _stem(p) == organ]
    if len(found) > 1:
        raise ValueError(_both(found))
    return found[0] if found else None


def _stem(path: Path) -> str:
    """Return a file's name without its suffix, in composed letters (macOS writes `é` as two)."""
    return unicodedata.normalize("NFC", _SUFFIX.sub("", path.name))


def _both(files: Iterable[Path]) -> str:
    return f"{' and '.join(sorted(p.name for p in files))} are both there: keep one"


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, by name, but no hidden ones and none that macOS leaves in archives."""
    yield from (p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _names_beside(folder: Path) -> Path | None:
    return next((p for p in (folder / "labels.json", folder / "dataset.json") if p.is_file()), None)


def _cases_in(root: Path, spacing: Spacing | None, names: Path | None) -> tuple[list[CaseFiles], tuple[str, ...]]:
    """Return the cases of a folder that is one dataset, and what of it is not read."""
    beside = names or _names_beside(root)
    images, labels = _role_folders(root)
    if images is not None or labels is not None:
        files = nifti_files(images) if images else [], nifti_files(labels) if labels else []
        return _paired(*files, root, beside), _not_read(root, images, labels)
    cases = list(_m3d_cases(root, spacing, names))
    case_of_root = None if cases else _case_in(root, beside)
    if case_of_root is not None and case_of_root.organ_files:
        return [case_of_root], ()
    if not cases:
        cases = [case for folder in _folders(root) if (case := _case_in(folder, beside)) is not None]
        organs = sorted({organ for case in cases for organ in case.organ_files})
        cases = [replace(c, organ_files=tuple(organs)) if c.organ_files else c for c in cases]
    if cases:
        others = {_name(p): p.name for p in _folders(root)}
        for case in cases:
            others.pop(case.case_id, None)
        return cases, (_no_case_in(others.values()),) if others else ()
    labels_there = [p for p in nifti_files(root) if _words(_stem(p)) & _LABEL_WORDS]
    if labels_there:
        cases = _paired([p for p in nifti_files(root) if p not in labels_there], labels_there, root, beside)
    return cases, ()


def _name(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)


def _no_case_in(folders: Iterable[str]) -> str:
    return f"no case was found in {_list(list(folders))}"


# -- M3D-Seg -----------------------------------------------------------------------------------------------------


def _m3d_cases(root: Path, spacing: Spacing | None, names: Path | None) -> Iterator[CaseFiles]:
    listed = names or _m3d_names(root)
    for folder in _folders(root):
        image = folder / "image.npy"
        masks = sorted(p for p in folder.iterdir() if p.name.startswith("mask") and p.suffix in (".npz", ".npy"))
        if image.exists() or masks:
            yield CaseFiles(
                case_id=_name(folder),
                source=M3D,
                image=image if image.exists() else None,
                label=masks[0] if masks else None,
                names=listed,
                spacing=spacing,
                error=f"{folder.name} holds several mask files ({_list([p.name for p in masks])}): keep one"
                if len(masks) > 1
                else "",
            )


def _m3d_names(root: Path) -> Path | None:
    """Return the JSON with a dataset's labels: named like its folder, else the only one there."""
    own = root / f"{root.resolve().name}.json"
    found = sorted(p for p in root.glob("*.json") if not p.name.startswith("."))
    if own.is_file():
        return own
    return found[0] if len(found) == 1 else _names_beside(root)


# -- NIfTI: a folder a case --------------------------------------------------------------------------------------


def _case_in(folder: Path, names: Path | None) -> CaseFiles | None:
    """Return the case of a folder: a file of the image, and one of the labels or a folder with one an organ."""
    files = nifti_files(folder)
    labels = [p for p in files if _words(_stem(p)) & _LABEL_WORDS]
    images = [p for p in files if p not in labels]
    named = [p for p in images if _words(_stem(p)) & _IMAGE_WORDS]
    images = named if len(named) == 1 else images
    folders = [] if labels else [p for p in _folders(folder) if _LABEL_FOLDER.fullmatch(p.name) and nifti_files(p)]
    if not files and [p.name for p in folders] != ["segmentations"]:
        return None
    if len(images) > 1 and len(labels) != 1 and not folders:
        return None  # of many cases
    several = next((part for part in (images, labels, folders) if len(part) > 1), [])
    chosen = [*images[:1], *(labels + folders)[:1]]
    unread = [p.name for p in files if p not in chosen]
    unread += [f"{p.name}/" for p in _folders(folder) if p not in chosen and _files_below(p)]
    return CaseFiles(
        case_id=_name(folder),
        source=NIFTI,
        image=images[0] if images else None,
        label=next(iter(labels + folders), None),
        names=names,
        spacing=None,
        organ_files=_organs_in(folders[0]) if folders else (),
        notes=(f"{_list(unread)} of its folder {'is' if len(unread) == 1 else 'are'} not read",) if unread else (),
        error=f"{folder.name} holds {_list([p.name for p in several])}, and one of them is read: keep one"
        if several
        else "",
    )


# -- NIfTI: images here, labels there ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Channels:
    """What `dataset.json` says of the channels of a case."""

    names: Mapping[int, str]
    declared: bool
    """It lists them as nnU-Net's second version does, where every image has a number."""

    @property
    def ct(self) -> int:
        """The channel that is the CT."""
        return next((n for n in sorted(self.names) if _CT.search(self.names[n])), 0)


def _channels(root: Path) -> _Channels:
    file = root / "dataset.json"
    try:
        content = parse_json(file.read_bytes()) if file.stat().st_size <= JSON_BYTES else None
    except (OSError, ValueError):  # whether it is readable is found where its names are needed
        content = None
    content = content if isinstance(content, dict) else {}
    listed = content.get("channel_names", content.get("modality"))
    pairs = listed.items() if isinstance(listed, dict) else ()
    names = {int(n): str(text) for n, text in pairs if re.fullmatch(r"\d{1,4}", str(n), re.ASCII)}
    return _Channels(names=names, declared="channel_names" in content)


def _role_folders(root: Path) -> tuple[Path | None, Path | None]:
    """Return the folder of the images and that of the labels: `imagesTr`, `labelsTr`, or alike by their names."""
    found: list[Path | None] = []
    for name, role in (("imagesTr", _IMAGE_FOLDER), ("labelsTr", _LABEL_FOLDER)):
        standard = root / name
        folders = [p for p in _folders(root) if role.fullmatch(p.name) and nifti_files(p)]
        if nifti_files(standard) or (standard.is_dir() and not folders):
            folders = [standard]
        if len(folders) > 1:
            raise ValueError(f"{root} holds {_list([p.name for p in folders])}: which are to be read can't be told")
        found.append(folders[0] if folders else None)
    # A file of the image beside a folder of organs is one case.
    return (found[0], found[1]) if found[0] is not None or not nifti_files(root) else (None, None)


def _not_read(root: Path, *read: Path | None) -> tuple[str, ...]:
    """Return what lies there and is not read: other parts of the dataset, and files of other formats."""
    others = [(p, _files_below(p)) for p in _folders(root) if p not in read]
    foreign = [
        f"{folder.name}/{p.name}"
        for folder in read
        if folder is not None and folder.is_dir()
        for p in sorted(folder.iterdir())
        if p.is_file() and not p.name.startswith(".") and not _SUFFIX.search(p.name)
    ]
    empty = [folder.name for folder in read if folder is not None and not nifti_files(folder)]
    return (
        *(f"{folder.name} ({count} files) is not read" for folder, count in others if count),
        *(f"{name} holds no NIfTI file" for name in empty),
        *(
            [f"{_list(foreign)} {'is' if len(foreign) == 1 else 'are'} not .nii or .nii.gz, and not read"]
            if foreign
            else ()
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Image:
    """The image of a case, as far as names tell."""

    file: Path | None = None
    note: str = ""
    error: str = ""


def _paired(images: list[Path], labels: list[Path], root: Path, names: Path | None) -> list[CaseFiles]:
    """Return the cases of image files and label files, by their names."""
    by_label = _by_stem(labels)
    found = _images(_by_stem(images), by_label, _channels(root))
    shared = _one_to_one([s for s in by_label if s not in found], [s for s in found if s not in by_label])
    label_of = {shared.get(stem, stem): files for stem, files in by_label.items()}
    cases = []
    for case in sorted({*found, *label_of}):
        image, label = found.get(case, _Image()), label_of.get(case, [])
        notes = (image.note, _SHARED if case in shared.values() else "")
        cases.append(
            CaseFiles(
                case_id=case,
                source=NIFTI,
                image=image.file,
                label=label[0] if label else None,
                names=names,
                spacing=None,
                notes=tuple(note for note in notes if note),
                error=image.error or (_both(label) if len(label) > 1 else ""),
            )
        )
    return cases


def _by_stem(files: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[_stem(file)].append(file)
    return dict(found)


def _images(images: Mapping[str, list[Path]], labels: Collection[str], channels: _Channels) -> dict[str, _Image]:
    """Return the image of each case.

    `x_0000` is a channel of `x` where there is a label `x` and no label `x_0000`, and in a dataset where others are;
    elsewhere it is a name like any other.
    """
    parts = {stem: match for stem in images if stem not in labels and (match := _CHANNEL.fullmatch(stem))}
    channeled = channels.declared or any(match["case"] in labels for match in parts.values())
    files: dict[str, dict[int | None, list[Path]]] = defaultdict(dict)
    for stem, found in images.items():
        match = parts.get(stem)
        if match is not None and channeled:
            files[match["case"]][int(match["number"])] = found
        else:
            files[stem][None] = found
    return {case: _image_of(found, channels) for case, found in files.items()}


def _image_of(files: Mapping[int | None, list[Path]], channels: _Channels) -> _Image:
    """Return the CT among the files of one case, by channel (None for a file without one)."""
    double = next((paths for paths in files.values() if len(paths) > 1), None)
    if double is None and None in files and len(files) > 1:
        double = [path for paths in files.values() for path in paths]
    if double is not None:
        return _Image(file=double[0], error=_both(double))
    if None in files:
        return _Image(file=files[None][0])
    ct = channels.ct
    named = {
        n: f"{n:04d}" + (f" ({channels.names[n]})" if n in channels.names else "")
        for n in (*files, ct)
        if n is not None
    }
    others = [named[n] for n in sorted(n for n in files if n is not None and n != ct)]
    if ct not in files:
        return _Image(note=f"channel {_list(others)} is there, but not channel {named[ct]}, the CT")
    if not others:
        return _Image(file=files[ct][0])
    return _Image(file=files[ct][0], note=f"channel {named[ct]} is read as the CT, {_list(others)} not")


def _one_to_one(labels: list[str], images: list[str]) -> dict[str, str]:
    """Return label -> image for names that differ, but share what only one of each has.

    That is all words and numbers but such as `label` and `img`; or the numbers, where all images are named alike and
    so are all labels: `PANCREAS_0001` and `label0001`.
    """
    found: dict[str, str] = {}
    for keys in (_without_roles, _numbers):
        by_label, by_image = (
            _unique(keys([s for s in side if s not in done]))
            for side, done in ((labels, found.keys()), (images, found.values()))
        )
        found |= {label: by_image[key] for key, label in by_label.items() if key in by_image}
    return found


_Key = tuple[str, ...]


def _unique(keys: Mapping[str, _Key]) -> dict[_Key, str]:
    """Return key -> name for the keys that one name alone has."""
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


def _without_roles(stems: Iterable[str]) -> dict[str, _Key]:
    words = {stem: _split(stem) for stem in stems}
    return {
        stem: tuple(w for w in own if not _singular(w) & (_IMAGE_WORDS | _LABEL_WORDS)) for stem, own in words.items()
    }


def _numbers(stems: Iterable[str]) -> dict[str, _Key]:
    words = {stem: _split(stem) for stem in stems}
    numbers = {stem: tuple(w for w in own if w.isdecimal()) for stem, own in words.items()}
    alike = len({tuple("#" if w.isdecimal() else w for w in own) for own in words.values()}) == 1
    return numbers if alike and all(numbers.values()) else {}


def _words(stem: str) -> set[str]:
    return {word for part in _split(stem) for word in _singular(part)}


def _split(stem: str) -> list[str]:
    """Return the words and numbers of a name, in small letters and without leading zeros."""
    parts = re.findall(r"\d+|[^\W\d_]+", stem.casefold())
    return [str(int(part)) if part.isdecimal() else part for part in parts]


def _singular(word: str) -> set[str]:
    return {word, word.removesuffix("s")}
