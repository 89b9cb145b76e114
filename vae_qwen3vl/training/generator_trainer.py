"""Training of a generator: a run folder with logs, checkpoints that the next step depends on, and the generator.

    train_args.json  log.jsonl  tensorboard/  checkpoints/  objects.json
    generator.safetensors  config.json    averaged weights, at every checkpoint and at the end
    result.json                           what the run came to; where there is none it was stopped

Knows data, networks and processes; nothing of meshes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sdf_vqvae.training import checkpoints
from sdf_vqvae.training.run_log import RunLog
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.progress import Progress
from sdf_vqvae.utils.runtime import StopRequest, stop_requests
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.creation.batches import ShapeBatch
from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.generator import ShapeGenerator
from vae_qwen3vl.creation.generator_file import GeneratorAbout, save_generator
from vae_qwen3vl.training.generator_config import GeneratorTraining
from vae_qwen3vl.training.generator_data import GeneratorBatches, GeneratorData
from vae_qwen3vl.training.processes import summed
from vae_qwen3vl.training.run_folder import RESULT, RunObjects
from vae_qwen3vl.training.schedule import rate

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

ARGUMENTS = "train_args.json"
_KEPT_CHECKPOINTS = 2
_PARTS = 4
"""Parts of a run, however short, after each of which there is a checkpoint."""
_BETAS = (0.9, 0.98)


def new_generator(config: GeneratorTraining, data: GeneratorData, text_width: int) -> ShapeGenerator:
    """Return a generator of random weights for the codes of some data, by PyTorch's generator."""
    manifest, codebook = data.codes.manifest, data.codes.codebook
    architecture = GeneratorConfig(
        side=manifest.latent_resolution,
        codebook_size=len(codebook),
        code_width=codebook.shape[1],
        text_width=text_width,
        width=config.width,
        heads=config.heads,
        where_blocks=config.where_blocks,
        what_blocks=config.what_blocks,
        dropout=config.dropout,
    )
    return ShapeGenerator(architecture, codebook)


