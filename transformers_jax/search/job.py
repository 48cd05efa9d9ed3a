"""What a worker is given, and what it gives back. A leaf: without JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: a genome's text and width unit, steps by stage, the hurdles between them, the seed.

    folder: where checkpoints of this training are kept, if the config wants any.
    """

    genome: str
    unit: int
    steps: tuple[int, ...]
    hurdles: tuple[float, ...]
    seed: int
    folder: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it: fitness by stage, or a failure; steps that were made; seconds.

    compile_seconds: building and compiling its programs, the initial parameters among them.
    train_seconds: training and measuring.
    """

    stages: tuple[float, ...] = ()
    failure: str | None = None
    steps: int = 0
    parameters: int = 0
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
