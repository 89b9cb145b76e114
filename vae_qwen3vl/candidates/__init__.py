"""One answer out of several that were drawn: how they are asked for, what they are compared with, which is taken."""

from vae_qwen3vl.candidates.choice import Choice
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.candidates.settings import CandidateSettings

__all__ = ["CandidateSettings", "Choice", "Chooser"]
