"""API keys: who may use the server, and how much in a minute.

A file of keys is YAML (or JSON):

    keys:
      - name: alice            # appears in logs and metrics
        key: sk-…              # or sha256: the hash of the key, so that the file contains no secret
        requests_per_minute: 60
        tokens_per_minute: 20000

The environment variable FOUNDRY_API_KEYS has `name=key` pairs with spaces between them, without limits.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from foundry.config import ConfigError
from foundry.config.section import Section
from foundry.serving.errors import ApiError

VARIABLE = "FOUNDRY_API_KEYS"
SHORTEST = 8  # characters of a key


class _Entry(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")
    key: str | None = Field(None, min_length=SHORTEST, pattern=r"^[!-~]+$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)

    @model_validator(mode="after")
    def _one_secret(self) -> _Entry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("must have either key or sha256")
        return self

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.sha256) if self.sha256 else _digest(self.key or "")


class _File(Section):
    keys: list[_Entry] = Field(min_length=1)

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: list[_Entry]) -> list[_Entry]:
        for what, values in (("name", [k.name for k in keys]), ("key", [k.digest for k in keys])):
            if len(set(values)) < len(values):
                raise ValueError(f"two entries have the same {what}")
        return keys


class Allowance:
    """A token bucket: `per_minute` units flow in evenly, and at most so many are kept."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    def left(self) -> float:
        """Units that may be taken now; below zero after more were used than reserved."""
        now = self._clock()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._left

    def wait(self, units: float) -> float:
        """Seconds until so many units are there; 0 if they are."""
        return max(0.0, (units - self.left()) * 60 / self.per_minute)

    def take(self, units: float) -> None:
        """Takes units; a negative number gives them back."""
        self._left = min(self.per_minute, self.left() - units)


@dataclass(frozen=True)
class Key:
    """A key that a client may present, and what it allows; None: without a limit."""

    name: str
    digest: bytes
    requests: Allowance | None = None
    tokens: Allowance | None = None

    def admit(self) -> None:
        """Counts a request.

        Raises:
            ApiError: 429 with Retry-After if the key allows no further request now.
        """
        if self.requests:
            if wait := self.requests.wait(1):
                raise self._limited(f"{self.requests.per_minute} requests", wait)
            self.requests.take(1)

    def reserve(self, tokens: int) -> None:
        """Reserves the tokens that a request can use at most: its prompt, and new ones up to its limit.

        Raises:
            ApiError: 429 if they are not there now, with Retry-After if they can ever be.
        """
        if not self.tokens:
            return
        limit = self.tokens.per_minute
        if tokens > limit:
            raise ApiError(
                429,
                f"the request can use {tokens} tokens and the key {self.name} allows {limit} a minute: lower "
                "max_tokens, or shorten the prompt",
                code="rate_limit_exceeded",
                headers={"x-should-retry": "false"},
            )
        if wait := self.tokens.wait(tokens):
            raise self._limited(f"{limit} tokens", wait)
        self.tokens.take(tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Gives back what was reserved and not used."""
        if self.tokens:
            self.tokens.take(used - reserved)

    def headers(self) -> dict[str, str]:
        """The limits and what is left of them, as OpenAI's headers."""
        found = {}
        for what, allowance in (("requests", self.requests), ("tokens", self.tokens)):
            if allowance:
                found[f"x-ratelimit-limit-{what}"] = str(allowance.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(allowance.left())))
                found[f"x-ratelimit-reset-{what}"] = f"{allowance.wait(allowance.per_minute):.3f}s"
        return found

    def _limited(self, limit: str, wait: float) -> ApiError:
        return ApiError(
            429,
            f"the key {self.name} allows {limit} a minute: send the request again in {wait:.1f} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(math.ceil(wait))},
        )


class Keys:
    """The keys of a server; without any, everyone who reaches it may use it."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, authorization: str | None) -> Key | None:
        """The key that a client presents; None if the server has no keys.

        Every key is compared, each in constant time, so that the time does not depend on which one is right.

        Args:
            authorization: the header `Authorization: Bearer KEY`.

        Raises:
            ApiError: 401 if it is missing or wrong.
        """
        if not self._keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _unauthorised("send an API key in the header Authorization: Bearer KEY")
        digest, found = _digest(given.strip()), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise _unauthorised("the API key is not one of this server's")
        return found


def read_keys(file: str | Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file, or of the environment if there is no file; none if neither has one.

    Raises:
        ConfigError: (a `ValueError`) if the file cannot be read or an entry breaks a rule; it contains no key.
    """
    if file is not None:
        where = str(file)
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read the API keys in {where}: {reason}") from None
        except yaml.YAMLError:  # its message quotes the file
            raise ConfigError(f"the API keys in {where} are not valid YAML") from None
    elif text := environment.get(VARIABLE, "").strip():
        where = f"the environment variable {VARIABLE}"
        pairs = [word.partition("=") for word in text.split()]
        content = {"keys": [{"name": name, "key": key} for name, _, key in pairs]}
    else:
        return Keys()
    try:
        entries = _File.model_validate(content).keys
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
        raise ConfigError(
            f"the API keys in {where} are invalid: {place or 'content'}: {first['msg']}; "
            f"a key has a name and at least {SHORTEST} printable characters without spaces"
        ) from None
    return Keys(
        tuple(
            Key(
                entry.name,
                entry.digest,
                Allowance(entry.requests_per_minute) if entry.requests_per_minute else None,
                Allowance(entry.tokens_per_minute) if entry.tokens_per_minute else None,
            )
            for entry in entries
        )
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _unauthorised(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
