"""What a model says about objects, with their own shape and under blind controls: words, and likelihoods of answers.

Every row (`controls`) asks the same prompts about the same objects; only the shape beside them differs. What another
object's shape gives is taken from that object's own run, since the prompt is the same. Runs models; measures nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.answer_confidence import GreedyProbabilities
from vae_qwen3vl.candidates.asking import submit_candidates
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.data.look_up import Neighbors, with_neighbors
from vae_qwen3vl.evaluation.closed_sets import ClosedSet
from vae_qwen3vl.evaluation.controls import (
    CHOSEN_FREQUENT,
    CHOSEN_NEIGHBOR,
    NEIGHBOR,
    NO_SHAPE,
    OTHER_SHAPE,
    OWN,
    SCATTERED,
    WORDS_ALONE,
    WRONG_WORDS,
    Embed,
    bag_of_words,
    constant_answers,
    frequent_answers,
    other_objects,
    ranked_by_codes,
    scattered,
)
from vae_qwen3vl.evaluation.likelihoods import answer_likelihoods, batches_alike
from vae_qwen3vl.evaluation.objects import TRAIN, EvalData, EvalObject, training_objects
from vae_qwen3vl.evaluation.ranking_metrics import mutual_information
from vae_qwen3vl.evaluation.users_questions import UsersSet
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

Scores = npt.NDArray[np.float64]
_MOST_WORDS = 32
"""New tokens of an answer to a user's question."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The scores of one closed set's candidates in each row."""

    asked: ClosedSet
    scores: dict[str, Scores]
    """Row -> log-likelihoods `[objects, candidates]`."""
    lent: dict[str, str] | None = None
    """Object -> the answer of its nearest training object; None where those are not known."""


@dataclass(frozen=True, kw_only=True)
class UsersAnswered:
    """What was answered to one set of users' questions in each row."""

    asked: UsersSet
    texts: dict[str, list[str]]
    """Row -> an answer of each object."""
    scores: dict[str, Scores]
    """Row -> log-likelihoods of no and yes `[objects, 2]`; none where the question is to be declined."""


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
    users: list[UsersAnswered] | None = None
    """The same."""
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
        chooser: takes one of several descriptions, in all rows alike; None takes the likeliest.
        near: object -> what similar objects are called, which descriptions read; None shows none.
    """

    model: Qwen3VLWith3DBranch
    processor: Processor3D
    data: EvalData
    batch_size: int = 16
    max_new_tokens: int = 128
    seed: int = 0
    progress: bool = True
    embed: Embed = bag_of_words
    chooser: Chooser | None = None
    near: Mapping[str, Neighbors] | None = None

    def ask(
        self,
        prompt: str,
        *,
        controls: bool,
        closed: Sequence[ClosedSet] | None = None,
        users: Sequence[UsersSet] | None = None,
        retrieval: bool = False,
    ) -> Interview:
        """Ask about all objects.

        Args:
            prompt: asks for a description.
            controls: describe in all rows, not only with the objects' own shapes; all objects have captions then.
            closed: questions with a known set of answers.
            users: questions as users ask them.
            retrieval: score every object's first caption with every object; all objects have captions then.
        """
        own = self._near(self.data.objects)
        said, probabilities = self._generate(prompt, self.data.objects, "describe", own)
        texts = {OWN: said}
        neighbors = None
        if controls:
            known = self._known()
            texts |= self._controls(prompt, texts[OWN], known)
            if known:
                many = 1 if self.chooser is None else self.chooser.settings.candidates + 1
                nearest = ranked_by_codes(self.data.objects, known, len(self.data.codebook), many)
                neighbors = [known[row[0]] for row in nearest]
                texts[NEIGHBOR] = [neighbor.captions[0] for neighbor in neighbors]
                texts |= self._chosen_alike([[known[n].captions[0] for n in row] for row in nearest], known)
        return Interview(
            prompt=prompt,
            tokens=[int(self.model.count_3d_tokens(*self.data.batch([one]))[0]) - 2 for one in self.data.objects],
            texts=texts,
            probabilities=probabilities,
            closed=None if closed is None else [self._answer(asked, neighbors) for asked in closed],
            users=None if users is None else [self._answer_users(asked) for asked in users],
            retrieval=self._retrieve(prompt) if retrieval else {},
        )

    def _near(self, objects: Sequence[EvalObject]) -> list[Neighbors] | None:
        return None if self.near is None else [self.near.get(one.name, ()) for one in objects]

    def _chosen_alike(self, lent: Sequence[Sequence[str]], known: Sequence[EvalObject]) -> dict[str, list[str]]:
        """Return what the chooser takes of other texts: captions lent to each object, and the most frequent ones."""
        if self.chooser is None:
            return {}
        shapes = [self._codes(one) for one in self.data.objects]
        pairs = zip(lent, shapes, strict=True)
        texts = {CHOSEN_NEIGHBOR: [self.chooser.choose(own, shape, lend=False).text for own, shape in pairs]}
        if len(shapes) > 1:
            frequent = frequent_answers([one.captions[0] for one in known], self.chooser.settings.candidates + 1)
            others = [shapes[n] for n in other_objects(len(shapes), self.seed)]
            texts[CHOSEN_FREQUENT] = [self.chooser.choose(frequent, shape, lend=False).text for shape in others]
        return texts

    def _controls(self, prompt: str, described: list[str], known: Sequence[EvalObject]) -> dict[str, list[str]]:
        """Return the descriptions in the blind rows."""
        objects = self.data.objects
        texts = {NO_SHAPE: self._generate(prompt, [None], None)[0] * len(objects)}
        if len(objects) > 1:
            others = other_objects(len(objects), self.seed)
            texts[OTHER_SHAPE] = [described[n] for n in others]
            own = self._near(objects)
            if own is not None:
                wrong = [own[n] for n in others]
                texts[WRONG_WORDS] = self._generate(prompt, objects, "describe, another's similar ones", wrong)[0]
                texts[WORDS_ALONE] = self._generate(prompt, [None] * len(objects), "describe, no 3D", own)[0]
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

    def _answer_users(self, asked: UsersSet) -> UsersAnswered:
        """Let each object's question be answered, and score no and yes, with its shape and in the blind rows."""
        places = {one.name: number for number, one in enumerate(self.data.objects)}
        numbers = [places[name] for name in asked.names]
        objects: list[EvalObject | None] = [self.data.objects[n] for n in numbers]
        others = [objects[n] for n in other_objects(len(objects), self.seed)]
        moved: list[EvalObject | None] = [self._scattered[n] for n in numbers]
        questions = list(asked.questions)
        name = f"{asked.kind} {asked.language}"
        unique = list(dict.fromkeys(questions))
        nothing: list[EvalObject | None] = [None] * len(unique)
        same = [unique.index(question) for question in questions]
        shapes = {OWN: objects, OTHER_SHAPE: others}
        length = min(self.max_new_tokens, _MOST_WORDS)
        texts = {
            row: self._generate(questions, shown, f"{name}, {row}", max_new_tokens=length)[0]
            for row, shown in shapes.items()
        }
        blind, _ = self._generate(unique, nothing, None, max_new_tokens=length)
        texts[NO_SHAPE] = [blind[n] for n in same]
        scores = {}
        if not asked.declined:
            for row, shown in (shapes | {SCATTERED: moved}).items():
                scores[row] = self._score(shown, questions, asked.answers, f"{name}, {row}")
            scores[NO_SHAPE] = self._score(nothing, unique, asked.answers, None)[same]
        return UsersAnswered(asked=asked, texts=texts, scores=scores)

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
        self,
        prompt: str | Sequence[str],
        objects: Sequence[EvalObject | None],
        describe: str | None,
        near: Sequence[Neighbors] | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> tuple[list[str], list[float]]:
        """Return an answer for each object, behind what is said of similar ones, and its mean probability.

        Prompts that are one each are answered greedily, whatever chooses. None asks without a shape, with adapters: a
        blind control knows what training says, as the model with its adapters does; the untouched model doesn't.
        Without a shape the likeliest answer is taken as well.
        """
        from transformers import LogitsProcessorList

        plain = [prompt] * len(objects) if isinstance(prompt, str) else list(prompt)
        prompts = plain if near is None else [with_neighbors(p, own) for p, own in zip(plain, near, strict=True)]
        shaped = [one for one in objects if one is not None]
        if self.chooser is not None and isinstance(prompt, str) and len(shaped) == len(objects):
            return self._choose(self.chooser, prompts, shaped, describe)
        texts, probabilities = [""] * len(objects), [0.0] * len(objects)
        ends = {self.processor.tokenizer.eos_token_id, *_ends(self.model.vl_model)} - {None}
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        shown = describe is not None and self.progress
        with Progress(len(objects), describe or "", shown=shown) as progress:
            for numbers in batches_alike(objects, self.batch_size):
                shapes = [one for n in numbers if (one := objects[n]) is not None]
                feats, coords = self.data.batch(shapes) if shapes else (None, None)
                text = self.processor([prompts[n] for n in numbers], objects=1 if shapes else 0)
                inputs = self.model.build_inputs(**text, feats_3d=feats, coords_3d=coords, padding_side="left")
                sure = GreedyProbabilities()
                ids = self.model.vl_model.generate(
                    **inputs.model_kwargs(),
                    do_sample=False,
                    max_new_tokens=length,
                    logits_processor=LogitsProcessorList([sure]),
                )
                found = zip(numbers, self.processor.decode(ids), sure.means(ids, ends), strict=True)
                for number, answer, mean in found:
                    texts[number], probabilities[number] = answer, mean
                progress.update(len(numbers))
        return texts, probabilities

    def _choose(
        self, chooser: Chooser, prompts: Sequence[str], objects: Sequence[EvalObject], describe: str | None
    ) -> tuple[list[str], list[float]]:
        """Return the one of several drawn answers that the chooser takes, for each object, and its mean probability.

        Words that an index lends have none, and the likeliest answer's stands for it.
        """
        from vae_qwen3vl.generation.engine import Engine

        many = chooser.settings.candidates + 1
        shown = describe is not None and self.progress
        texts, probabilities = [""] * len(objects), [0.0] * len(objects)
        waiting: deque[tuple[int, ShapeCodes, list[Answer]]] = deque()
        limits: dict[str, Any] = {"max_batch": max(self.batch_size, many), "max_waiting": 3 * many}

        def take() -> None:
            number, shape, answers = waiting.popleft()
            for answer in answers:
                answer.text()
            said = self.processor.decode([answer.token_ids for answer in answers])
            choice = chooser.choose(said, shape)
            taken = answers[choice.place] if choice.place < len(answers) else answers[0]
            texts[number], probabilities[number] = choice.text, taken.mean_probability or 0.0
            progress.update()

        with (
            Progress(len(objects), describe or "", shown=shown) as progress,
            Engine(self.model, self.processor, codebook=self.data.codebook, **limits) as engine,
        ):
            for number, (prompt, one) in enumerate(zip(prompts, objects, strict=True)):
                shape = self._codes(one)
                messages = [{"role": "user", "content": [{"type": "3d"}, {"type": "text", "text": prompt}]}]
                likeliest = Sampling(max_new_tokens=self.max_new_tokens)
                answers = submit_candidates(engine, messages, [shape], chooser.settings, likeliest)
                waiting.append((number, shape, answers))
                if len(waiting) > 1:
                    take()
            while waiting:
                take()
        return texts, probabilities

    def _codes(self, one: EvalObject) -> ShapeCodes:
        """Return an object as the engine and an index take it; where it lies in its source does not count."""
        vae = self.model.vae_model
        return ShapeCodes(
            codes=one.codes.int(),
            coords=one.coords,
            latent_resolution=self.data.latent_side,
            data_resolution=self.data.latent_side if vae is None else vae.config.data_resolution,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            vae_hash=self.data.vae_hash,
        )


def _ends(vl_model: Any) -> list[int]:
    """Return the tokens that end an answer."""
    ends = vl_model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
