#!/usr/bin/env bash
# Alignment training with the config's GPUs: bash scripts/run_3d_align_train.sh [CONFIG.yaml] [--flags of training]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/3d_align_train.yaml
if [[ $# -gt 0 && $1 != -* ]]; then
    config=$1
    shift
fi
python=python
if [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
exec "$python" scripts/run_3d_align_train.py --config "$config" "$@"
