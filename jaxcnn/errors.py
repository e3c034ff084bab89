"""The one exception that is the user's to mend: scripts print it as one line and exit with 2."""


class UserError(Exception):
    """Bad input or bad usage. Its text is one line: what is wrong, where, and what to do about it."""

    def __init__(self, what: str, where: object, todo: str) -> None:
        super().__init__(" ".join(f"{what}: {where}; {todo}".split()))
