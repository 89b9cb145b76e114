"""The training loop of the language side: the projector learns first, then adapters with it, on one process or many.

Data and model come from outside; here are steps, what happens between them, checkpoints and what a run leaves behind.
Only what is trained is kept in checkpoints: language model and tokenizer stay what they were.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdf_vqvae.training import checkpoints
from sdf_vqvae.training.run_log import RunLog
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.progress import Progress, in_time
from sdf_vqvae.utils.runtime import StopRequest, stop_requests
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.language import adapters
from vae_qwen3vl.layout import without_object
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.trained_parts import LORA_FINAL, PROJECTOR_FINAL
from vae_qwen3vl.training.batches import TrainingBatches
from vae_qwen3vl.training.losses import AlignmentObjective
from vae_qwen3vl.training.processes import average_gradients, is_sharding, shard_frozen, summed
from vae_qwen3vl.training.run_data import AlignmentData, Batch
from vae_qwen3vl.training.run_folder import RESULT
from vae_qwen3vl.training.schedule import is_adapter, make_optimizer, set_rates
from vae_qwen3vl.training.trained_weights import BestWeights, TrainedWeights
from vae_qwen3vl.training.validation import validation_losses

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_KEPT_CHECKPOINTS = 2
_STEPS_TO_JUDGE = 3
"""Steps after which a run says how long it will take: the first one is slower than the rest."""
_LONG = 300.0
"""Seconds from which a run says what would shorten it."""
_SHORTER = "--max_samples, --epochs or --max_3d_tokens, with cached codes, or on a GPU"
_PARTS = 4
"""Parts of a run, however short, after each of which there is a checkpoint."""


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
        self.objective = AlignmentObjective(model, config.contrastive_weight)
        self.batches = TrainingBatches(data, config, accelerator)
        self.trained = TrainedWeights(model)
        self.best = BestWeights(config.best_by)
        self.optimizer = make_optimizer(model, config)
        self.keep_plain = data.plain and any(p.requires_grad and is_adapter(n) for n, p in model.named_parameters())
        if self.sharding:
            self.prepared = shard_frozen(self.objective, self.optimizer, accelerator)
        else:
            self.prepared = accelerator.prepare(self.objective)
        self.epoch = 0
        self.batches_done = 0
        self.step_number = 0
        self.seconds = 0.0
        self.objects = 0
        self.skipped = 0
        self.log: RunLog | None = None
        self.stopping = StopRequest()
        self._saved: tuple[int, int] | None = None
        self._part = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * self.batches.steps_an_epoch

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
        start, before = time.perf_counter(), self.seconds
        self.objective.train()
        progress = self.progress()
        self._part = int(progress * _PARTS)
        with Progress(self.steps, "train", "step", initial=self.step_number, shown=main) as shown:
            while self.epoch < self.config.epochs and progress < 1 and not self.stopping.signal:
                for parts in self.batches.of_epoch(self.epoch, self.batches_done, self.stopping):
                    self.batches_done += len(parts)
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
        if self.data.val is not None and self.best.step != self.step_number and not self.stopping.signal:
            self.validate()

    def step(self, parts: Sequence[Batch], progress: float) -> dict[str, float]:
        """Run one optimizer step over its batches and return its loss and the norm of its gradients."""
        counts = [int((part["labels"] != IGNORED_LABEL).sum()) for part in parts]
        total = summed(float(sum(counts)), self.accelerator)
        answers = torch.zeros((), device=self.accelerator.device)
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            last = number == len(parts) - 1
            # Processes that share a sharded model run it equally often, whoever has such rows.
            keep_plain = self.keep_plain and (self.sharding or bool(without_object(part["input_ids"]).any()))
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                with self.accelerator.autocast():  # which Accelerate puts round a model of DDP, but not of FSDP
                    losses = self.prepared(**self.batches.on_device(part), keep_plain=keep_plain)
                # Gradients are averaged over processes, but the mean is over all their tokens.
                self.accelerator.backward(losses["loss"] * (count * self.accelerator.num_processes / total))
            answers += losses["answer_loss"] * count
        norm = self._update(progress)
        self.step_number += 1
        self.objects += sum(len(part["labels"]) for part in parts) * self.accelerator.num_processes
        return {"loss": summed(float(answers), self.accelerator) / total, "grad_norm": norm}

    def _update(self, progress: float) -> float:
        """Clip and step; a step whose gradients aren't finite is left out."""
        set_rates(self.optimizer, progress, self.config.warmup_ratio)
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

    def validate(self) -> dict[str, float]:
        """Measure both validation losses, remember the weights if they are the best, and return the losses."""
        losses = validation_losses(self.objective, self.batches, self.accelerator)
        self.best.consider(self.step_number, losses, self.trained)
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
            **self.best.state(),
        }
        checkpoints.write(
            self.folder,
            self.step_number,
            self.accelerator,
            model=self.trained,
            averages=self.best.averages(),
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
        return self.step_number, self.best.step

    def resume(self) -> None:
        """Go on from the folder's latest checkpoint, if there is one.

        Raises:
            ValueError: it belongs to a run of another number of processes, or does not fit the model.
        """
        steps = checkpoints.checkpoint_steps(self.folder)
        if not steps:
            return
        snapshot = checkpoints.read(self.folder, steps[-1], self.accelerator.process_index)
        state = snapshot.state
        if state["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{self.folder} holds a run of {state['processes']} processes, this one has "
                f"{self.accelerator.num_processes}: start it the same way"
            )
        self.trained.load(snapshot.model)
        checkpoints.restore_optimizer(self.trained, self.optimizer, snapshot.optimizer)
        self.step_number, self.epoch, self.batches_done = state["step"], state["epoch"], state["batches_done"]
        self.seconds, self.objects, self.skipped = state["seconds"], state["objects"], state["skipped"]
        if snapshot.averages:
            if "best_score" not in state:
                raise ValueError(f"{self.folder} holds a run of an earlier version, which this one can't go on with")
            self.best.restore(state, snapshot.averages[0])
        checkpoints.restore_generators(snapshot.rank_tensors, self.accelerator.device)
        logger.info("going on from step %d in %s", self.step_number, self.folder)

    def write_results(self) -> None:
        """Write `projector_final.pt` and `lora_final/` with the best weights (the first process only)."""
        best = self.best
        if best.weights is not None and best.step != self.step_number:
            self.trained.load(best.weights)
            logger.info("the results are the weights of step %d, the best by %s", best.step, self.config.best_by)
        self.branch.save_projector(self.folder / PROJECTOR_FINAL, prompt=self.config.prompt, vae_hash=self.vae_hash)
        self.branch.save_lora(self.folder / LORA_FINAL)
        summary = {
            "steps": self.step_number,
            "best_step": best.step,
            "val_loss": best.losses.get("val_loss"),
            "val_loss_other_shape": best.losses.get("val_loss_other_shape"),
            "objects": self.objects,
            "seconds": round(self.seconds, 1),
        }
        write_json(self.folder / RESULT, summary)
