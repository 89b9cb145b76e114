"""The training loop of the language side: the projector learns first, then adapters with it, on one process or many.

Batches come from `AlignmentData`, models from outside; here are steps, schedule, validation, checkpoints and what a
run leaves behind. Only what is trained is kept in checkpoints: language model and tokenizer stay what they were.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sdf_vqvae.training import checkpoints
from sdf_vqvae.training.run_log import RunLog
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.progress import Progress, in_time
from sdf_vqvae.utils.runtime import StopRequest, stop_requests, worker_seeds
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.bucketing import BucketSampler
from vae_qwen3vl.data.splits import AlignmentData
from vae_qwen3vl.data.workers import worker_options
from vae_qwen3vl.language import adapters
from vae_qwen3vl.language.backbone import uncompiled
from vae_qwen3vl.layout import without_object
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.training.run_folder import LORA_FINAL, PROJECTOR_FINAL, RESULT
from vae_qwen3vl.training.sharding import average_gradients, is_sharding, shard_frozen

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_LOWEST_RATE = 0.02
_KEPT_CHECKPOINTS = 2
_STEPS_TO_JUDGE = 3
"""Steps after which a run says how long it will take: the first one is slower than the rest."""
_LONG = 300.0
"""Seconds from which a run says what would shorten it."""
_SHORTER = "--max_samples, --epochs or --max_3d_tokens, with cached codes, or on a GPU"
_PARTS = 4
"""Parts of a run, however short, after each of which there is a checkpoint."""

Batch = dict[str, Any]


class AlignmentTrainer:
    """Trains a 3D branch as an `AlignmentConfig` says.

    The loss of a step is the mean over all answer tokens of its objects, whatever processes and parts they were
    spread over, so that one process and many do the same. Validation has two losses: with the objects' own shapes,
    and with another object's (the blind control); only their difference says that shapes are read. The weights
    that are the best by `best_by` are the run's result.

    Args:
        model: with adapters if they are to be trained; everything else is frozen.
        config: see there.
        data: what to learn from.
        folder: the run folder; a run that was stopped there goes on.
        accelerator: devices and processes; with FSDP, what is frozen is sharded over them.
        vae_hash: fingerprint of the tokenizer behind cached codes, for the projector's file.
    """

    def __init__(
        self,
        model: Qwen3VLWith3DBranch,
        config: AlignmentConfig,
        data: AlignmentData,
        folder: Path,
        accelerator: Accelerator,
        *,
        vae_hash: str | None = None,
    ) -> None:
        self.sharding = is_sharding(accelerator)
        self.branch = model
        if self.sharding:  # the rest may be more than one device holds
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(accelerator.device)
        else:
            model.to(accelerator.device)
        self.config = config
        self.data = data
        self.folder = folder
        self.accelerator = accelerator
        self.vae_hash = vae_hash
        self.codebook = None if data.codebook is None else data.codebook.to(accelerator.device)
        self.trained = _Trained(model)
        lora = [p for name, p in model.named_parameters() if p.requires_grad and "lora_" in name]
        rest = [p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
        self.keep_plain = data.plain and bool(lora)
        groups = [
            {"params": rest, "peak": config.lr, "from": 0.0},
            {"params": lora, "peak": config.lora_rate, "from": config.projector_share},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
        )
        self.model = shard_frozen(model, self.optimizer, accelerator) if self.sharding else accelerator.prepare(model)
        self.sampler = BucketSampler(
            data.lengths,
            config.batch_size,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            limited=data.limited,
        )
        self.epoch = 0
        self.batches_done = 0
        self.step_number = 0
        self.seconds = 0.0
        self.objects = 0
        self.skipped = 0
        self.best: dict[str, Tensor] | None = None
        self.best_score, self.best_step = -math.inf, 0
        self.best_losses: dict[str, float] = {}
        self.log: RunLog | None = None
        self.stopping = StopRequest()
        self._saved: tuple[int, int] | None = None
        self._part = 0

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """Batches of one epoch after another; its processes live as long as the run."""
        return DataLoader(
            self.data.train,
            batch_sampler=self.sampler,
            collate_fn=self.data.collate,
            pin_memory=self.accelerator.device.type == "cuda",  # whence a GPU takes it several times as fast
            generator=worker_seeds(self.config.seed),
            **worker_options(self.config.num_workers),
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * math.ceil(len(self.sampler) / self.config.gradient_accumulation_steps)

    def progress(self) -> float:
        """Return the share of the run that is done, by whichever limit is nearer (all processes together)."""
        share = self.step_number / self.steps
        if self.config.max_seconds:
            share = max(share, self.seconds / self.config.max_seconds)
        return self.stopping.agree(share, self.accelerator.device)

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, write the results, and return the log's records of this part.

        Where SIGTERM or SIGINT asks to stop (`stopping.signal` says so afterwards), the step ends and a checkpoint is
        written, but no results.
        """
        self.resume()
        with stop_requests() as self.stopping:
            with self.autocasting():
                self._train()
            if self._saved != self._standing:
                self.save_checkpoint()
            if self.stopping.signal:
                logger.warning("stopped after step %d of %d; --resume goes on", self.step_number, self.steps)
            elif self.accelerator.is_main_process:
                self.write_results()
            self.accelerator.wait_for_everyone()
        return self.log.records if self.log is not None else []

    def autocasting(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that steps run in: adapters leave changes of dtype to autocast, if there is any."""
        return adapters.casts_left_to_autocast(self.branch.vl_model, self.accelerator.mixed_precision != "no")

    def _train(self) -> None:
        main = self.accelerator.is_main_process
        self.log = RunLog(self.folder, self.step_number) if main else None
        shown = Progress(self.steps, "train", "step", initial=self.step_number, shown=main)
        start, before = time.perf_counter(), self.seconds
        self.branch.train()
        progress = self.progress()
        self._part = int(progress * _PARTS)
        while self.epoch < self.config.epochs and progress < 1 and not self.stopping.signal:
            for parts in self._steps_of_epoch():
                losses = self.step(parts, progress)
                self.seconds = before + time.perf_counter() - start
                shown.update()
                self._at_intervals(losses, progress, shown)
                progress = self.progress()
                if progress >= 1 or self.stopping.signal:
                    break
            else:
                if not self.stopping.signal:
                    self.epoch, self.batches_done = self.epoch + 1, 0
        shown.close()
        if self.data.val is not None and self.best_step != self.step_number and not self.stopping.signal:
            self.validate()

    def _steps_of_epoch(self) -> Iterator[list[Batch]]:
        """Yield the batches of one step after another, from where the epoch stands."""
        if hasattr(self.data.train, "set_epoch"):
            self.data.train.set_epoch(self.epoch)
        self.sampler.set_epoch(self.epoch, self.batches_done)
        batches = iter(self.loader)
        while parts := self._parts_of_step(batches):
            self.batches_done += len(parts)
            yield parts

    def _parts_of_step(self, batches: Iterator[Batch]) -> list[Batch]:
        try:
            return list(itertools.islice(batches, self.config.gradient_accumulation_steps))
        except RuntimeError:  # of a signal to all of a program's processes, those that read data die at once
            if not self.stopping.received or self.accelerator.num_processes > 1:
                raise
            self.stopping.signal = self.stopping.received
            return []

    def step(self, parts: Sequence[Batch], progress: float) -> dict[str, float]:
        """Run one optimizer step over its batches and return its loss and the norm of its gradients."""
        counts = [int((part["labels"] != IGNORED_LABEL).sum()) for part in parts]
        total = self._sum(float(sum(counts)))
        summed = torch.zeros((), device=self.accelerator.device)
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            last = number == len(parts) - 1
            # Processes that share a sharded model run it equally often, whoever has such rows.
            keep_plain = self.keep_plain and (self.sharding or bool(without_object(part["input_ids"]).any()))
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():  # which Accelerate puts round a model of DDP, but not of FSDP
                    losses = self.model(
                        **self._on_device(part),
                        loss_only=True,
                        keep_plain=keep_plain,
                        contrastive_weight=self.config.contrastive_weight,
                    )
                # Gradients are averaged over processes, but the mean is over all their tokens.
                self.accelerator.backward(losses["loss"] * (count * self.accelerator.num_processes / total))
            summed += losses["answer_loss"] * count
        norm = self._update(progress)
        self.step_number += 1
        self.objects += sum(len(part["labels"]) for part in parts) * self.accelerator.num_processes
        return {"loss": self._sum(float(summed)) / total, "grad_norm": norm}

    def _on_device(self, batch: Batch) -> Batch:
        """Return a batch as the model takes it: vectors are looked up here, for they are most of what would move."""
        moved = _moved(batch, self.accelerator.device)
        if "codes_3d" in moved:
            if self.codebook is None:
                raise ValueError("batches have codes_3d without their vectors, but AlignmentData has no codebook")
            moved["feats_3d"] = F.embedding(moved.pop("codes_3d"), self.codebook)  # [M, D]
        return moved

    def _update(self, progress: float) -> float:
        """Clip and step; a step whose gradients aren't finite is left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(progress, group["from"], self.config.warmup_ratio)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.sharding:
            average_gradients(parameters, self.accelerator.num_processes)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum(self, value: float) -> float:
        """Sum over processes."""
        if self.accelerator.num_processes == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        torch.distributed.all_reduce(summed)
        return float(summed)

    def _at_intervals(self, losses: Mapping[str, float], progress: float, shown: Progress) -> None:
        number, config = self.step_number, self.config
        shown.say(loss=f"{losses['loss']:.3f}", epoch=self.epoch)
        if shown.count == _STEPS_TO_JUDGE:
            self._foretell(shown)
        if self.log is not None and (number % config.log_every == 0 or number == 1):
            rates = [group["lr"] for group in self.optimizer.param_groups]
            more = {"seconds": self.seconds, "epoch": self.epoch, "objects": self.objects, "skipped": self.skipped}
            self.log.write("train", number, {**losses, **more, "lr": rates[0], "lr_lora": rates[-1]})
            logger.info("epoch %d step %d of %d loss %.4f", self.epoch, number, self.steps, losses["loss"])
        if self.data.val is not None and number % config.val_every == 0:
            self.validate()
        if number % config.save_every == 0 or int(progress * _PARTS) > self._part:
            self.save_checkpoint()
        self._part = int(progress * _PARTS)

    def _foretell(self, shown: Progress) -> None:
        """Say how long the run takes at the pace of its first steps, and what shortens it."""
        left = shown.seconds_left or 0.0
        if self.config.max_seconds:
            left = min(left, max(0.0, self.config.max_seconds - self.seconds))
        pace = shown.seconds / shown.count
        words = f"about {in_time(left)} for {self.steps - self.step_number:,} more steps at {pace:.1f} s a step"
        if left > _LONG:
            words += f"; it takes less with {_SHORTER}"
        logger.info("%s", words)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure both validation losses, remember the weights if they are the best, and return the losses.

        Batches hold two objects at least, where there are so many: one alone has no other shape beside it.
        Every process runs equally many batches, for those that share a sharded model wait for each other. One that
        has no objects left runs the first ones again, which don't count.
        """
        assert self.data.val is not None
        self.branch.eval()
        as_written = uncompiled() if self.config.compile_layers else contextlib.nullcontext()
        sums = [0.0, 0.0, 0.0]
        size, rank, world = (
            max(2, self.config.batch_size),
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        numbers = list(range(len(self.data.val)))  # type: ignore[arg-type]
        for first in range(0, len(numbers), world * size):
            own = numbers[first + rank * size : first + (rank + 1) * size]
            batch = self.data.collate([self.data.val[i] for i in own or numbers[:size]])
            batch = self._on_device(batch)
            count = int((batch["labels"] != IGNORED_LABEL).sum()) if own else 0
            with self.accelerator.autocast(), as_written:
                sums[0] += float(self.branch(**batch, loss_only=True)["loss"]) * count
                sums[1] += float(self.branch(**with_other_shapes(batch), loss_only=True)["loss"]) * count
            sums[2] += count
        self.branch.train()
        matching, other, tokens = (self._sum(value) for value in sums)
        losses = {"val_loss": matching / tokens, "val_loss_other_shape": other / tokens}
        gap = losses["val_loss_other_shape"] - losses["val_loss"]
        scores = {"gap": gap, "val_loss": -losses["val_loss"], "last": float(self.step_number)}
        score = scores[self.config.best_by]
        if math.isfinite(score) and score >= self.best_score:
            self.best_score, self.best_step = score, self.step_number
            self.best_losses = losses
            self.best = {name: value.detach().cpu().clone() for name, value in self.trained.state_dict().items()}
        if self.log is not None:
            self.log.write("val", self.step_number, {**losses, "seconds": self.seconds})
            logger.info("step %d: %s", self.step_number, {k: round(v, 4) for k, v in losses.items()})
        return losses

    def save_checkpoint(self) -> None:
        """Write everything that the next step depends on (all processes together)."""
        state = {
            "step": self.step_number,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "seconds": self.seconds,
            "objects": self.objects,
            "skipped": self.skipped,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "best_step": self.best_step,
            "best_losses": self.best_losses,
        }
        checkpoints.write(
            self.folder,
            self.step_number,
            self.accelerator,
            model=self.trained,
            averages=[] if self.best is None else [_Held(self.best)],
            optimizer=self.optimizer,
            state=state,
            rank_state={},
            rank_tensors=checkpoints.generator_states(self.accelerator.device),
            keep=_KEPT_CHECKPOINTS,
        )
        self._saved = self._standing

    @property
    def _standing(self) -> tuple[int, int]:
        """What of a checkpoint can change: how far the run is, and which weights are the best."""
        return self.step_number, self.best_step

    def resume(self) -> None:
        """Go on from the folder's latest checkpoint, if there is one.

        Raises:
            ValueError: it belongs to a run of another number of processes, or does not fit the model.
        """
        steps = checkpoints.checkpoint_steps(self.folder)
        if not steps:
            return
        found = checkpoints.read(self.folder, steps[-1], self.accelerator.process_index)
        state = found.state
        if state["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{self.folder} holds a run of {state['processes']} processes, this one has "
                f"{self.accelerator.num_processes}: start it the same way"
            )
        self.trained.load(found.model)
        checkpoints.restore_optimizer(self.trained, self.optimizer, found.optimizer)
        self.step_number, self.epoch, self.batches_done = state["step"], state["epoch"], state["batches_done"]
        self.seconds, self.objects, self.skipped = state["seconds"], state["objects"], state["skipped"]
        if found.averages:
            if "best_score" not in state:
                raise ValueError(f"{self.folder} holds a run of an earlier version, which this one can't go on with")
            self.best = dict(found.averages[0])
            self.best_score, self.best_step = state["best_score"], state["best_step"]
            self.best_losses = state["best_losses"]
        checkpoints.restore_generators(found.rank_tensors, self.accelerator.device)
        logger.info("going on from step %d in %s", self.step_number, self.folder)

    def write_results(self) -> None:
        """Write `projector_final.pt` and `lora_final/` with the best weights (the first process only)."""
        if self.best is not None and self.best_step != self.step_number:
            self.trained.load(self.best)
            logger.info("the results are the weights of step %d, the best by %s", self.best_step, self.config.best_by)
        self.branch.save_projector(self.folder / PROJECTOR_FINAL, prompt=self.config.prompt, vae_hash=self.vae_hash)
        self.branch.save_lora(self.folder / LORA_FINAL)
        summary = {
            "steps": self.step_number,
            "best_step": self.best_step,
            "val_loss": self.best_losses.get("val_loss"),
            "val_loss_other_shape": self.best_losses.get("val_loss_other_shape"),
            "objects": self.objects,
            "seconds": round(self.seconds, 1),
        }
        write_json(self.folder / RESULT, summary)


def rate(progress: float, begin: float, warmup: float) -> float:
    """Return the share of the peak rate: 0 before `begin`, a linear warm-up, a cosine to 2 %."""
    if progress < begin or begin >= 1:
        return 0.0
    own = (progress - begin) / (1 - begin)
    rise = 1.0 if warmup <= 0 else min(1.0, (own + 1e-3) / warmup)
    return rise * (_LOWEST_RATE + (1 - _LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, own))))


def with_other_shapes(batch: Batch) -> Batch:
    """Return the batch with every object's words beside the next object's shape: the blind control.

    A batch of one object stays as it is.
    """
    moved = dict(batch)
    if "mask_3d" in batch:
        for name in ("feats_3d", "coords_3d", "mask_3d"):
            moved[name] = batch[name].roll(1, 0)
        return moved
    if "inputs_3d" in batch:
        fields = batch["inputs_3d"]
        order, numbers = _turned(fields["batch_idx"])
        moved["inputs_3d"] = {name: value[order] for name, value in fields.items()} | {"batch_idx": numbers}
        return moved
    order, numbers = _turned(batch["coords_3d"][:, 0])
    coords = batch["coords_3d"][order]
    moved["feats_3d"] = batch["feats_3d"][order]
    moved["coords_3d"] = torch.cat([numbers[:, None].to(coords.dtype), coords[:, 1:]], dim=1)
    return moved


def _turned(objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of rows after object i becomes i + 1 (the last one 0), and the new numbers in that order."""
    numbers = (objects + 1) % (objects.max() + 1)
    order = torch.argsort(numbers, stable=True)
    return order, numbers[order]


class _Trained(nn.Module):
    """The trained parameters of a model under names that a checkpoint may have, sharing their memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters. Raises a ValueError unless names and shapes are the same."""
        own = dict(self.named_parameters())
        if {n: p.shape for n, p in own.items()} != {n: v.shape for n, v in state.items()}:
            raise ValueError("the checkpoint holds other parameters than this run trains: give the same settings")
        for name, parameter in own.items():
            parameter.copy_(state[name])


class _Held(nn.Module):
    """Values in a module's clothes, for the checkpoint's writer."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


def _moved(batch: Mapping[str, Any], device: torch.device) -> Batch:
    pinned = device.type == "cuda"  # elsewhere the copy might not wait for the source
    return {
        name: _moved(value, device) if isinstance(value, Mapping) else value.to(device, non_blocking=pinned)
        for name, value in batch.items()
    }
