"""What a model says about objects, with their own shape and under blind controls: words, and likelihoods of answers.

Every row (`controls`) asks the same prompts about the same objects; only the shape beside them differs. What another
object's shape gives is taken from that object's own run, since the prompt is the same. Runs models; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.answer_confidence import GreedyProbabilities
from vae_qwen3vl.evaluation.closed_sets import ClosedSet
from vae_qwen3vl.evaluation.controls import (
    NEIGHBOR,
    NO_SHAPE,
    OTHER_SHAPE,
    OWN,
    SCATTERED,
    Embed,
    bag_of_words,
    constant_answers,
    nearest_by_codes,
    other_objects,
    scattered,
)
from vae_qwen3vl.evaluation.likelihoods import answer_likelihoods, batches_alike
from vae_qwen3vl.evaluation.objects import TRAIN, EvalData, EvalObject, training_objects
from vae_qwen3vl.evaluation.ranking_metrics import mutual_information
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The scores of one closed set's candidates in each row."""

    asked: ClosedSet
    scores: dict[str, Scores]
    """Row -> log-likelihoods `[objects, candidates]`."""
    lent: dict[str, str] | None = None
    """Object -> the answer of its nearest training object; None where those are not known."""


@dataclass(frozen=True, kw_only=True)
class Interview:
    """Everything that was said."""

    prompt: str
    tokens: list[int]
    """3D tokens of each object, without the two around them."""
    texts: dict[str, list[str]]
    """Row -> a description of each object."""
    probabilities: list[float]
    """Mean probability of the tokens of each object's description."""
    closed: list[Answered] | None = None
    """None where there are no questions."""
    retrieval: dict[str, Scores] = field(default_factory=dict)
    """Row -> pointwise mutual information of every object and every object's first caption: how much likelier the
    words are with this shape than with one of the objects' shapes at random. `[objects, objects]`"""


