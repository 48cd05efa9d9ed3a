"""Bits that a byte of a text takes by gzip -9, xz -9e and zstd -19: what a language model's `bits_per_byte` is beside.

    python -m benchmarks.compressors --text=books.val.txt.gz [--before=books.train.txt.gz]

With --before also what each takes for the text behind another one that it has seen, as a language model has seen its training
text: xz's archive of both less that of the first alone, zstd's --patch-from; gzip looks back 32 kB only. zstd is the program of
that name. The last line is one JSON object.
"""

import gzip
import json
import lzma
import shutil
import subprocess
import tempfile
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("text", None, "file, plain or gzip", required=True)
flags.DEFINE_string("before", None, "file, plain or gzip, that stands in front")


def main(_):
    text = content(FLAGS.text)
    found = {"bytes": len(text), "gzip": len(gzip.compress(text, 9)), "xz": xz(text), "zstd": zstd(text)}
    if FLAGS.before:
        before = content(FLAGS.before)
        found |= {"xz_behind": xz(before + text) - xz(before), "zstd_behind": zstd(text, before)}
    bits = {name: round(8 * size / len(text), 4) for name, size in found.items() if size is not None and name != "bytes"}
    print(json.dumps({"archive_bytes": found, "bits_per_byte": bits}))


def content(path: str) -> bytes:
    raw = Path(path).read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def xz(data: bytes) -> int:
    """Bytes of the archive, which may look back 64 MB."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def zstd(data: bytes, before: bytes | None = None) -> int | None:
    """Bytes of the archive; None where there is no such program."""
    if not shutil.which("zstd"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_bytes(data)
        flags = ["-19"]
        if before is not None:
            (Path(folder) / "before").write_bytes(before)
            flags += ["--long=27", "--patch-from=before"]
        done = subprocess.run(["zstd", "-q", "-c", *flags, "text"], cwd=folder, capture_output=True, check=True)
        return len(done.stdout)


if __name__ == "__main__":
    app.run(main)
