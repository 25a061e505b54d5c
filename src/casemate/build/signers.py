"""Signing keys, found by URI: in a file, or in a token that never gives them out.

    signer = find("pkcs11:token=casemate;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin", here)
    signer.generate("rsa-4096")
    with signer.open() as key:                      # a private key as ``cryptography`` knows it
        certificate = builder.sign(key, hashes.SHA512())

The rules:

- ``file:PATH``: PKCS#8 in PEM, readable by its owner alone; ``?pin-source=file:PATH`` names the file with its password. A
  relative path is one below the directory that the caller names.
- ``pkcs11:…`` after RFC 7512: ``token``, ``object``, ``id``, ``serial``, ``manufacturer``, ``model``, ``type``; after the
  question mark ``module-path`` (absolute) and ``pin-source`` (``file:``, absolute). A PIN in the URI (``pin-value``) is
  refused, since arguments and descriptions are seen by others. An attribute that is not known is refused.
- A key of a token is used only where the token says that it was made inside, is and always was sensitive, and can't and never
  could be extracted. A key that was brought in from outside was seen outside.
- ``grep11:`` has its place in the table and is refused: no such server was there to try it with.
- A PIN is read when it is needed, is in no argument, no environment and no message, and is tried once: tokens lock themselves.

A token's key is a subclass of ``cryptography``'s abstract private keys, the way its authors name for keys that are
elsewhere: the builders of certificates, requests and lists take it as it is. ECDSA is computed over our hash (not all
tokens hash for it), RSA (PKCS#1 v1.5) with the token's own. The library is ``python-pkcs11``; it is asked for only when a
``pkcs11:`` URI is used. ``pkcs11-tool`` would want the PIN in an argument, the environment or at a terminal.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build.forms import Key as Key
from casemate.build.forms import PublicKey as PublicKey
from casemate.build.forms import algorithm_for as algorithm_for
from casemate.errors import CasemateError
from casemate.secret import Secret

ALGORITHMS = ("rsa-4096", "rsa-3072", "p-384")
LARGEST_KEY, LARGEST_PIN = 64 << 10, 1 << 10
_TOKEN_LOCK = threading.RLock()
"""A login belongs to the whole process: two sessions at once would end each other's."""


class SignerError(CasemateError):
    """A signing key can't be found, opened or used. ``SIGNER-URI -PIN -KEY -TOKEN -MODULE -EXISTS -UNSUPPORTED``."""

    id = "SIGNER"


def _error(kind: str, cause: str, cure: str, where: str = "") -> SignerError:
    return SignerError(cause, cure, where, id=f"SIGNER-{kind}")


class Signer(Protocol):
    """A signing key by its URI."""

    @property
    def uri(self) -> str:
        """What it was found by. Holds no secret."""

    def generate(self, algorithm: str) -> None:
        """Make the key where it will stay. Raises :class:`SignerError` where one is there already."""

    def open(self) -> AbstractContextManager[Key]:
        """Give the private key for the length of a ``with``. Raises :class:`SignerError`."""


def find(uri: str, base: Path) -> Signer:
    """Return the signer of a URI; ``base`` is what relative paths of ``file:`` are below. Nothing is opened yet."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise _error("URI", "no signing key is found by this", f"one of {known}", uri if colon else scheme)
    return SCHEMES[scheme](uri, rest, base)


def fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER), hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki(key))
    return digest.finalize().hex()


def spki(key: PublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def new_key(algorithm: str) -> Key:
    """Make a key in memory: ``rsa-4096``, ``rsa-3072`` or ``p-384``."""
    if algorithm == "p-384":
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=_rsa_bits(algorithm))


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read (0600), whole and on the disk, or not at all; never over another."""
    new = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(new)  # fails where there is one
    finally:
        new.unlink()


def _rsa_bits(algorithm: str) -> int:
    if algorithm not in ALGORITHMS:
        raise _error("UNSUPPORTED", f"no keys of the kind {algorithm} are made", f"one of {', '.join(ALGORITHMS)}")
    return int(algorithm.removeprefix("rsa-"))


def _attributes(text: str, separator: str, allowed: set[str], uri: str) -> dict[str, bytes]:
    """Return the attributes of one part of a URI, percent-decoded; each once, none that is not known."""
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise _error("URI", "a PIN has no place in a URI", "name a file that holds it: pin-source=file:PATH")
        if not equals or name not in allowed or name in found or re.search(r"%(?![0-9A-Fa-f]{2})", value):
            raise _error("URI", f"{name!r} is not known here, stands twice, or has no value", "see RFC 7512", uri)
        found[name] = unquote_to_bytes(value)
    return found


