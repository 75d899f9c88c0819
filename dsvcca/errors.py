"""The one error that dsvcca raises for what its caller can cause or mend."""


class DsvccaError(ValueError):
    """Input, storage or cluster that cannot give a right answer.

    The message says what went wrong, what was found and what to do. The command line prints it without a
    traceback.
    """


class DsvccaWarning(UserWarning):
    """A number that is right but needs care in reading; the same sentence is kept with the results."""
