"""Errors are one line, and each class has its own exit code."""

from dreamkd.errors import EXIT_CODES, DreamkdError, nearest


def test_messages_are_one_line() -> None:
    assert str(DreamkdError("  it\n is\tnot\r\nthere ")) == "it is not there"


def test_every_error_has_its_own_documented_exit_code() -> None:
    codes = [error.exit_code for error in DreamkdError.__subclasses__()]
    assert sorted(codes) == sorted(set(codes))
    assert set(codes) == set(EXIT_CODES) - {0, 1, 130, 143}  # done, a bug, signals


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("jiter", ["jitter", "filter"]) == " (did you mean 'jitter'?)"
    assert nearest("resnet5", ["vgg", "resnet50"]) == " (did you mean 'resnet50'?)"
    assert nearest("zzz", ["jitter"]) == ""
    assert nearest("", []) == ""
