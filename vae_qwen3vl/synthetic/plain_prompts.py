"""Everyday prompts without an object: a few templates, each with tables of words to put in.

Tables only, and how they are divided: the held-out prompts are about other words than those to train on.
"""

from __future__ import annotations

import itertools

SPLITS = ("train", "held_out")
_HELD_OUT = 5
"""One word in so many is held out."""

_TOPICS = (
    "gravity; photosynthesis; a rainbow; the water cycle; inflation; friendship; a vaccine; electricity; an "
    "eclipse; evolution; the internet; a library; democracy; patience; a volcano; recycling; a budget; a metaphor; "
    "sleep; magnetism; the seasons; a fossil; a bicycle gear; an earthquake; a contract; gardening; a compass; "
    "insurance; a proverb; yeast; a black hole; the tides; a password; a symphony; fermentation; a desert; "
    "migration; a lever; steam power; a satellite; a haiku; the moon; honesty; a battery; traffic; a map; music; "
    "erosion; a habit; taxes"
)
_THINGS = (
    "a brick; an old newspaper; a paper clip; a glass jar; a blanket; salt; vinegar; a wooden box; a rope; a "
    "mirror; a bucket; a candle; a cardboard box; a spoon; an umbrella; a towel; baking soda; a magnet; a pencil; a "
    "tin can; a ladder; a lemon; a plastic bottle; a shoelace; a coin; a bowl; sand; a broom; a pillow; a tennis "
    "ball; string; a knife; an apple; a lamp; a wheelbarrow; a sock; wax; a bedsheet; a funnel; a rubber band"
)
_WORDS = (
    "river; courage; window; quickly; mountain; borrow; silver; forgive; garden; suddenly; bridge; curious; winter; "
    "teacher; promise; shadow; gentle; market; journey; whisper; ancient; orange; repair; village; thunder; "
    "kitchen; honest; ocean; puzzle; travel; lantern; careful; storm; doctor; remember; feather; narrow; island; "
    "celebrate; piano; brave; forest; letter; harvest; clever; station; blanket; wonder; neighbour; quiet"
)
_HEROES = (
    "a lost kitten; an old sailor; a baker; two brothers; a shy dragon; a night train; a lighthouse keeper; a "
    "gardener; a small robot; a snowman; a young painter; a postman; a fox and a crow; a clockmaker; a school trip; "
    "a wizard; a bus driver; a fisherman; a talking tree; a tired nurse; a chess player; a farmer; a runaway kite; "
    "a violinist; an astronaut; a librarian"
)
_TASKS = (
    "boil an egg; learn a new language; save money; clean a window; write a thank-you letter; plant a tomato; fall "
    "asleep; plan a birthday party; make tea; prepare for an exam; fix a flat tyre; choose a book; pack a suitcase; "
    "meet new people; stay fit; wash wool; save water; remember names; make a sandwich; get up early; train a "
    "puppy; keep bread fresh; calm a crying child; find a lost key; write a poem; cook rice; make a good first "
    "impression; organise a desk; give a short speech; take better photos"
)
_PAIRS = (
    "a lake and a river; a frog and a toad; weather and climate; a novel and a poem; a cat and a dog; jam and "
    "honey; a city and a village; speed and acceleration; a loan and a gift; a violin and a cello; tea and coffee; "
    "a planet and a star; a bus and a train; wood and metal; summer and winter; a fruit and a vegetable; a king and "
    "a president; paper and plastic; a hill and a mountain; a doctor and a nurse; rain and snow; an ocean and a "
    "sea; reading and listening; butter and oil; a guitar and a piano"
)
_KINDS = (
    "fruits; European countries; musical instruments; colours; farm animals; sports; board games; vegetables; "
    "birds; tools; kinds of weather; rivers; trees; jobs; spices; ways to travel; insects; things in a kitchen; "
    "hobbies; sea animals; planets; pieces of clothing; school subjects; flowers; feelings; languages; kinds of "
    "cheese; desserts; metals; capital cities"
)
_OPPOSITES = (
    "hot; early; generous; narrow; noisy; arrive; full; accept; heavy; rough; victory; ancient; expand; shallow; "
    "bright; buy; polite; above; rare; remember; simple; wet; begin; friend; strong; sharp; sweet; cheap; asleep; "
    "lazy"
)
_SENTENCES = (
    "The train was late again.; She left her keys on the table.; We walked home in the rain.; The soup is too "
    "salty.; He forgot to call his mother.; The children played in the garden.; It was the coldest day of the "
    "year.; They sold the old house last spring.; The shop closes at six.; Nobody knew the answer.; My brother "
    "plays the trumpet.; The film was longer than I expected.; Please send the letter today.; The dog barked all "
    "night.; I have never seen the sea.; The meeting was moved to Friday.; Her new bicycle is red.; The road was "
    "closed because of snow.; He reads a book every week.; The cake fell on the floor."
)

_TEMPLATES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        _TOPICS,
        (
            "Explain {} in one sentence.",
            "What should a child know about {}?",
            "Why is it good to know about {}? Be brief.",
        ),
    ),
    (_THINGS, ("List three uses of {}.", "What can one do with {}? Answer briefly.")),
    (_WORDS, ("Write a sentence with the word '{}'.", "What does the word '{}' mean?", "Name a rhyme for '{}'.")),
    (_HEROES, ("Write a very short story about {}.", "Write a two-line poem about {}.", "Invent a title about {}.")),
    (_TASKS, ("How do I {}? Answer in two sentences.", "Give me one tip on how to {}.")),
    (_PAIRS, ("What is the difference between {}? One sentence, please.", "What do {} have in common?")),
    (_KINDS, ("Name three {}.", "Which {} do you know? Give a short list.")),
    (_OPPOSITES, ("What is the opposite of '{}'?", "Use '{}' and its opposite in one sentence.")),
    (_SENTENCES, ("Say this in other words: {}", "Turn this into a question: {}", "What could happen next? {}")),
)
_SUMS = ("What is {} plus {}?", "What is {} minus {}?", "Calculate {} times {}.", "Which is larger, {} or {}?")
_NUMBERS = tuple(itertools.product((12, 17, 23, 38, 45, 56, 74, 91), (3, 4, 6, 7, 9, 11)))


def plain_prompts(split: str) -> list[str]:
    """Return all prompts of `train` or `held_out`, in a fixed order.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    prompts = []
    for words, templates in _TEMPLATES:
        chosen = [word for at, word in enumerate(words.split("; ")) if _split_of(at) == split]
        prompts += [template.format(word) for template in templates for word in chosen]
    chosen_numbers = [pair for at, pair in enumerate(_NUMBERS) if _split_of(at) == split]
    prompts += [template.format(*pair) for template in _SUMS for pair in chosen_numbers]
    return prompts


def _split_of(place: int) -> str:
    return SPLITS[place % _HELD_OUT == _HELD_OUT - 1]
