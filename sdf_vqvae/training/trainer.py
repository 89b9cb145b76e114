"""The training loop of the tokenizer: steps, schedule, averages, checkpoints, held-out measures, logs.

One process a device, gradients averaged over processes (Accelerate). What is learned from is in `streams`, what is
minimized in `losses`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.quantizers.codebook_usage import codebook_health
from sdf_vqvae.quantizers.quantizer import first_codes
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training import checkpoints
from sdf_vqvae.training.held_out import measure_held_out, picture_rows
from sdf_vqvae.training.losses import answers_of, object_errors, training_loss
from sdf_vqvae.training.optimizers import make_optimizer
from sdf_vqvae.training.run_log import RunLog
from sdf_vqvae.training.streams import Field, Stream, joined_field
from sdf_vqvae.utils.progress import Progress
from sdf_vqvae.utils.runtime import StopRequest, stop_requests

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_SAMPLES, _FEWEST = 16, 2
"""Latent vectors a code that are kept for the start of the codebook, and without which it doesn't start."""
_PAST_NORMS = 1000
_PERCENTILE_FROM = 20
_PICTURED = 4
"""Held-out objects that are pictured."""
_PARTS = 4
"""Parts of a run, however short, after each of which there is a checkpoint."""


def _moving_average(rate: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of averaged weights: `rate`, but no more than (1 + n) / (10 + n) after n steps.

    Otherwise the weights of the start would weigh most in the first 1 / (1 - rate) steps.
    """

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        now = min(rate, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return torch.no_grad()(update)


class TokenizerTrainer:
    """Trains a `SparseSDFVQVAE` as a `TrainerConfig` says, and goes on where an earlier run in the folder stopped.

    Stages, as in the original system: 1 trains the codebook alone, 2 all, 3 the decoder alone. A model that comes
    without a codebook sees continuous latents first (`bypass_share`); k-means on the latest of them then places the
    codes. In stage 1 it places them as soon as there are enough vectors.

    Args:
        vae: the model; its weights are where training starts.
        config: see there.
        stream: training objects of this process.
        held_out: objects that are measured and pictured, never trained on.
        folder: where everything is written.
        accelerator: devices and processes; by default this process alone, on the model's device.
        has_codebook: the model's codebook has been trained.
        settings: what is recorded beside the checkpoints; a run with other settings can't go on from them.

    Raises:
        ValueError: the folder holds a run with other settings or another number of processes.
    """

    def __init__(
        self,
        vae: SparseSDFVQVAE,
        config: TrainerConfig,
        stream: Stream,
        *,
        held_out: Sequence[Field] = (),
        folder: Path,
        accelerator: Accelerator | None = None,
        has_codebook: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = accelerator or Accelerator(cpu=vae.device.type == "cpu")
        self.device = self.accelerator.device
        self.vae = vae.to(self.device).train()
        self.config = config
        self.stream = stream
        self.held_out = list(held_out)
        self.folder = folder
        self.settings = dict(settings or {})
        self._freeze()
        self.optimizer = make_optimizer(vae, config, self.device)
        self.model = vae if self.optimizer is None else self.accelerator.prepare(vae)
        self.averages = [
            AveragedModel(vae, multi_avg_fn=_moving_average(rate), use_buffers=False) for rate in config.ema_rate
        ]
        self.counts = torch.zeros(vae.config.num_embeddings, device=self.device)
        self.reservoir: list[Tensor] = []
        self.quantizing = has_codebook or vae.vq.fixed
        self.past_norms: deque[float] = deque(maxlen=_PAST_NORMS)
        self.step_number = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.objects = 0
        self.skipped = 0
        self.log: RunLog | None = None
        self.stopping = StopRequest()
        self._part = 0
        if steps := checkpoints.checkpoint_steps(folder):
            self._check_same_run(checkpoints.read_state(folder, steps[-1]))

    def _freeze(self) -> None:
        """Leave only what the stage trains."""
        if self.config.training_stage != 2:
            self.vae.encoder.requires_grad_(False)
            if self.config.training_stage == 1:
                self.vae.decoder.requires_grad_(False)
            else:
                self.vae.vq.requires_grad_(False)

    def _modes(self) -> None:
        """Set training mode; the averages of a frozen codebook must not move."""
        self.vae.train()
        if self.config.training_stage == 3:
            self.vae.vq.eval()

    def progress(self) -> float:
        """Return the share of the run that is done, by whichever limit is nearer (all processes together)."""
        shares = [self.step_number / self.config.max_steps]
        if self.config.max_seconds:
            shares.append(self.seconds / self.config.max_seconds)
        if self.config.max_epoch:
            shares.append(self.stream.epoch / self.config.max_epoch)
        return self.stopping.agree(max(shares), self.device)

    @property
    def _distributed(self) -> bool:
        return self.accelerator.num_processes > 1

    def learning_rate(self, progress: float) -> float:
        """Linear warm-up, then constant or a cosine down to `lr_min`."""
        config = self.config
        warm = min(1.0, (self.step_number + 1) / max(1, config.warmup_steps))
        done = progress if config.cosine_over_run else 0.0
        if config.cosine_steps:
            done = self.step_number / config.cosine_steps
        return warm * (config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def step(self, progress: float) -> dict[str, Tensor]:
        """Draw objects, run one optimizer step, and return its measurements, still on the device."""
        config = self.config
        self._place_codebook(progress)
        total: dict[str, Tensor] = {}
        errors: list[Tensor] = []
        count = config.batch_size_per_gpu // config.batch_split
        for part in range(config.batch_split):
            before = time.perf_counter()
            drawn = self.stream.draw(count)
            self.waited += time.perf_counter() - before
            field = joined_field(drawn, self.vae.config.data_resolution, self.device)
            last = part == config.batch_split - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                measured = self._forward_backward(field, errors)
            for name, value in measured.items():
                total[name] = (
                    total.get(name, torch.zeros((), device=self.device)) + value.detach() / config.batch_split
                )
        self.objects += config.batch_size_per_gpu * self.accelerator.num_processes
        if self.optimizer is not None:
            total["grad_norm"] = self._update(self.optimizer, progress)
        if self.stream.learn is not None:
            self.stream.learn(torch.cat(errors).tolist())  # the device is done with them: `_update` waited for it
        for average in self.averages:
            average.update_parameters(self.vae)
        return total

    def _forward_backward(self, field: SparseTensor, errors: list[Tensor]) -> dict[str, Tensor]:
        """Compute gradients and return the measurements; the objects' errors go into the list."""
        with self._precision():
            out = self.model(field, bypass=not self.quantizing)
            answers = answers_of(out, field, self.vae.config, thin=self.config.thin_weight > 0)
            loss, parts = training_loss(out, answers, self.config)
        if self.stream.learn is not None:
            errors.append(object_errors(answers))
        if self.quantizing:
            counted = torch.bincount(first_codes(out["indices"]), minlength=len(self.counts))
            self.counts.mul_(0.9).add_(counted)
        else:
            self.reservoir.append(out["latent"].feats.detach())
            while self._sampled() - len(self.reservoir[0]) >= _SAMPLES * len(self.counts):
                del self.reservoir[0]
            # Every parameter takes part in every step, or the processes would wait for its gradient.
            loss = loss + 0 * sum(p.sum() for p in self.vae.vq.parameters() if p.requires_grad)
        if self.optimizer is not None:
            self.accelerator.backward(loss / self.config.batch_split)
        return parts

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        half = self.config.fp16_mode is not None and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext()

    def _update(self, optimizer: torch.optim.Optimizer, progress: float) -> Tensor:
        """Clip, step, and return the norm of the gradients. A step with gradients that aren't finite is left out."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(progress)
        limits = [self.config.grad_clip] if self.config.grad_clip is not None else []
        if self.config.clip_percentile is not None and len(self.past_norms) >= _PERCENTILE_FROM:
            past = torch.tensor(self.past_norms)
            limits.append(float(torch.quantile(past, self.config.clip_percentile / 100)))
        norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), min(limits, default=math.inf))
        if bool(torch.isfinite(norm)):
            optimizer.step()
            self.past_norms.append(float(norm))
        else:
            self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _place_codebook(self, progress: float) -> None:
        """Start quantizing when it is time and there are enough latent vectors."""
        if self.quantizing:
            return
        early = self.config.training_stage != 2
        enough = self._sampled() >= _FEWEST * len(self.counts)
        if enough and (early or progress >= self.config.bypass_share):
            samples = torch.cat(self.reservoir)
            self.vae.vq.initialize(samples)
            self.reservoir = []
            self.quantizing = True
            logger.info("codebook placed by k-means on %d latent vectors", len(samples))

    def _sampled(self) -> int:
        return sum(len(part) for part in self.reservoir)

    def run(self) -> list[dict[str, Any]]:
        """Train until a limit is reached and return this part's log records.

        Where SIGTERM or SIGINT asks to stop (`stopping.signal` says so afterwards), the step ends and a checkpoint is
        written.
        """
        with stop_requests() as self.stopping:
            return self._run()

    def _run(self) -> list[dict[str, Any]]:
        self.resume()
        main = self.accelerator.is_main_process
        self.log = RunLog(self.folder, self.step_number) if main else None
        start, before = time.perf_counter(), self.seconds
        self._modes()
        self._part = int(self.progress() * _PARTS)
        with Progress(self.config.max_steps, "train", "step", initial=self.step_number, shown=main) as shown:
            while (progress := self.progress()) < 1 and not self.stopping.signal:
                measured = self.step(progress)
                self.step_number += 1
                self.seconds = before + time.perf_counter() - start
                shown.update()
                self._at_intervals(measured, progress, shown)
        if self.stopping.signal:
            logger.warning("stopped after step %d; the same command goes on", self.step_number)
        elif self.step_number % self.config.i_sample:
            self._hold_out()
        self.save()
        self.export()
        return self.log.records if self.log is not None else []

    def _at_intervals(self, measured: dict[str, Tensor], progress: float, shown: Progress) -> None:
        config, number = self.config, self.step_number
        if self.log is not None and (number % config.i_log == 0 or number == 1):
            record = self.log.write("train", number, self._record(measured, progress))
            shown.say(**{k: f"{record[k]:.4f}" for k in ("l1", "l1_near", "occupancy") if k in record})
            if number % config.i_print == 0:
                logger.info("step %d, %.0f s: %s", number, self.seconds, shown)
        if number % config.i_sample == 0:
            self._hold_out()
        if number % config.i_save == 0 or int(progress * _PARTS) > self._part:
            self.save()
            self.export()
        self._part = int(progress * _PARTS)
        if self._distributed and number % config.i_ddpcheck == 0:
            self.check_processes()

    def _record(self, measured: dict[str, Tensor], progress: float) -> dict[str, float]:
        names = sorted(measured)
        values = torch.stack([measured[name].float() for name in names]).tolist()
        health = codebook_health(self.counts)
        record = {
            "seconds": self.seconds,
            "seconds_drawing": self.waited,
            "objects": self.objects,
            "learning_rate": self.learning_rate(progress),
            "perplexity": health.perplexity,
            "skipped_steps": self.skipped,
            **dict(zip(names, values, strict=True)),
        }
        if self.device.type == "cuda":
            record["peak_gigabytes"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return record

    def _hold_out(self) -> None:
        """Measure the averaged weights on the held-out objects and picture some (the first process only)."""
        if self.log is None or not self.held_out:
            return
        vae = self.averaged().eval()
        with self._precision():
            measures = measure_held_out(vae, self.held_out, self.config, quantizing=self.quantizing)
        self.log.write("held_out", self.step_number, {"seconds": self.seconds, "objects": self.objects, **measures})
        if not self.config.disable_snapshot:
            with self._precision():
                self.log.picture(self.step_number, picture_rows(vae, self.held_out[:_PICTURED]))
        self._modes()

    def averaged(self) -> SparseSDFVQVAE:
        """Return the averaged weights (the first of `ema_rate`) with the current codebook, or the current ones."""
        if not self.averages:
            return self.vae
        averaged = self.averages[0].module
        assert isinstance(averaged, SparseSDFVQVAE)
        averaged.vq.load_state_dict(self.vae.vq.state_dict())
        return averaged

    def export(self) -> None:
        """Write `model.safetensors` and `config.json` that every command reads (the first process only)."""
        if self.accelerator.is_main_process:
            save_vae(self.averaged(), self.folder)

    def save(self) -> None:
        """Write a checkpoint (all processes together)."""
        state = {
            "step": self.step_number,
            "seconds": self.seconds,
            "objects": self.objects,
            "skipped": self.skipped,
            "quantizing": self.quantizing,
            "past_norms": list(self.past_norms),
            "averaged_steps": [int(average.n_averaged) for average in self.averages],
            "settings": self.settings,
        }
        checkpoints.write(
            self.folder,
            self.step_number,
            self.accelerator,
            model=self.vae,
            averages=[average.module for average in self.averages],
            optimizer=self.optimizer,
            state=state,
            rank_state={"stream": self.stream.state()},
            rank_tensors=self._rank_tensors(),
            keep=self.config.keep_checkpoints,
        )

    def _rank_tensors(self) -> dict[str, Tensor]:
        tensors = {**checkpoints.generator_states(self.device), "counts": self.counts.cpu()}
        return tensors | {f"reservoir_{i:06d}": part.cpu().contiguous() for i, part in enumerate(self.reservoir)}

    def resume(self) -> None:
        """Go on from the folder's latest checkpoint, if there is one. Raises a ValueError where it is damaged."""
        steps = checkpoints.checkpoint_steps(self.folder)
        if not steps:
            return
        snapshot = checkpoints.read(self.folder, steps[-1], self.accelerator.process_index)
        self.vae.load_state_dict(snapshot.model)
        for average, tensors, count in zip(
            self.averages, snapshot.averages, snapshot.state["averaged_steps"], strict=True
        ):
            average.module.load_state_dict(tensors)
            average.n_averaged.fill_(count)
        if self.optimizer is not None:
            checkpoints.restore_optimizer(self.vae, self.optimizer, snapshot.optimizer)
        self.step_number = int(snapshot.state["step"])
        self.seconds = float(snapshot.state["seconds"])
        self.objects = int(snapshot.state["objects"])
        self.skipped = int(snapshot.state["skipped"])
        self.quantizing = bool(snapshot.state["quantizing"])
        self.past_norms.extend(snapshot.state["past_norms"])
        self.stream.restore(snapshot.rank_state["stream"])
        rank_tensors = snapshot.rank_tensors
        self.counts.copy_(rank_tensors["counts"])
        self.reservoir = [
            rank_tensors[name].to(self.device) for name in sorted(rank_tensors) if name.startswith("reservoir")
        ]
        checkpoints.restore_generators(rank_tensors, self.device)
        logger.info("going on from step %d in %s", self.step_number, self.folder)

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        processes = self.accelerator.num_processes
        if state["processes"] != processes:
            raise ValueError(
                f"{self.folder} holds a run of {state['processes']} processes, this one has {processes}: start it "
                "the same way, or give another --output_dir"
            )
        before = state["settings"]
        changed = sorted(key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key))
        if changed:
            pairs = ", ".join(f"{k} {before.get(k)!r} -> {self.settings.get(k)!r}" for k in changed)
            raise ValueError(
                f"{self.folder} holds a run with other settings ({pairs}): give those, or another --output_dir"
            )

    def check_processes(self) -> None:
        """Raise a RuntimeError unless all processes hold the same weights."""
        sums = torch.stack([p.detach().double().sum() for p in self.vae.state_dict().values()])
        first = sums.clone()
        dist.broadcast(first, 0)
        if not bool((first == sums).all()):
            raise RuntimeError(f"process {self.accelerator.process_index} holds other weights than process 0")
