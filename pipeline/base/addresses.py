"""Addresses of servers as they may be shown."""

import re


def without_credentials(text: str) -> str:
    """The text with user and password taken out of every address in it, for messages, logs and artifacts."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", text)
