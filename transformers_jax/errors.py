"""What a user did wrong, said in one line. A leaf: every room may raise it; the launchers print it and exit with code 2."""


class UserError(Exception):
    """A mistake the user can mend: the message names the key, file or line, and says what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class DiskError(UserError):
    """A file that the machine does not write or read, whatever it was asked for: a full disk, a folder without rights."""


class Unreadable(UserError):
    """An example that cannot be encoded; `number` is its place among those that were given."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number
