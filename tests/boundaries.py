"""Reads imports and calls of the source, and says what crosses a boundary (DESIGN: what runs inside the TEE, what does I/O).

    violations(Path("src/casemate"))     # ["guest/storage.py:12: imports casemate.machine", …]

The rules:

- ``guest`` imports ``guest`` and the pure part, nothing else of ours; and of other packages those that Debian installs
  in the guest. Nothing is imported there under a name that is computed; the one exception: what starts the services.
- ``hpsb`` imports ``hpsb`` and the pure part; of other packages those that Debian installs, as the guest.
- The pure part imports the pure part, and only such modules of the standard library as neither read nor write, start nor
  connect; it opens nothing. The one exception: the contract's schema is a file beside its module.
- A builder machine knows more than one of the layer: modules of ``guest`` named in :data:`BUILDERS` import those of
  :data:`INSIDE` too, which are as pure as the pure part.
- Nowhere: pickle and its like, YAML with objects, a shell, unpacking of archives to disk, TLS without verification,
  text that is run.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PURE = (
    "contract",
    "attestation",
    "secureexec",
    "luks",
    "certificates",
    "cidata",
    "approval",
    "errors",
    "secret",
    "strictjson",
)
WORKLOADS = ("hpsb",)
"""Inside of the TEE too, in containers of their own: of other packages they have what the guest has."""
STARTER = "guest/start.py"
"""Imports a service by its name, which stands in a unit, and stands for a module of Python until that is used."""
OUTSIDE = ("image", "machine", "deploy", "build", "demo", "doctor", "cli")
GUEST = (
    *("guest", "contract", "attestation", "secureexec", "luks", "certificates"),
    *("cidata", "errors", "secret", "strictjson"),
)
BUILDERS = ("guest/builder", "guest/bootstrap")
INSIDE = (
    *("casemate.secureexec", "casemate.approval", "casemate.image.assemble", "casemate.image.cpio"),
    *("casemate.image.provenance", "casemate.build.frame", "casemate.build.job", "casemate.build.forms"),
    *(
        "casemate.build.keyset",
        "casemate.build.ceremony",
        "casemate.build.ceremonyplan",
        "casemate.build.ceremonysession",
    ),
)
LOG = ("casemate.build.keylog",)
"""What builder machines have besides what every guest has."""
IN_THE_GUEST = {"cryptography", "yaml", "jsonschema"}
HARMLESS = {
    "__future__", "base64", "binascii", "collections", "concurrent", "contextlib", "copy", "dataclasses", "datetime", "difflib",
    "enum", "functools", "gzip", "hashlib", "html", "io", "ipaddress", "itertools", "json", "math", "posixpath", "re",
    "secrets", "shlex", "stat", "string", "struct", "tarfile", "textwrap", "types", "typing", "unicodedata", "warnings", "zlib",
}  # fmt: skip
EXCEPTIONS = {("contract/schema.py", "pathlib")}
NEVER = {"pickle", "marshal", "shelve", "dill", "imp", "telnetlib", "ftplib", "xmlrpc"}
NEVER_CALLED = {
    *("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("tempfile.mktemp", "ssl._create_unverified_context", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
NEVER_METHODS = {"extractall", "unpack_archive"}
NEVER_NAMED = {"CERT_NONE", "UnsafeLoader", "FullLoader", "CUnsafeLoader", "CFullLoader"}
NEVER_TOLD = {("shell", True), ("verify", False), ("check_hostname", False)}
OPENERS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir", "print", "input"}


def violations(package: Path) -> list[str]:
    """Return every crossing in a package, as ``file:line: what``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        found += [f"{name}:{line}: {what}" for line, what in _file(name, ast.parse(path.read_text("utf-8")))]
    return found


def _file(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    part = name.split("/")[0].removesuffix(".py")
    workload = part in WORKLOADS
    inside, builds = (
        part == "guest" or workload,
        _within(f"casemate.{name.removesuffix('.py').replace('/', '.')}", INSIDE),
    )
    pure = part in PURE or builds
    more = (*INSIDE, *LOG) if name.startswith(BUILDERS) else INSIDE if builds else ("nothing",)
    yield from _everywhere(tree)
    for line, module in _imports(name, tree):
        ours, top = module.startswith("casemate"), module.split(".")[0]
        owner = module.partition(".")[2].split(".")[0]
        if ours and workload and owner not in (part, "__version__", *PURE):
            yield line, f"imports {module}, which its container does not have"
        if _within(module, more):
            continue
        if ours and inside and not workload and owner not in GUEST:
            yield line, f"imports {module}, which is not in the guest"
        if ours and pure and owner not in PURE and module != "casemate.guest.kinds":
            yield line, f"imports {module}, which is not pure"
        if ours:
            continue
        if (inside or builds or (pure and part in GUEST)) and top not in sys.stdlib_module_names | IN_THE_GUEST:
            yield line, f"imports {module}, which Debian does not install in the guest"
        if pure and top in sys.stdlib_module_names and top not in HARMLESS and (name, top) not in EXCEPTIONS:
            yield line, f"imports {module}, and pure code does no input or output"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        computes = called.split(".")[-1] in ("__import__", "import_module")
        if (inside or pure) and computes and name != STARTER:
            yield node.lineno, "imports under a computed name"
        method = called.split(".")[-1]
        if pure and (called in OPENERS or method in OPENERS - {"open"}) and not _schema(name, node):
            yield node.lineno, f"calls {called}, and pure code does no input or output"


def _schema(name: str, node: ast.Call) -> bool:
    return name == "contract/schema.py" and ast.unparse(node) == "Path(__file__).with_name('schema.json').read_bytes()"


def _within(module: str, names: Iterable[str]) -> bool:
    """Whether a module is one of these, or in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each module that is imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["casemate", *name.split("/")[:-1]]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            if base in ("casemate", "casemate.build", "casemate.image"):
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def _everywhere(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, module in _imports("", tree):
        if module.split(".")[0] in NEVER:
            yield line, f"imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name, ast.alias)):
            named = (
                node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else node.name
            )
            if named in NEVER_NAMED:
                yield node.lineno, f"names {named}"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False:
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in ("check_hostname", "verify"):
                    yield node.lineno, f"sets {target.attr} to False"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in NEVER_CALLED or called.split(".")[-1] in NEVER_METHODS:
                yield node.lineno, f"calls {called}"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in NEVER_TOLD:
                    yield node.lineno, f"calls {called} with {keyword.arg}={keyword.value.value}"
