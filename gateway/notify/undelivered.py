"""The one error of every way to a receiver."""


class UndeliveredError(Exception):
    """A notice did not reach its receiver, as far as anybody knows.

    `cause` is a word or two that tell nothing of the receiver's address, `retry_after_s` how long it wants to be left alone, if it says.
    """

    def __init__(self, cause: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.retry_after_s = retry_after_s
