"""The program `ct` (`dataset_toolkits/process_m3d_seg_format.py`): scans with labels to a dataset of organs."""

from __future__ import annotations

import argparse

from sdf_vqvae.commands.options import add_up_option
from sdf_vqvae.geometry.up import UP_IN_SCANS
from sdf_vqvae.preprocessing.ct.settings import ScanSettings
from sdf_vqvae.utils.programs import USER_ERROR, add_run_options
from sdf_vqvae.utils.settings import add_options, given

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
    add_options(source, ScanSettings, ("data_root", "image", "label", "organ_labels", "spacing"))
    add_up_option(source, f"{UP_IN_SCANS.axis}, {UP_IN_SCANS.known_from}")
    add_options(source, ScanSettings, ("organs", "max_cases", "assume_hu"), by_hand=("up",))
    output = parser.add_argument_group("output")
    add_options(output, ScanSettings, ("output_dir", "default_resolution", "use_mask", "compute_sdf"))
    add_options(output, ScanSettings, ("sdf_resolution", "sdf_threshold_factor", "replace_npy", "mesh_format"))
    run = parser.add_argument_group("run")
    add_options(run, ScanSettings, ("num_workers", "device", "no_skip"))
    add_run_options(run, device=False, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Process the cases and print a summary; 2 if none could be used, 3 if some failed or lack a part."""
    from sdf_vqvae.preprocessing.ct.dataset import process_scans
    from sdf_vqvae.preprocessing.ct.summary import in_words

    outcomes = process_scans(ScanSettings(**given(options, ScanSettings)))
    for outcome in outcomes:
        if len(outcomes) > 1:
            print(f"-- {outcome.name}")
        print("\n".join(in_words(outcome)))
    if not any(outcome.records for outcome in outcomes):
        return USER_ERROR
    return INCOMPLETE if any(outcome.failed or outcome.unpaired for outcome in outcomes) else 0
