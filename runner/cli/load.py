"""Find the settings class that a command was given, and connect as its workers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.codec import Codec, codec_of
from runner.connection import open_client
from runner.settings import load_settings
from runner.signing import chosen_codec

if TYPE_CHECKING:
    from runner.client import Client
    from runner.settings import WorkerSettings


def codec_by(settings: type[WorkerSettings]) -> Codec:
    """Return the codec of the workers."""
    hooks = (getattr(settings, name, None) for name in ("job_serializer", "job_deserializer"))
    return chosen_codec(settings.codec, settings.signing_keys) or codec_of(*hooks)


async def client_by(settings: type[WorkerSettings]) -> Client:
    """Connect to the Redis of the workers, with their codec and queue."""
    return await open_client(
        settings.redis_settings,
        codec=codec_by(settings),
        queue=settings.queue_name,
        expires_extra_ms=settings.expires_extra_ms,
    )


__all__ = ["client_by", "codec_by", "load_settings"]
