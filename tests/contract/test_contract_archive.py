"""Archives: read into memory, bounded, and never anything but files and directories below their top."""

from __future__ import annotations

import base64
import contextlib
import gzip
import subprocess
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from contract_kit import tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.archive import LARGEST_PACKED, LARGEST_UNPACKED, MOST_MEMBERS, read_archive, write_archive
from casemate.contract.errors import ArchiveError, NoComposeError

COMPOSE = ("docker-compose.yaml", b"services: {}\n")
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 1)).decode()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("hostile", "cause"),
    [
        (member("a", tarfile.SYMTYPE, "/etc/shadow"), "is a link"),
        (member("a", tarfile.SYMTYPE, "docker-compose.yaml"), "is a link"),
        (member("a", tarfile.LNKTYPE, "docker-compose.yaml"), "is a link"),
        (member("a", tarfile.CHRTYPE, devmajor=1, devminor=1), "neither a regular file"),
        (member("a", tarfile.BLKTYPE, devmajor=8), "neither a regular file"),
        (member("a", tarfile.FIFOTYPE), "neither a regular file"),
        (member("/etc/passwd"), "absolute path"),
        (member("//etc/passwd"), "absolute path"),
        (member("../a"), r"by `\.\.`"),
        (member("a/../../b"), r"by `\.\.`"),
        (member("a/.."), r"by `\.\.`"),
        (member("..", tarfile.DIRTYPE), r"by `\.\.`"),
        (member("a\\..\\b"), "odd characters"),
        (member("a\nb"), "odd characters"),
        (member("a\x1b[2Jb"), "odd characters"),
        (member("a\u202eb"), "odd characters"),
        (member("/".join("a" * 17)), "too deep"),
        (member("a" * 513), "too long"),
        (member("./"), "has no name|neither"),
        (member("docker-compose.yaml"), "stands twice"),
        (member("./docker-compose.yaml"), "stands twice"),
        (member("docker-compose.yaml/a"), "lies under a file"),
        (member("docker-compose.yaml", tarfile.DIRTYPE), "stands twice"),
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_member_that_is_not_a_plain_file_is_refused(hostile: tarfile.TarInfo, cause: str, form: int) -> None:
    with pytest.raises(ArchiveError, match=cause):
        read_archive(encoded(tar(COMPOSE, (hostile, b""), format=form)))


def test_a_sparse_file_is_refused() -> None:
    sparse = member("a")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    with pytest.raises(ArchiveError):
        read_archive(encoded(tar(COMPOSE, (sparse, b"1\n0\n512\n" + bytes(504)))))
    with pytest.raises(ArchiveError):
        read_archive(encoded(tar(COMPOSE, (member("a", tarfile.GNUTYPE_SPARSE), b""))))


def test_an_archive_that_unpacks_to_gigabytes_stops_at_the_limit() -> None:
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    text = base64.b64encode(start + piece * 4096).decode()  # 4 GiB in 4 MiB
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="unpacks to more than 64 MiB"):
            read_archive(text)
        assert tracemalloc.get_traced_memory()[1] < 3 * LARGEST_UNPACKED
    finally:
        tracemalloc.stop()


def test_too_much_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(ArchiveError, match="packed larger"):
        read_archive("A" * (LARGEST_PACKED * 2))
    with pytest.raises(ArchiveError, match="members"):
        read_archive(encoded(tar(*((f"f{number}", b"") for number in range(MOST_MEMBERS + 1)))))


def test_extended_headers_are_bounded() -> None:
    long = member("a")
    long.pax_headers = {"comment": "x" * 20_000}
    with pytest.raises(ArchiveError, match="damaged"):
        read_archive(encoded(tar((long, b""))))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "cut short"),
        ("not base64!", "not base64"),
        ("QUJD", "not gzip"),
        (encoded(tar(COMPOSE))[:-8], "cut short|not base64"),
        (base64.b64encode(gzip.compress(tar(COMPOSE)) + b"more").decode(), "something follows"),
        (base64.b64encode(gzip.compress(tar(COMPOSE)) * 2).decode(), "something follows"),
        (base64.b64encode(zlib.compress(tar(COMPOSE))).decode(), "not gzip"),
        (base64.b64encode(tar(COMPOSE)).decode(), "not gzip"),
        (encoded(tar(COMPOSE)[:700]), "damaged"),
        (encoded(tar(COMPOSE)[:512]), "damaged"),
        (encoded(b"x" * 512), "damaged"),
        (encoded(tar(COMPOSE) + b"x"), "damaged"),
        (encoded(tar(COMPOSE)[:1024] + b"\1" * 512 + tar(COMPOSE)), "damaged"),
    ],
)
def test_a_damaged_archive_is_refused(text: str, cause: str) -> None:
    with pytest.raises(ArchiveError, match=cause):
        read_archive(text)


