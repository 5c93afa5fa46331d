"""Registry tokens that clients fetch for us, so that no password leaves them, and which sessions may share one.

A session shows a public key for a registry, made of a salt of ours and of its login; whoever signs with that key has the
same login and may use a token that another session of that login has fetched. Tokens are kept in memory only, until they
expire.

Spec: moby/buildkit ``session/auth/auth.proto``, ``util/resolver/authorizer.go``; NaCl ``crypto_sign`` (signature, then message).
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from crossdock.buildkit.proto import auth_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.record import NamedTuple
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.buildkit.rpc.channel import Message
    from crossdock.cancel import CancelToken
    from crossdock.server.sessions import ClientSession

M = TypeVar("M", bound="Message")

__all__ = ["SessionTokens", "TokenPool", "TokenQuestion"]

_SERVICE = "/moby.filesync.v1.Auth/"
_AUTHORITY = f"{_SERVICE}GetTokenAuthority"
_VERIFY = f"{_SERVICE}VerifyTokenAuthority"
_FETCH = f"{_SERVICE}FetchToken"
#: what a client that offers the methods answers when it would rather not
_DECLINED = frozenset(["UNIMPLEMENTED", "UNAVAILABLE"])
_CLIENT_ID = "buildkit-client"
_SALT_BYTES = _PAYLOAD_BYTES = 32
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
#: seconds that a token without a stated life is good for
_DEFAULT_LIFE_S = 60
_MAX_TOKENS = 1000


class TokenQuestion(NamedTuple):
    """What a token is wanted for."""

    #: registry's host, as BuildKit names it to clients
    host: str
    realm: str
    service: str
    scopes: frozenset[str]


class TokenPool:
    """Tokens of all sessions, by public key. Safe from any thread."""

    def __init__(self) -> None:
        self.salt = os.urandom(_SALT_BYTES)
        # Guards _tokens.
        self._lock = threading.Lock()
        self._tokens: dict[tuple[bytes, TokenQuestion], tuple[Secret, float]] = {}

    def get(self, key: bytes, question: TokenQuestion) -> tuple[Secret, float] | None:
        """Return a token and the seconds it has left; ``None`` when there is none."""
        with self._lock:
            found = self._tokens.get((key, question))
        left = found[1] - time.monotonic() if found is not None else 0.0
        return (found[0], left) if found is not None and left > 0 else None

    def put(self, key: bytes, question: TokenQuestion, token: Secret, life_s: float) -> None:
        """Keep a token."""
        now = time.monotonic()
        with self._lock:
            if len(self._tokens) >= _MAX_TOKENS:
                self._tokens = {k: v for k, v in self._tokens.items() if v[1] > now}
            if len(self._tokens) < _MAX_TOKENS:
                self._tokens[key, question] = (token, now + life_s)


class SessionTokens:
    """The tokens of one build's session. Safe from any thread."""

    def __init__(self, find: Callable[[CancelToken], ClientSession], pool: TokenPool) -> None:
        self._find = find
        self._pool = pool
        # Guards _keys.
        self._lock = threading.Lock()
        self._keys: dict[str, bytes | None] = {}

    def get(self, question: TokenQuestion, cancel: CancelToken) -> tuple[Secret, float] | None:
        """Return a token and its life in seconds; ``None`` when the client leaves that to us.

        Raises: RpcError with the client's words; SessionLost; the token's cause.
        """
        session = self._find(cancel)
        if not session.supports(_AUTHORITY) or not session.supports(_FETCH):
            return None
        with self._lock:
            known = question.host in self._keys
            key = self._keys.get(question.host)
        if not known:
            key = self._authority(session, question.host, cancel)
            with self._lock:
                key = self._keys.setdefault(question.host, key)
        if key is None:
            return None
        shared = self._pool.get(key, question)
        if shared is not None and self._verified(session, question.host, key, cancel):
            return shared
        return self._fetch(session, question, key, cancel)

    def _authority(self, session: ClientSession, host: str, cancel: CancelToken) -> bytes | None:
        request = auth_pb2.GetTokenAuthorityRequest(Host=host, Salt=self._pool.salt)
        got = _ask(session, _AUTHORITY, request, auth_pb2.GetTokenAuthorityResponse, cancel)
        return got.PublicKey if got is not None and len(got.PublicKey) == _KEY_BYTES else None

    def _verified(self, session: ClientSession, host: str, key: bytes, cancel: CancelToken) -> bool:
        """Whether the session proves to have the login that a key stands for."""
        if not session.supports(_VERIFY):
            return False
        payload = os.urandom(_PAYLOAD_BYTES)
        request = auth_pb2.VerifyTokenAuthorityRequest(Host=host, Payload=payload, Salt=self._pool.salt)
        got = _ask(session, _VERIFY, request, auth_pb2.VerifyTokenAuthorityResponse, cancel)
        return got is not None and _is_signed(got.Signed, payload, key)

    def _fetch(
        self, session: ClientSession, question: TokenQuestion, key: bytes, cancel: CancelToken
    ) -> tuple[Secret, float] | None:
        request = auth_pb2.FetchTokenRequest(
            ClientID=_CLIENT_ID,
            Host=question.host,
            Realm=question.realm,
            Service=question.service,
            Scopes=sorted(question.scopes),
        )
        asked_at = time.time_ns() // 1_000_000_000
        got = _ask(session, _FETCH, request, auth_pb2.FetchTokenResponse, cancel)
        if got is None:
            return None
        issued_at = min(got.IssuedAt or asked_at, asked_at)
        life_s = (got.ExpiresIn or _DEFAULT_LIFE_S) - (asked_at - issued_at)
        token = Secret(got.Token)
        if life_s > 0:
            self._pool.put(key, question, token, life_s * 0.9)
        return token, max(life_s, 0.0)


def _ask(
    session: ClientSession, method: str, request: Message, response: type[M], cancel: CancelToken
) -> M | None:
    """Make a call; ``None`` when the client would rather not answer. Raises: RpcError; SessionLost; the token's cause."""
    from crossdock.server.clientcalls import unary_call

    try:
        return unary_call(session, method, request, response, cancel)
    except RpcError as exc:
        if exc.code in _DECLINED:
            return None
        raise


def _is_signed(signed: bytes, payload: bytes, key: bytes) -> bool:
    """Whether ``payload`` was signed with a key; false without the package ``cryptography``, so that nothing is shared."""
    if signed[_SIGNATURE_BYTES:] != payload:
        return False
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed[:_SIGNATURE_BYTES], payload)
    except (InvalidSignature, ValueError):
        return False
    return True
