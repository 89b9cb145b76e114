"""Predicting hidden codes from the rest of the object: what teaches a shape encoder shapes, without a word.

A share of an object's blocks of cells lose their vectors (which cells are occupied stays known), and of each of
their cells the code is to be told from others (masked modelling, as BEiT's of visual tokens, Bao et al. 2022). Codes
compete as vectors of the codebook, against those of the batch's other cells and a random part of the codebook: a loss
over all 65,536 would cost more than everything else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.sequence_3d import sequence_keys
from vae_qwen3vl.shape_encoder import WIDTH

_HIDDEN = 0.4
_CELLS, _OTHERS = 4096, 4096
"""Hidden cells a batch that are asked for, and random codes that they are told from beside one another's."""
_KEY = 32


class MaskedCodes(nn.Module):
    """The lesson's maps: of an encoded block to what each of its cells holds, and of codes to the same space.

    Args:
        merge: cells of a block along an axis.
        latent_dim: width D of the codebook.
    """

    def __init__(self, merge: int, latent_dim: int) -> None:
        super().__init__()
        self.merge = merge
        self.asked, self.told = nn.Linear(WIDTH, merge**3 * _KEY), nn.Linear(latent_dim, _KEY)

    def forward(
        self, projector: Projector3D, codes: Tensor, coords: Tensor, codebook: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of hidden codes, and the share of them that are told right.

        Args:
            projector: with an encoder.
            codes: int64 `[M]`.
            coords: `[M, 4]` = (object, x, y, z).
            codebook: `[K, D]`.
        """
        blocks = torch.cat([coords[:, :1], coords[:, 1:] // self.merge], dim=1)
        keys, row = torch.unique(sequence_keys(blocks), return_inverse=True)  # in the order of `Projector3D.blocks`
        gone = (torch.rand(len(keys), device=keys.device) < _HIDDEN)[row]  # [M]
        feats = F.embedding(codes, codebook) * ~gone[:, None]
        encoded, _ = projector.blocks(feats, coords)  # [T, W]
        asked = gone.nonzero().squeeze(1)
        asked = asked[torch.randperm(len(asked), device=asked.device)[:_CELLS]]
        x, y, z = (coords[asked, 1:] % self.merge).unbind(1)
        cell = (x * self.merge + y) * self.merge + z
        answers = self.asked(encoded[row[asked]]).view(len(asked), -1, _KEY)
        answers = answers[torch.arange(len(asked), device=asked.device), cell.long()]  # [n, _KEY]
        others = torch.randint(len(codebook), (min(_OTHERS, len(codebook)),), device=codes.device)
        known, right = torch.unique(torch.cat([codes[asked], others]), return_inverse=True)
        logits = answers.float() @ self.told(codebook[known]).float().T  # [n, known]
        right = right[: len(asked)]
        if not len(asked):
            return logits.sum() * 0, logits.new_ones(())
        return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()
