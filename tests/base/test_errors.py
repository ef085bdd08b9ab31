"""What a message may show."""

from pipeline.base.errors import warn


def test_warning_is_one_line_on_standard_error(capsys):
    warn("a: odd; look at it")
    assert capsys.readouterr() == ("", "warning: a: odd; look at it\n")
