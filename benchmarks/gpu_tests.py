"""Run the tests that need a CUDA GPU, which continuous integration has not, and write down what came of them.

python benchmarks/gpu_tests.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from record import write_result

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run `pytest -m gpu`, write `gpu_tests.json`, and return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-m", "gpu", "tests/sdf_vqvae", f"--junitxml={report}"]
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        cases = ElementTree.parse(report).getroot().iter("testcase")
        tests = [
            {
                "test": f"{case.get('classname')}::{case.get('name')}",
                "seconds": float(case.get("time", "nan")),
                "outcome": next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed"),
            }
            for case in cases
        ]
    write_result("gpu_tests", {"exit": code, "tests": tests}, options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