@dataclass(frozen=True, kw_only=True)
class Interviewer:
    """Asks a model about objects.

    Args:
        model: in evaluation mode.
        processor: of its tokenizer.
        data: the objects.
        batch_size: objects at a time.
        max_new_tokens: length of a description.
        seed: of the controls.
        progress: show progress bars.
        embed: of captions, for the most typical one.
    """

    model: Qwen3VLWith3DBranch
    processor: Processor3D
    data: EvalData
    batch_size: int = 16
    max_new_tokens: int = 128
    seed: int = 0
    progress: bool = True
    embed: Embed = bag_of_words

    def ask(
        self, prompt: str, *, controls: bool, closed: Sequence[ClosedSet] | None = None, retrieval: bool = False
    ) -> Interview:
        """Ask about all objects.

        Args:
            prompt: asks for a description.
            controls: describe in all rows, not only with the objects' own shapes; all objects have captions then.
            closed: questions with a known set of answers.
            retrieval: score every object's first caption with every object; all objects have captions then.
        """
        own, probabilities = self._generate(prompt, self.data.objects, "describe")
        texts = {OWN: own}
        neighbors = None
        if controls:
            known = self._known()
            texts |= self._controls(prompt, texts[OWN], known)
            if known:
                nearest = nearest_by_codes(self.data.objects, known, len(self.data.codebook))
                neighbors = [known[number] for number in nearest]
                texts[NEIGHBOR] = [neighbor.captions[0] for neighbor in neighbors]
        return Interview(
            prompt=prompt,
            tokens=[int(self.model.count_3d_tokens(*self.data.batch([one]))[0]) - 2 for one in self.data.objects],
            texts=texts,
            probabilities=probabilities,
            closed=None if closed is None else [self._answer(asked, neighbors) for asked in closed],
            retrieval=self._retrieve(prompt) if retrieval else {},
        )

    def _controls(self, prompt: str, described: list[str], known: Sequence[EvalObject]) -> dict[str, list[str]]:
        """Return the descriptions in the blind rows."""
        objects = self.data.objects
        texts = {NO_SHAPE: self._generate(prompt, [None], None)[0] * len(objects)}
        if len(objects) > 1:
            texts[OTHER_SHAPE] = [described[n] for n in other_objects(len(objects), self.seed)]
        texts[SCATTERED] = self._generate(prompt, self._scattered, "describe, shuffled coordinates")[0]
        constant = constant_answers(
            [one.captions[0] for one in known], [one.captions[0] for one in objects], self.embed
        )
        return texts if constant is None else texts | dict([constant])

    def _answer(self, asked: ClosedSet, neighbors: Sequence[EvalObject] | None) -> Answered:
        """Score the candidates of a closed set for each of its objects, in the rows that a model answers."""
        places = {one.name: number for number, one in enumerate(self.data.objects)}
        numbers = [places[name] for name in asked.names]
        objects = [self.data.objects[n] for n in numbers]
        moved = [self._scattered[n] for n in numbers]
        questions, answers = list(asked.questions), list(asked.candidates)
        own = self._score(objects, questions, answers, asked.kind)
        rows = {OWN: own, SCATTERED: self._score(moved, questions, answers, f"{asked.kind}, shuffled coordinates")}
        unique = list(dict.fromkeys(questions))
        blind = self._score([None] * len(unique), unique, answers, None)
        rows[NO_SHAPE] = blind[[unique.index(question) for question in questions]]
        if len(objects) > 1:
            others = [objects[n] for n in other_objects(len(objects), self.seed)]
            rows[OTHER_SHAPE] = self._score(others, questions, answers, f"{asked.kind}, another object's 3D")
        lent = None
        if neighbors is not None and asked.known_answers is not None:
            pairs = zip(self.data.objects, neighbors, strict=True)
            lent = {
                one.name: asked.known_answers[near.name] for one, near in pairs if near.name in asked.known_answers
            }
        return Answered(asked=asked, scores=rows, lent=lent)

    def _retrieve(self, prompt: str) -> dict[str, Scores]:
        """Score every object's first caption with every object, and with its codes at random places."""
        objects = self.data.objects
        captions = [one.captions[0] for one in objects]
        unique = list(dict.fromkeys(captions))
        columns = [unique.index(caption) for caption in captions]
        prompts = [prompt] * len(objects)
        own = self._score(objects, prompts, unique, "retrieval")
        moved = self._score(self._scattered, prompts, unique, "retrieval, scattered")
        return {row: mutual_information(scores)[:, columns] for row, scores in ((OWN, own), (SCATTERED, moved))}

    @cached_property
    def _scattered(self) -> list[EvalObject]:
        return scattered(self.data.objects, self.data.latent_side, self.seed)

    def _known(self) -> list[EvalObject]:
        """Return the captioned objects of training, where they are in the same folder of codes."""
        folder = self.data.folder
        if folder is None or self.data.split == TRAIN:
            return []
        evaluated = {one.name for one in self.data.objects}
        known = training_objects(folder, self.data.learned)
        return [one for one in known if one.captions and one.name not in evaluated]

    def _score(
        self,
        objects: Sequence[EvalObject | None],
        prompts: Sequence[str],
        answers: Sequence[str],
        describe: str | None,
    ) -> Scores:
        return answer_likelihoods(
            self.model,
            self.processor,
            self.data,
            objects,
            prompts,
            answers,
            batch_size=self.batch_size,
            describe=describe if self.progress else None,
        )

    def _generate(
        self, prompt: str, objects: Sequence[EvalObject | None], describe: str | None
    ) -> tuple[list[str], list[float]]:
        """Return a greedy answer for each object and its mean probability; None asks without a shape, with adapters.

        A blind control knows what training says, as the model with its adapters does; the untouched model doesn't.
        """
        from transformers import LogitsProcessorList

        texts, probabilities = [""] * len(objects), [0.0] * len(objects)
        ends = {self.processor.tokenizer.eos_token_id, *_ends(self.model.vl_model)} - {None}
        shown = describe is not None and self.progress
        with Progress(len(objects), describe or "", shown=shown) as progress:
            for numbers in batches_alike(objects, self.batch_size):
                shapes = [one for n in numbers if (one := objects[n]) is not None]
                feats, coords = self.data.batch(shapes) if shapes else (None, None)
                text = self.processor([prompt] * len(numbers), objects=1 if shapes else 0)
                inputs = self.model.build_inputs(**text, feats_3d=feats, coords_3d=coords, padding_side="left")
                sure = GreedyProbabilities()
                ids = self.model.vl_model.generate(
                    **inputs.model_kwargs(),
                    do_sample=False,
                    max_new_tokens=self.max_new_tokens,
                    logits_processor=LogitsProcessorList([sure]),
                )
                found = zip(numbers, self.processor.decode(ids), sure.means(ids, ends), strict=True)
                for number, answer, mean in found:
                    texts[number], probabilities[number] = answer, mean
                progress.update(len(numbers))
        return texts, probabilities


def _ends(vl_model: Any) -> list[int]:
    """Return the tokens that end an answer."""
    ends = vl_model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
