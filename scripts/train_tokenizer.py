"""Train a tokenizer; `--help` says how.

python scripts/train_tokenizer.py --vae_config configs/vae/sdf_vqvae_256.json --data_dir meshes --output_dir outputs/t
"""

import sys

from sdf_vqvae.train_command import main

if __name__ == "__main__":
    sys.exit(main())
