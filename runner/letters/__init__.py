"""Dead letters: how they are written down, and what is done with them.

`records` writes and reads them, `filters` says which ones are meant, `letterbox` is
``client.dead``: list, show, requeue, purge.
"""

from runner.letters.filters import Arguments, LetterFilter
from runner.letters.letterbox import DeadLetters, LetterPage, Requeued
from runner.letters.records import (
    REQUEUED,
    decode_errors,
    decode_letter,
    encode_error,
    encode_letter,
    error_of,
    requeues,
)

__all__ = [
    "REQUEUED",
    "Arguments",
    "DeadLetters",
    "LetterFilter",
    "LetterPage",
    "Requeued",
    "decode_errors",
    "decode_letter",
    "encode_error",
    "encode_letter",
    "error_of",
    "requeues",
]
