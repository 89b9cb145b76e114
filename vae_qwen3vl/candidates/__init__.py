"""One answer out of several that were drawn: how they are asked for, what they are compared with, which is taken."""