def test_a_compose_file_must_be_there_once() -> None:
    assert read_archive(encoded(tar(COMPOSE))).compose() == COMPOSE
    with pytest.raises(NoComposeError, match=r"no docker-compose\.yaml"):
        read_archive(encoded(tar(("a/docker-compose.yaml", b"")))).compose()
    with pytest.raises(ArchiveError, match="several"):
        read_archive(encoded(tar(COMPOSE, ("compose.yml", b"")))).compose()
    copy = ("docker-compose.yml", COMPOSE[1])  # so is the simple contract in the original's documentation
    assert read_archive(encoded(tar(copy, COMPOSE))).compose() == COMPOSE


@given(data=st.binary(max_size=600))
@quick
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for text in (base64.b64encode(data).decode(), encoded(data), data.decode("latin-1")):
        with contextlib.suppress(ArchiveError):
            read_archive(text)


@given(position=st.integers(0, 4095), value=st.integers(0, 255), more=st.integers(0, 4095))
@settings(quick, max_examples=300)
def test_an_archive_with_bytes_changed_gives_safe_paths_or_an_error(position: int, value: int, more: int) -> None:
    data = bytearray(tar(COMPOSE, ("conf/a.conf", b"x" * 600), (member("d", tarfile.DIRTYPE), b"")))
    for place in (position % len(data), more % len(data)):
        data[place] = value
    try:
        archive = read_archive(encoded(bytes(data)))
    except ArchiveError:
        return
    for path in (*archive.files, *archive.directories):
        assert path and not path.startswith("/") and ".." not in path.split("/") and "\\" not in path


names = st.lists(st.text("abc.-_", min_size=1, max_size=6).filter(lambda name: name.strip(".")), min_size=1, max_size=4)


@given(files=st.dictionaries(names.map("/".join), st.binary(max_size=50), min_size=1, max_size=6))
@quick
def test_what_is_packed_reads_back_and_is_the_same_each_time(files: dict[str, bytes]) -> None:
    paths = set(files)
    if any("/".join(path.split("/")[:count]) in paths for path in paths for count in range(1, path.count("/") + 1)):
        with pytest.raises(ArchiveError):
            write_archive(files)
        return
    executable = frozenset(sorted(files)[:1])
    text = write_archive(files, executable)
    archive = read_archive(text)
    assert archive.files == files and archive.executable == executable
    assert write_archive(dict(reversed(files.items())), executable) == text


@pytest.mark.components
def test_tar_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    files = {
        "docker-compose.yaml": b"services: {}\n",
        "conf/" + "long" * 20 + "/ä.conf": b"x" * 5000,
        "run.sh": b"#!\n",
    }
    packed = base64.b64decode(write_archive(files, frozenset({"run.sh"})))
    listed = subprocess.run(["tar", "-tzvf", "-"], input=packed, capture_output=True, check=True).stdout.decode()
    assert "-rwxr-xr-x" in listed and "docker-compose.yaml" in listed
    subprocess.run(["tar", "-xzf", "-", "-C", tmp_path], input=packed, check=True)
    for form in ("gnu", "pax", "ustar", "v7"):
        if form == "v7":
            (tmp_path / "conf").rename(tmp_path / "other") if (tmp_path / "conf").exists() else None
            command = ["tar", "--format=v7", "-czf", "-", "-C", str(tmp_path), "docker-compose.yaml", "run.sh"]
        else:
            command = ["tar", f"--format={form}", "-czf", "-", "-C", str(tmp_path), "."]
        theirs = subprocess.run(command, capture_output=True, check=True).stdout
        archive = read_archive(base64.encodebytes(theirs).decode())  # with line breaks, as `base64` writes
        assert archive.compose()[1] == files["docker-compose.yaml"]
        assert archive.executable == {"run.sh"}
        if form != "v7":
            assert archive.files == files


def test_reading_does_not_touch_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read_archive(encoded(tar(COMPOSE, ("a/b", b"x"))))
    assert list(tmp_path.iterdir()) == []
