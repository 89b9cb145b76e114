"""The projector's first lesson, before the language model comes in: which caption belongs to which object.

A linear map of the mean of an object's 3D tokens, and of its tokens of the whole shape, should lie nearer to the
Sentence-BERT embedding of its own caption than to those of the batch's other captions (the symmetric loss of CLIP,
Radford et al. 2021). The map is thrown away; what stays is a projector whose tokens say what they are part of. A
shape encoder learns shapes beside it (`masked_codes`).
Without the language model an object costs a hundredth of a training step, so dozens of passes are cheap. Knows
datasets with captions, projector and sentence model; of the run that follows its settings and its schedule.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sdf_vqvae.utils.files import write_json_lines
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.loading import worker_options
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector import Tokens3D
from vae_qwen3vl.search.head import shape_features
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.training.losses import symmetric_contrast
from vae_qwen3vl.training.masked_codes import MaskedCodes
from vae_qwen3vl.training.run_data import AlignmentData
from vae_qwen3vl.training.run_folder import PRETRAINED
from vae_qwen3vl.training.schedule import rate

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vae_qwen3vl.language.sentence_encoder import SentenceEncoder

logger = logging.getLogger(__name__)

PRETRAINING_LOG = "pretraining.jsonl"
BATCH_SIZE = 128
"""Objects a batch, and so captions to be told apart."""
_RATE, _DECAY, _BETAS = 1e-3, 0.05, (0.9, 0.98)
_WARM_UP = 0.05
"""Share of the steps in which the rate rises; then it falls by a cosine."""
_TEMPERATURE, _LEAST_TEMPERATURE = 0.07, 0.01


@dataclass(frozen=True, kw_only=True)
class ProjectorLesson:
    """What the projector learns alone, opened before a run has a folder: whatever is wrong shows then."""

    config: AlignmentConfig
    train: Dataset[Any]
    val: Dataset[Any] | None
    codebook: Tensor
    encoder: SentenceEncoder

    @classmethod
    def of(cls, config: AlignmentConfig, data: AlignmentData, device: torch.device) -> ProjectorLesson | None:
        """Return the lesson that the settings ask for, None if they ask for none.

        Raises:
            ValueError: the data is no folder of cached codes, or the sentence model can't be had.
        """
        from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder

        if not config.pretrain_epochs:
            return None
        if data.captioned is None or data.codebook is None:
            raise ValueError(
                "pretrain_epochs needs cached codes: vae-qwen3vl encode DATASET -o codes, then --data_dir codes"
            )
        encoder = load_sentence_encoder(device=device)
        return cls(config=config, train=data.captioned, val=data.val, codebook=data.codebook, encoder=encoder)

    def __call__(
        self, model: Qwen3VLWith3DBranch, folder: Path, accelerator: Accelerator, vae_hash: str | None
    ) -> None:
        """Give the model the taught projector; the first process teaches it, unless the folder has it already."""
        path = folder / PRETRAINED
        if accelerator.is_main_process and not path.is_file():
            pretrain_projector(
                model,
                self.train,
                self.val,
                self.encoder,
                self.config.pretrain_epochs,
                codebook=self.codebook,
                folder=folder,
                device=accelerator.device,
                num_workers=self.config.num_workers,
                seed=self.config.seed,
                masked=self.config.pretrain_masked,
            )
            model.save_projector(path, prompt=self.config.prompt, vae_hash=vae_hash)
        accelerator.wait_for_everyone()
        model.load_projector(path, vae_hash=vae_hash)


class CaptionContrast(nn.Module):
    """The symmetric contrastive loss between objects and captions, with its linear map and temperature.

    Args:
        hidden_size: width H of the 3D tokens.
        caption_size: width E of the captions' embeddings.
        shape_tokens: how many of an object's tokens, the first ones, tell of it as a whole. Each has its own part of
            the map: in one mean with a hundred others they would hardly learn.
    """

    def __init__(self, hidden_size: int, caption_size: int, shape_tokens: int = 0) -> None:
        super().__init__()
        self.shape_tokens = shape_tokens
        self.head = nn.Linear((1 + shape_tokens) * hidden_size, caption_size)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / _TEMPERATURE)))

    def similarities(self, tokens: Tokens3D, scale: Tensor, captions: Tensor) -> Tensor:  # [O, C]
        """Return cosines of O objects and C captions.

        Args:
            tokens: of the objects.
            scale: the tokens' usual RMS, a number.
            captions: embeddings of length 1, `[C, E]`.
        """
        told = shape_features(tokens, scale, self.shape_tokens)  # [O, (1 + n) H]
        return F.normalize(self.head(told).float(), dim=1) @ captions.T

    def loss(self, similarities: Tensor, captions: Tensor) -> Tensor:  # []
        """Return the loss of O objects and their captions `[O, E]` from their `similarities`."""
        factor = self.log_scale.exp().clamp(max=1 / _LEAST_TEMPERATURE)
        return symmetric_contrast(factor * similarities, captions)

    def forward(self, tokens: Tokens3D, scale: Tensor, captions: Tensor) -> Tensor:  # []
        """Return the loss of O objects and their captions `[O, E]`."""
        return self.loss(self.similarities(tokens, scale, captions), captions)


class _Captions:
    """Embeddings of captions, each computed once."""

    def __init__(self, encoder: SentenceEncoder, device: torch.device) -> None:
        self.encoder, self.device = encoder, device
        self.known: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:  # [n, E]
        from vae_qwen3vl.language.sentence_encoder import embed

        new = [text for text in dict.fromkeys(captions) if text not in self.known]
        if new:
            self.known |= dict(zip(new, embed(self.encoder, new), strict=True))
        return torch.stack([self.known[text] for text in captions]).to(self.device)


def pretrain_projector(
    branch: Qwen3VLWith3DBranch,
    train: Dataset[Any],
    val: Dataset[Any] | None,
    encoder: SentenceEncoder,
    epochs: int,
    *,
    codebook: Tensor,
    folder: Path,
    device: torch.device,
    num_workers: int = 0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    masked: float = 0.0,
) -> list[dict[str, float]]:
    """Teach a branch's projector; it keeps the weights with the lowest validation loss.

    Args:
        branch: the projector and what its tokens look like; its language model is not touched.
        train: items with `codes`, `coords` and `caption` (`CachedCodesDataset`); `set_epoch`, if there is one, is
            called.
        val: the same, or None, which keeps the last weights.
        encoder: the sentence model.
        epochs: passes over the data.
        codebook: `[K, D]`, of the codes.
        folder: gets `pretraining.jsonl`, a record an epoch.
        device: where to compute.
        num_workers: processes that read data.
        seed: of order and linear map.
        batch_size: objects a batch.
        masked: weight of `MaskedCodes` beside the captions, for a projector with an encoder.

    Returns:
        The records: `loss` of the captions, and of validation `val_loss` and `val_recall_at_5`, of objects' own
        captions among all; `masked_loss` and `masked_right`, the share of hidden codes told right.
    """
    torch.manual_seed(seed)
    projector = branch.projector.to(device).train()
    caption_size = encoder.network.config.hidden_size
    contrast = CaptionContrast(projector.hidden_size, caption_size, projector.shape_tokens).to(device)
    captions = _Captions(encoder, device)
    codebook = codebook.to(device)
    lessons: list[nn.Module] = [projector, contrast]
    if masked:
        hidden = MaskedCodes(projector.merge, projector.latent_dim).to(device)
        lessons.append(hidden)
    trained = [p for lesson in lessons for p in lesson.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=_DECAY, betas=_BETAS)
    loader = DataLoader(
        train,
        batch_size=batch_size,
        shuffle=True,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        **worker_options(num_workers),
    )
    steps, step = epochs * len(loader), 0
    records: list[dict[str, float]] = []
    best, best_loss = None, math.inf
    with Progress(steps, "projector alone", "step") as progress:
        for epoch in range(epochs):
            if hasattr(train, "set_epoch"):
                train.set_epoch(epoch)
            total, count, told = 0.0, 0, torch.zeros(2)
            for codes, coords, words in loader:
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * rate(step / steps, 0.0, _WARM_UP)
                tokens = _tokens(branch, codes, coords, codebook)
                of_words = loss = contrast(tokens, projector.output_rms, captions(words))
                if masked:
                    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                        of_hidden, right = hidden(projector, codes.to(device), coords.to(device), codebook)
                    loss = of_words + masked * of_hidden
                    told += torch.stack([of_hidden.detach(), right]).cpu()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                total, count, step = total + float(of_words.detach()) * len(words), count + len(words), step + 1
                progress.update()
            record = {"epoch": epoch + 1, "loss": total / count}
            if masked:
                record |= dict(zip(("masked_loss", "masked_right"), (told / len(loader)).tolist(), strict=True))
            if val is not None:
                record |= _validate(branch, contrast, captions, val, codebook)
                if record["val_loss"] < best_loss:
                    best, best_loss = copy.deepcopy(projector.state_dict()), record["val_loss"]
            records.append(record)
            write_json_lines(folder / PRETRAINING_LOG, records)
            progress.say(**{name: f"{value:.3f}" for name, value in record.items() if name != "epoch"})
    if best is not None:
        projector.load_state_dict(best)
    logger.info("the projector alone: %s", {name: round(value, 4) for name, value in records[-1].items()})
    return records


def _tokens(branch: Qwen3VLWith3DBranch, codes: Tensor, coords: Tensor, codebook: Tensor) -> Tokens3D:
    device = codebook.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        feats = F.embedding(codes.to(device), codebook)  # [M, D]
        return branch.tokens_3d(feats, coords.to(device))


@torch.no_grad()
def _validate(
    branch: Qwen3VLWith3DBranch,
    contrast: CaptionContrast,
    captions: Callable[[Sequence[str]], Tensor],
    val: Dataset[Any],
    codebook: Tensor,
) -> dict[str, float]:
    """Return loss and recall over all objects at once."""
    codes, coords, words = _collate([val[i] for i in range(len(val))])  # type: ignore[arg-type]
    tokens, texts = _tokens(branch, codes, coords, codebook), captions(words)
    likeness = contrast.similarities(tokens, branch.projector.output_rms, texts)
    better = (likeness > likeness.diagonal()[:, None]).sum(1)
    return {"val_loss": float(contrast.loss(likeness, texts)), "val_recall_at_5": float((better < 5).float().mean())}


def _collate(items: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, list[str]]:
    """Return `codes [M]`, `coords [M, 4]` and the captions."""
    coords = joined_coords([item["coords"] for item in items])
    return torch.cat([item["codes"] for item in items]), coords, [item["caption"] for item in items]
