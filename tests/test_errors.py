"""Errors are one line, and each class has its own exit code."""

import copy
import errno
import pickle

import pytest

from dreamkd.errors import (
    EXIT_CODES,
    ConfigError,
    DivergedError,
    DreamkdError,
    UnrecognisedError,
    nearest,
    said,
)


def test_messages_are_one_line() -> None:
    assert str(DreamkdError("  it\n is\tnot\r\nthere ")) == "it is not there"


def test_every_error_has_its_own_documented_exit_code() -> None:
    codes = [error.exit_code for error in DreamkdError.__subclasses__()]
    assert sorted(codes) == sorted(set(codes))
    assert set(codes) == set(EXIT_CODES) - {0, 1, 129, 130, 143}  # done, a bug, signals


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("--seed: a is not a whole number"),
        UnrecognisedError("t.pt tells nothing", "pass --arch"),
        DivergedError("ce is NaN in step 3", "lower --image-lr"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: DreamkdError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("jiter", ["jitter", "filter"]) == " (did you mean 'jitter'?)"
    assert nearest("resnet5", ["vgg", "resnet50"]) == " (did you mean 'resnet50'?)"
    assert nearest("zzz", ["jitter"]) == ""
    assert nearest("", []) == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), "No space left on device"),
        (OSError("no words of the system"), "no words of the system"),
        (ValueError(" first\nsecond "), "first"),
        (ValueError("long" * 50), "long" * 40),
        (KeyError(), "KeyError"),
    ],
)
def test_what_others_say_of_an_error_is_one_short_line(error: Exception, words: str) -> None:
    assert said(error) == words
