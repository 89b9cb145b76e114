"""What a model says about objects, with their own shape and under blind controls: words, and scores of answers.

Every row (`blind_controls`) asks the same prompts about the same objects; only the shape beside them differs. What
another object's shape gives is taken from that object's own run, since the prompt is the same. Runs models; measures
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.evaluation.answer_scores import answer_scores, batches_alike
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


@dataclass(kw_only=True)
class Understanding:
    """Everything that was said."""

    prompt: str
    texts: dict[str, list[str]]
    """Row -> a description of each object."""
    neighbors: list[EvalObject] | None = None
    """The training object nearest to each by its codes, where training's codes are known."""
    closed: list[Answered] = field(default_factory=list)
    retrieval: Scores | None = None
    """Pointwise mutual information of every object and every object's first caption: how much likelier the words are
    with this shape than with one of the objects' shapes at random. `[objects, objects]`"""
    retrieval_scattered: Scores | None = None
    """The same with the codes at random places."""


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

    def descriptions(self, prompt: str, *, controls: bool) -> Understanding:
        """Ask for a description of every object; with `controls` (all objects have captions) in all rows."""
        objects = self.data.objects
        texts = {OWN: self._generate(prompt, objects, "describe")}
        neighbors = None
        if controls:
            texts[NO_SHAPE] = self._generate(prompt, [None], None) * len(objects)
            if len(objects) > 1:
                texts[OTHER_SHAPE] = [texts[OWN][n] for n in other_objects(len(objects), self.seed)]
            texts[SCATTERED] = self._generate(prompt, self._scattered, "describe, shuffled coordinates")
            known = self._known()
            constant = constant_answers(
                [one.captions[0] for one in known], [one.captions[0] for one in objects], self.embed
            )
            if constant is not None:
                texts[constant[0]] = constant[1]
            if known:
                nearest = nearest_by_codes(objects, known, len(self.data.codebook))
                neighbors = [known[number] for number in nearest]
                texts[NEIGHBOR] = [one.captions[0] for one in neighbors]
        return Understanding(prompt=prompt, texts=texts, neighbors=neighbors)

    def answer(self, asked: ClosedSet) -> Answered:
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
        return Answered(asked=asked, scores=rows)

    def retrieve(self, understanding: Understanding) -> None:
        """Score every object's first caption with every object."""
        objects = self.data.objects
        captions = [one.captions[0] for one in objects]
        unique = list(dict.fromkeys(captions))
        columns = [unique.index(caption) for caption in captions]
        prompts = [understanding.prompt] * len(objects)
        for name, shapes in (("retrieval", objects), ("retrieval_scattered", self._scattered)):
            found = self._score(shapes, prompts, unique, name.replace("_", ", "))
            setattr(understanding, name, mutual_information(found)[:, columns])

    @cached_property
    def _scattered(self) -> list[EvalObject]:
        return scattered(self.data.objects, self.data.latent_side, self.seed)

    def _known(self) -> list[EvalObject]:
        """Return the captioned objects of training, where they are in the same folder of codes."""
        folder = self.data.folder
        if folder is None or self.data.split == TRAIN:
            return []
        own = {one.name for one in self.data.objects}
        found = training_objects(folder, self.data.learned)
        return [one for one in found if one.captions and one.name not in own]

    def _score(
        self,
        objects: Sequence[EvalObject | None],
        prompts: Sequence[str],
        answers: Sequence[str],
        describe: str | None,
    ) -> Scores:
        return answer_scores(
            self.model,
            self.processor,
            self.data,
            objects,
            prompts,
            answers,
            batch_size=self.batch_size,
            describe=describe if self.progress else None,
        )

    def _generate(self, prompt: str, objects: Sequence[EvalObject | None], describe: str | None) -> list[str]:
        """Return a greedy answer for each object; None asks without a shape."""
        texts = [""] * len(objects)
        shown = describe is not None and self.progress
        with Progress(len(objects), describe or "", shown=shown) as progress:
            for numbers in batches_alike(objects, self.batch_size):
                shapes = [one for n in numbers if (one := objects[n]) is not None]
                feats, coords = self.data.batch(shapes) if shapes else (None, None)
                text = self.processor([prompt] * len(numbers), objects=1 if shapes else 0)
                ids = self.model.generate(
                    **text, feats_3d=feats, coords_3d=coords, do_sample=False, max_new_tokens=self.max_new_tokens
                )
                for number, answer in zip(numbers, self.processor.decode(ids), strict=True):
                    texts[number] = answer
                progress.update(len(numbers))
        return texts
