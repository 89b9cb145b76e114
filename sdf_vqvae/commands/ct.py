"""The program `ct` (`dataset_toolkits/process_m3d_seg_format.py`): scans with labels to a dataset of organs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sdf_vqvae.commands.options import add_up_option
from sdf_vqvae.geometry import MAX_RESOLUTION
from sdf_vqvae.geometry.formats.table import WRITABLE
from sdf_vqvae.geometry.up import UP_IN_SCANS
from sdf_vqvae.preprocessing.ct.settings import MAX_SIDE, ScanSettings
from sdf_vqvae.utils.programs import USER_ERROR, positive_int

ABOUT = """\
CT scans with labels to masks, windows, and organs as a dataset of distance fields.

Reads the M3D-Seg layout, NIfTI folders (`imagesTr` and `labelsTr`, or a folder a case) and pairs of NIfTI files. A
folder of several datasets becomes a folder of as many outputs. With `--compute_sdf` the folder `organs/` of an
output is a dataset that `SDF3DCaptionDataset` reads. A run that was cut off goes on with the same command. The exit
code is 0 if every case was done whole, 3 if some failed or lack an image or a label, and 2 if none could be done.
`docs/ct.md` has the layouts and the outputs."""
EXAMPLES = """\
  python dataset_toolkits/process_m3d_seg_format.py --data_root M3D_Seg/0000 --output_dir out \\
      --use_mask --compute_sdf
  vae-qwen3vl ct --image ct.nii.gz --label organs.nii.gz --output_dir out \\
      --use_mask --compute_sdf --sdf_resolution 128 --organs liver,spleen"""
INCOMPLETE = 3
"""Exit code where some cases were done and others failed, or lack their image or label."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    source = parser.add_argument_group("input")
    source.add_argument(
        "--data_root", type=Path, metavar="DIR", help="a dataset, or several (docs/ct.md has the layouts)"
    )
    source.add_argument("--image", type=Path, metavar="FILE", help="one CT, .nii or .nii.gz")
    source.add_argument(
        "--label", type=Path, metavar="FILE", help="its labels, .nii or .nii.gz, or a folder of one an organ"
    )
    source.add_argument(
        "--organ_labels", type=Path, metavar="JSON", help="names of the labels (default: found beside)"
    )
    source.add_argument(
        "--spacing", type=_spacing, metavar="X,Y,Z", help="millimetres between voxels; M3D-Seg records none"
    )
    add_up_option(source, f"{UP_IN_SCANS.axis}, {UP_IN_SCANS.known_from}")
    source.add_argument("--organs", type=_names, default=(), metavar="A,B", help="only these labels, by name")
    source.add_argument("--max_cases", type=positive_int, metavar="N", help="only the first N cases")
    source.add_argument("--assume_hu", action="store_true", help="take intensities as Hounsfield units unseen")
    made = parser.add_argument_group("output")
    made.add_argument("--output_dir", type=Path, metavar="DIR", required=True)
    made.add_argument(
        "--default_resolution",
        type=_side,
        default=512,
        metavar="R",
        help="side of the padded arrays; scans that don't fit get 1024 (default: %(default)s)",
    )
    made.add_argument("--use_mask", action="store_true", help="masks of the labels instead of image and windows")
    made.add_argument("--compute_sdf", action="store_true", help="also fields and meshes, and the dataset organs/")
    made.add_argument(
        "--sdf_resolution",
        type=_side,
        default=512,
        metavar="R",
        help="of the fields (default: 512; the shipped tokenizer reads 256)",
    )
    made.add_argument(
        "--sdf_threshold_factor", type=_band, default=3.0, metavar="T", help="half width in voxels (default: 3)"
    )
    made.add_argument("--replace_npy", action="store_true", help="leave out the dense array of what has a field")
    made.add_argument(
        "--mesh_format", choices=("none", *(s[1:] for s in WRITABLE)), default="ply", help="default: ply"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--num_workers", type=positive_int, default=4, metavar="N", help="processes (default: 4)")
    run.add_argument("--device", default="cpu", help="where fields are computed: cpu (default), cuda, cuda:1")
    run.add_argument("--no_skip", action="store_true", help="process finished cases again")
    run.add_argument("--verbose", action="store_true", help="log what the libraries do")


def work(options: argparse.Namespace) -> int:
    """Process the cases and print a summary; 2 if none could be used, 3 if some failed or lack a part."""
    from sdf_vqvae.preprocessing.ct.dataset import process_scans
    from sdf_vqvae.preprocessing.ct.summary import in_words

    names = {field.name for field in fields(ScanSettings)}
    outcomes = process_scans(ScanSettings(**{key: value for key, value in vars(options).items() if key in names}))
    for outcome in outcomes:
        if len(outcomes) > 1:
            print(f"-- {outcome.name}")
        print("\n".join(in_words(outcome)))
    if not any(outcome.records for outcome in outcomes):
        return USER_ERROR
    return INCOMPLETE if any(outcome.failed or outcome.unpaired for outcome in outcomes) else 0


def _side(text: str) -> int:
    value = int(text)
    if not 8 <= value <= min(MAX_RESOLUTION, MAX_SIDE):
        raise argparse.ArgumentTypeError(f"{value} does not lie in 8..{min(MAX_RESOLUTION, MAX_SIDE)}")
    return value


def _band(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_RESOLUTION:
        raise argparse.ArgumentTypeError(f"{text} is no number of voxels above 0")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} holds no name")
    return names


def _spacing(text: str) -> tuple[float, float, float]:
    from sdf_vqvae.geometry.volume import MAX_ANISOTROPY

    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1.5,1.5,3") from error
    if not (min(x, y, z) > 0 and max(x, y, z) < min(1e4, MAX_ANISOTROPY * min(x, y, z))):
        raise argparse.ArgumentTypeError(f"{text!r} holds a spacing that no scan has")
    return x, y, z