def _text(value: bytes, uri: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _error("URI", "a name that is no UTF-8", "write it percent-encoded, as RFC 7512 has it", uri) from None


def _pin_file(source: bytes | None, base: Path, uri: str) -> Path | None:
    if source is None:
        return None
    scheme, _, name = _text(source, uri).partition(":")
    if scheme != "file" or not name or name.startswith("//") or "\0" in name:
        raise _error("URI", "a PIN is read from a file only", "pin-source=file:PATH", uri)
    return base / name


def _read_private(path: Path, limit: int, what: str) -> bytes:
    """Return a file that nobody but its owner can read, opened once: what is checked is what is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _error(
            "PIN" if what == "PIN" else "KEY", f"can't be read: {error.strerror}", "check the name", str(path)
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(file.fileno())
        kind = "PIN" if what == "PIN" else "KEY"
        if not stat.S_ISREG(state.st_mode):
            raise _error(kind, "is no regular file", f"name the file with the {what}", str(path))
        if stat.S_IMODE(state.st_mode) & 0o077:
            raise _error(kind, f"others can read this {what}", f"chmod 600 {path}", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _error(kind, f"is too large for a {what}", "is it the right file?", str(path))
    return data


def _read_pin(path: Path) -> Secret:
    pin = _read_private(path, LARGEST_PIN, "PIN").rstrip(b"\r\n")
    if not pin or b"\0" in pin or not _is_text(pin):
        raise _error("PIN", "holds no PIN", "write the PIN into it, in UTF-8", str(path))
    return Secret(pin)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A key in a file: PKCS#8, PEM, with or without a password."""

    uri: str
    path: Path
    password: Path | None

    @classmethod
    def parse(cls, uri: str, rest: str, base: Path) -> FileSigner:
        """Read ``PATH[?pin-source=file:PATH]``."""
        name, _, query = rest.partition("?")
        found = _attributes(query, "&", {"pin-source"}, uri)
        path = _text(unquote_to_bytes(name), uri)
        if not path or path.startswith("//") or "\0" in path:
            raise _error("URI", "no path of a file", "file:PATH", uri)
        return cls(uri, base / path, _pin_file(found.get("pin-source"), base, uri))

    def generate(self, algorithm: str) -> None:
        """Make a key and write it, under the password where there is one."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if self.password is not None:
            encryption = serialization.BestAvailableEncryption(_read_pin(self.password).reveal())
        if self.path.exists():
            raise _error(
                "EXISTS", "there is a key already", "name another, or take it: --existing-keys", str(self.path)
            )
        pem = new_key(algorithm).private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        try:
            write_private(self.path, pem)
        except FileExistsError:
            raise _error(
                "EXISTS", "there is a key already", "name another, or take it: --existing-keys", str(self.path)
            ) from None
        except OSError as error:
            raise _error("KEY", f"can't be written: {error.strerror}", "check the directory", str(self.path)) from None

    @contextmanager
    def open(self) -> Iterator[Key]:
        """Load the key."""
        pem = _read_private(self.path, LARGEST_KEY, "key")
        password = None if self.password is None else _read_pin(self.password).reveal()
        try:
            key = serialization.load_pem_private_key(pem, password)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            cure = (
                "give the file with its password: ?pin-source=file:PATH" if password is None else "check the password"
            )
            raise _error("KEY", "no private key that can be opened", cure, str(self.path)) from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise _error("KEY", "neither an RSA key nor one of an elliptic curve", "use another key", str(self.path))
        yield key


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """A key in a PKCS#11 token."""

    uri: str
    path: dict[str, bytes]
    module: str
    pin: Path

    @classmethod
    def parse(cls, uri: str, rest: str, base: Path) -> TokenSigner:
        """Read a URI of RFC 7512."""
        path, _, query = rest.partition("?")
        found = _attributes(path, ";", {"token", "object", "id", "serial", "manufacturer", "model", "type"}, uri)
        more = _attributes(query, "&", {"module-path", "pin-source"}, uri)
        if not {"token", "serial"} & set(found) or not {"object", "id"} & set(found):
            raise _error(
                "URI", "names no token, or no key in it", "pkcs11:token=…;object=…?module-path=…&pin-source=…", uri
            )
        if found.pop("type", b"private") != b"private":
            raise _error("URI", "only a private key can sign", "leave type= out", uri)
        module, pin = _text(more.get("module-path", b""), uri), _pin_file(more.get("pin-source"), base, uri)
        if not module.startswith("/"):
            raise _error("URI", "which library reaches the token?", "module-path=/usr/lib/softhsm/libsofthsm2.so", uri)
        if pin is None:
            raise _error("URI", "where is the PIN?", "pin-source=file:PATH", uri)
        for name in set(found) - {"id"}:
            _text(found[name], uri)
        return cls(uri, found, module, pin)

    @property
    def _where(self) -> str:
        return self.uri.partition("?")[0]

    @contextmanager
    def _session(self, write: bool = False) -> Iterator[Any]:
        """Log in; errors of the token become ours, by the name of the kind of error and nothing else."""
        try:
            import pkcs11
        except ImportError:
            raise _error(
                "MODULE", "python-pkcs11 is not there", "pip install 'casemate[pkcs11]'", self._where
            ) from None
        pin = _read_pin(self.pin)
        with _TOKEN_LOCK:
            try:
                token = self._token(pkcs11)
                try:
                    session = token.open(rw=write, user_pin=pin.reveal().decode())
                except pkcs11.UserAlreadyLoggedIn:  # another key of the token is in use: its login counts, and lasts
                    session = token.open(rw=write)
            except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
                raise _error(
                    "PIN", "the token refused the PIN", "correct the file; tokens lock after a few", self._where
                ) from None
            except pkcs11.PinLocked:
                raise _error("PIN", "the PIN is locked", "its security officer unlocks it", self._where) from None
            except pkcs11.PKCS11Error as error:
                raise self._failed(error) from None
            finally:
                pin.wipe()
            with session:
                try:
                    yield session
                except pkcs11.PKCS11Error as error:
                    raise self._failed(error) from None

    def _failed(self, error: Exception) -> SignerError:
        return _error("TOKEN", f"the token says {type(error).__name__}", "ask its maker's manual", self._where)

    def _token(self, pkcs11: Any) -> Any:
        try:
            library = pkcs11.lib(self.module)
        except Exception:  # a file that is no library, or one that does not start
            raise _error(
                "MODULE", "this library can't be used", "name the token's PKCS#11 library", self.module
            ) from None
        wanted = {name: value.decode() for name, value in self.path.items() if name not in ("id", "object")}

        def fits(slot: Any) -> Any:
            try:
                token = slot.get_token()
            except pkcs11.PKCS11Error:
                return None
            serial = token.serial.decode("utf-8", "replace") if isinstance(token.serial, bytes) else str(token.serial)
            said = {
                **{"token": token.label, "serial": serial},
                **{"manufacturer": token.manufacturer_id, "model": token.model},
            }
            return token if all(said[name].strip() == value for name, value in wanted.items()) else None

        found = [token for token in map(fits, library.get_slots(token_present=True)) if token is not None]
        if len(found) != 1:
            cause = "there is no such token" if not found else f"{len(found)} tokens have this name"
            raise _error("TOKEN", cause, "check token=, or name it by serial=", self._where)
        return found[0]

    def _keys(self, pkcs11: Any, session: Any, kind: Any) -> list[Any]:
        wanted = {pkcs11.Attribute.CLASS: kind}
        if "object" in self.path:
            wanted[pkcs11.Attribute.LABEL] = self.path["object"].decode()
        if "id" in self.path:
            wanted[pkcs11.Attribute.ID] = self.path["id"]
        return list(session.get_objects(wanted))

    def generate(self, algorithm: str) -> None:
        """Make the key inside of the token: to sign only, sensitive, never to be extracted."""
        bits = 0 if algorithm == "p-384" else _rsa_bits(algorithm)
        with self._session(write=True) as session:
            import pkcs11
            from pkcs11.util.ec import encode_named_curve_parameters

            attribute = pkcs11.Attribute
            if self._keys(pkcs11, session, pkcs11.ObjectClass.PRIVATE_KEY):
                raise _error(
                    "EXISTS",
                    "there is a key of this name already",
                    "name another, or take it: --existing-keys",
                    self._where,
                )
            given: dict[str, Any] = {
                **{"store": True, "id": self.path.get("id") or os.urandom(8)},
                "label": self.path["object"].decode() if "object" in self.path else None,
                "capabilities": pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                "private_template": {attribute.SENSITIVE: True, attribute.EXTRACTABLE: False},
            }
            if bits:
                _, private = session.generate_keypair(pkcs11.KeyType.RSA, bits, **given)
            else:
                curve = {attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}
                parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
                _, private = parameters.generate_keypair(**given)
            self._require_inside(pkcs11, private)

    def _require_inside(self, pkcs11: Any, private: Any) -> None:
        attribute = pkcs11.Attribute
        wanted = {
            **{attribute.SENSITIVE: True, attribute.ALWAYS_SENSITIVE: True, attribute.LOCAL: True},
            **{attribute.EXTRACTABLE: False, attribute.NEVER_EXTRACTABLE: True},
        }
        if any(private[name] is not value for name, value in wanted.items()):
            raise _error(
                "KEY",
                "this key can be, or could have been, outside of the token",
                "make one inside of it",
                self._where,
            )

    @contextmanager
    def open(self) -> Iterator[Key]:
        """Log in and give the key; it works until the end of the ``with``."""
        with self._session() as session:
            import pkcs11
            from pkcs11.util.ec import encode_ec_public_key
            from pkcs11.util.rsa import encode_rsa_public_key

            found = self._keys(pkcs11, session, pkcs11.ObjectClass.PRIVATE_KEY)
            if len(found) != 1:
                cause = "the token has no such key" if not found else f"{len(found)} keys have this name"
                raise _error("KEY", cause, "check object=, or name it by id=", self._where)
            (private,) = found
            self._require_inside(pkcs11, private)
            label = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.Attribute.ID: private.id}
            publics = list(session.get_objects(label))
            if len(publics) != 1:
                raise _error(
                    "KEY", "the token has no public half of this key", "import it under the same id", self._where
                )
            if private.key_type == pkcs11.KeyType.RSA:
                public: Any = serialization.load_der_public_key(encode_rsa_public_key(publics[0]))
                yield TokenRSAKey(public, private, self._where)
            elif private.key_type == pkcs11.KeyType.EC:
                public = serialization.load_der_public_key(encode_ec_public_key(publics[0]))
                yield TokenECKey(public, private, self._where)
            else:
                raise _error("KEY", "neither an RSA key nor one of an elliptic curve", "use another key", self._where)


