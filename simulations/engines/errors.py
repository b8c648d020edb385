"""How a simulation that has begun fails: in the researcher's own code, or with a worker."""


class EngineError(RuntimeError):
    """An engine that cannot go on: a worker has died."""


class OwnCodeError(RuntimeError):
    """The researcher's model or loss failed: type, message, file and line in one line."""
