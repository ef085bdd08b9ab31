"""The one exception for failures that the user can act on."""


class PipelineError(Exception):
    """A failure described in one line: what is wrong, where, and what to do.

    Stages and commands print the message without a traceback and exit with code 1.
    """