class _InToken:
    """What keys in tokens share: they sign, and refuse whatever would take them out."""

    def __init__(self, public: Any, handle: Any, where: str) -> None:
        self._public, self._handle, self._where = public, handle, where

    def public_key(self) -> Any:
        return self._public

    @property
    def key_size(self) -> int:
        return int(self._public.key_size)

    def _never(self, *given: object, **more: object) -> NoReturn:
        raise _error("KEY", "this key never leaves its token, and signs only", "use what the token offers", self._where)

    private_bytes = private_numbers = decrypt = exchange = _never

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self

    def __repr__(self) -> str:
        return f"<key in {self._where}>"


class TokenRSAKey(_InToken, rsa.RSAPrivateKey):
    """An RSA key in a token: PKCS#1 v1.5 with SHA-256, -384 or -512."""

    def sign(self, data: Any, padding: padding.AsymmetricPadding, algorithm: Any) -> bytes:
        """Sign, inside of the token."""
        import pkcs11

        name = f"{algorithm.name.upper()}_RSA_PKCS" if hasattr(algorithm, "name") else ""
        if type(padding).__name__ != "PKCS1v15" or name not in {f"SHA{bits}_RSA_PKCS" for bits in (256, 384, 512)}:
            raise _error("UNSUPPORTED", "tokens sign PKCS#1 v1.5 with SHA-2 here", "use that", self._where)
        return bytes(self._handle.sign(bytes(data), mechanism=pkcs11.Mechanism[name]))


class TokenECKey(_InToken, ec.EllipticCurvePrivateKey):
    """A key on an elliptic curve in a token: ECDSA over a hash that is computed here."""

    @property
    def curve(self) -> ec.EllipticCurve:
        """Its curve."""
        curve: ec.EllipticCurve = self._public.curve
        return curve

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign, inside of the token; returns DER."""
        import pkcs11

        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, utils.Prehashed):
            raise _error(
                "UNSUPPORTED", "only whole data is signed, no hash of unknown data", "give the data", self._where
            )
        digest = hashes.Hash(algorithm)
        digest.update(data)
        raw = self._handle.sign(digest.finalize(), mechanism=pkcs11.Mechanism.ECDSA)
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def _grep11(uri: str, rest: str, base: Path) -> NoReturn:
    raise _error(
        "UNSUPPORTED", "keys of a GREP11 server are not there yet", "use pkcs11: with the token's library", uri
    )


SCHEMES: dict[str, Callable[[str, str, Path], Signer]] = {
    "file": FileSigner.parse,
    "pkcs11": TokenSigner.parse,
    "grep11": _grep11,
}
"""How a key is found by the scheme of its URI. Another kind of key is one more row."""