class GeneratorTrainer:
    """Trains a generator as its settings say.

    Args:
        generator: see `new_generator`.
        config: see there.
        data: what to learn from.
        words: of `GeneratorData.words`.
        accelerator: devices and processes.

    Raises:
        ValueError: the run folder holds a run that is not to go on, or one of other settings or processes; or there
            is nothing to go on with.
    """

    def __init__(
        self,
        generator: ShapeGenerator,
        config: GeneratorTraining,
        data: GeneratorData,
        words: Mapping[str, Tensor],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.folder = Path(config.output_dir)
        self._check_folder()
        self.generator = generator.to(accelerator.device)
        self.average = AveragedModel(self.generator, multi_avg_fn=self._averaged)
        self.averaged = cast(ShapeGenerator, self.average.module)
        self.batches = GeneratorBatches(
            data, words, config, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=0.0, betas=_BETAS, weight_decay=config.weight_decay
        )
        self.prepared = accelerator.prepare(self.generator)
        self.epoch = self.batches_done = self.step_number = self.objects = self.skipped = 0
        self.seconds = 0.0
        self.log: RunLog | None = None
        self.stopping = StopRequest()
        self._saved = -1
        self._part = 0
        self._measured: dict[str, float] = {}

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.batches)

    def progress(self) -> float:
        """Return the share of the run that is done, by whichever limit is nearer (all processes together)."""
        share = self.step_number / self.steps
        if self.config.max_seconds:
            share = max(share, self.seconds / self.config.max_seconds)
        return self.stopping.agree(share, self.accelerator.device)

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, write the result, and return the log's records of this part.

        Where SIGTERM or SIGINT asks to stop (`stopping.signal` says so afterwards), the step ends and a checkpoint is
        written, but no result.
        """
        self._resume()
        main = self.accelerator.is_main_process
        self.log = RunLog(self.folder, self.step_number) if main else None
        if main:
            write_json(self.folder / ARGUMENTS, self.config.decisive(), indent=1)
            RunObjects(train=tuple(self.data.names), val=tuple(self.data.val_names)).save(self.folder)
        with stop_requests() as self.stopping:
            self._train()
            if self.stopping.signal:
                logger.warning("stopped after step %d of %d; --resume goes on", self.step_number, self.steps)
            else:
                self.measure()
            if self._saved != self.step_number:
                self.save_checkpoint()
            if main and not self.stopping.signal:
                self._write_result()
            self.accelerator.wait_for_everyone()
        return self.log.records if self.log is not None else []

    def _train(self) -> None:
        start, before = time.perf_counter(), self.seconds
        self.generator.train()
        progress = self.progress()
        self._part = int(progress * _PARTS)
        main = self.accelerator.is_main_process
        with Progress(self.steps, "train", "step", initial=self.step_number, shown=main) as shown:
            while self.epoch < self.config.epochs and progress < 1 and not self.stopping.signal:
                for batch in self.batches.of_epoch(self.epoch, self.batches_done):
                    self.batches_done += 1
                    losses = self.step(batch, progress)
                    self.seconds = before + time.perf_counter() - start
                    shown.update()
                    shown.say(where=f"{losses['where']:.3f}", what=f"{losses['what']:.3f}", epoch=self.epoch)
                    self._at_intervals(losses, progress)
                    progress = self.progress()
                    if progress >= 1 or self.stopping.signal:
                        break
                else:
                    self.epoch, self.batches_done = self.epoch + 1, 0

    def step(self, batch: ShapeBatch, progress: float) -> dict[str, float]:
        """Run one step and return its losses and the norm of its gradients; one without a finite norm is left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate(progress, 0.0, self.config.warmup_ratio)
        with self.accelerator.autocast():
            losses = self.prepared(batch.to(self.accelerator.device))
            loss = losses["where"] + losses["what"]
        self.accelerator.backward(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.grad_clip or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.generator)
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        self.objects += len(batch.codes.mask) * self.accelerator.num_processes
        count = self.accelerator.num_processes
        means = {name: summed(float(value.detach()), self.accelerator) / count for name, value in losses.items()}
        return {**means, "grad_norm": norm}

    def _averaged(self, averages: Any, current: Any, steps: Any) -> None:
        decay = min(self.config.average, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, current, 1 - decay)

    def _at_intervals(self, losses: Mapping[str, float], progress: float) -> None:
        number, config = self.step_number, self.config
        if self.log is not None and (number % config.log_every == 0 or number == 1):
            more = {"seconds": self.seconds, "epoch": self.epoch, "objects": self.objects, "skipped": self.skipped}
            self.log.write("train", number, {**losses, **more, "lr": self.optimizer.param_groups[0]["lr"]})
        if number % config.val_every == 0:
            self.measure()
        if number % config.save_every == 0 or int(progress * _PARTS) > self._part:
            self.save_checkpoint()
        self._part = int(progress * _PARTS)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Measure the averaged weights on what is not trained on (the first process), and return the record.

        `bits` bounds from above, in bits an object, how long the object's description is given its words (see
        `ShapeGenerator.code_length`), of which `where_bits` are its cells and the rest its codes, `bits_a_code`;
        `bits_other_words` is the same with another object's words: only the difference says that words are read.
        """
        if not self.accelerator.is_main_process or self.data.val is None:
            return {}
        model = self.averaged.eval()
        where: list[Tensor] = []
        what: list[Tensor] = []
        other: list[Tensor] = []
        codes = 0
        for own, others in self.batches.kept_apart():
            codes += int(own.codes.mask.sum())
            for batch, sums in ((own, None), (others, other)):
                random = torch.Generator().manual_seed(0)
                with self.accelerator.autocast():
                    bound = model.code_length(batch.to(self.accelerator.device), random)
                if sums is None:
                    where.append(bound["where"].float().cpu())
                    what.append(bound["what"].float().cpu())
                else:
                    sums.append((bound["where"] + bound["what"]).float().cpu())
        where_bits, what_bits, other_bits = (
            float(torch.cat(parts).double().sum()) / math.log(2) for parts in (where, what, other)
        )
        count = sum(map(len, where))
        self._measured = {
            "bits": (where_bits + what_bits) / count,
            "where_bits": where_bits / count,
            "bits_a_code": what_bits / codes,
            "bits_other_words": other_bits / count,
        }
        if self.log is not None:
            self.log.write("val", self.step_number, {**self._measured, "seconds": self.seconds})
        logger.info("step %d: %s", self.step_number, {k: round(v, 3) for k, v in self._measured.items()})
        return self._measured

    def save_checkpoint(self) -> None:
        """Write everything that the next step depends on (all processes together), and the generator as it stands."""
        state = {
            "step": self.step_number,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "seconds": self.seconds,
            "objects": self.objects,
            "skipped": self.skipped,
        }
        checkpoints.write(
            self.folder,
            self.step_number,
            self.accelerator,
            model=self.generator,
            averages=[self.average],
            optimizer=self.optimizer,
            state=state,
            rank_state={},
            rank_tensors=checkpoints.generator_states(self.accelerator.device),
            keep=_KEPT_CHECKPOINTS,
        )
        self._saved = self.step_number
        if self.accelerator.is_main_process:
            self._write_generator()

    def _write_generator(self) -> None:
        manifest = self.data.codes.manifest
        about = GeneratorAbout(
            vae_hash=manifest.vae_hash,
            data_resolution=manifest.data_resolution,
            sentence_model=self.config.sentence_model,
            trained_on=f"{len(self.data.names)} objects, {self.step_number} steps",
        )
        save_generator(self.averaged, about, self.folder)

    def _write_result(self) -> None:
        summary = {"steps": self.step_number, "objects": self.objects, "skipped": self.skipped, **self._measured}
        write_json(self.folder / RESULT, {**summary, "seconds": round(self.seconds, 1)}, indent=1)

    def _check_folder(self) -> None:
        """Raise a ValueError unless the run folder is new, or holds the run that is to go on."""
        there = self.folder / ARGUMENTS
        if not self.config.resume:
            if there.is_file():
                raise ValueError(
                    f"--output_dir {self.folder} holds a run: --resume goes on with it, or give another folder"
                )
            return
        if not there.is_file() or not checkpoints.checkpoint_steps(self.folder):
            raise ValueError(f"resume: there is no run with a checkpoint in {self.folder}")
        earlier, now = parse_json(there.read_bytes()), self.config.decisive()
        names = [name for name in now if not isinstance(earlier, dict) or earlier.get(name) != now[name]]
        if names:
            changed = ", ".join(f"{name} {earlier.get(name)!r} -> {now[name]!r}" for name in names)
            raise ValueError(f"resume: the run in {self.folder} has other settings: {changed}")

    def _resume(self) -> None:
        if not self.config.resume:
            return
        snapshot = checkpoints.read(
            self.folder, checkpoints.checkpoint_steps(self.folder)[-1], self.accelerator.process_index
        )
        state = snapshot.state
        if state["processes"] != self.accelerator.num_processes:
            raise ValueError(f"resume: the run in {self.folder} is one of {state['processes']} processes")
        self.generator.load_state_dict(snapshot.model)
        self.average.load_state_dict(snapshot.averages[0])
        checkpoints.restore_optimizer(self.generator, self.optimizer, snapshot.optimizer)
        self.step_number, self.epoch, self.batches_done = state["step"], state["epoch"], state["batches_done"]
        self.seconds, self.objects, self.skipped = state["seconds"], state["objects"], state["skipped"]
        self._saved = self.step_number
        checkpoints.restore_generators(snapshot.rank_tensors, self.accelerator.device)
        logger.info("going on from step %d in %s", self.step_number, self.folder)
