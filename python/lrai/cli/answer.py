"""How a command tells its answer by its exit code, apart from how it tells that it was misused."""


class Answer(Exception):  # noqa: N818 - it is no error
    """Ends a command whose exit code is its answer."""

    def __init__(self, code: int) -> None:
        """End with this code."""
        super().__init__(code)
        self.code = code
