"""Raw LUKS containers, with qemu-img and qemu-io as the oracles."""

import random
import subprocess

import pytest

from wirt.errors import CorruptImage, ImageAccessDenied, ImageError, NotThisFormat
from wirt.image.create import create_image
from wirt.image.open import open_image

pytest.importorskip("cryptography")
pytestmark = pytest.mark.needs_qemu_img

SECRET = "correct horse"
MIB = 1 << 20
QUICK = {"secret": SECRET, "iter-time": "10"}


def qemu(program, *words, path):
    options = f"driver=luks,key-secret=s,file.filename={path}"
    done = subprocess.run(
        [program, *words[:1], "--object", f"secret,id=s,data={SECRET}", "--image-opts", *words[1:],
         options] if program == "qemu-img" else
        [program, "--object", f"secret,id=s,data={SECRET}", "--image-opts", options, *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def opened(path, **options):
    return open_image(str(path), format="luks", secret=SECRET.encode(), **options)


@pytest.mark.parametrize(
    "options", [{}, {"cipher-alg": "aes-128"}, {"cipher-mode": "cbc", "ivgen-alg": "essiv"}]
)
def test_what_we_write_qemu_reads(tmp_path, options):
    path, rng = tmp_path / "disk.luks", random.Random(5)
    create_image(str(path), "luks", 2 * MIB, options={**QUICK, **options})
    model = bytearray(2 * MIB)
    with opened(path, writable=True) as image:
        image.write_zeroes(0, 2 * MIB)
        for _ in range(20):
            offset = rng.randrange(2 * MIB - 5000)
            data = rng.randbytes(rng.randrange(1, 5000))
            image.pwrite(offset, data)
            model[offset : offset + len(data)] = data
        assert image.pread(0, 2 * MIB) == model
    (tmp_path / "model").write_bytes(model)
    answer = qemu("qemu-img", "compare", f"driver=raw,file.filename={tmp_path}/model", path=path)
    assert "identical" in answer


def test_what_qemu_writes_we_read_and_resize(tmp_path):
    path = tmp_path / "disk.luks"
    create_image(str(path), "luks", MIB, options=QUICK)
    qemu("qemu-io", "-c", "write -P 7 1000 70000", path=path)
    with opened(path, writable=True) as image:
        assert image.pread(1000, 70000) == b"\7" * 70000
        image.resize(2 * MIB)
        image.pwrite(2 * MIB - 512, b"\x08" * 512)
    qemu("qemu-io", "-c", f"read -P 8 {2 * MIB - 512} 512", path=path)


def test_a_passphrase_is_needed(tmp_path):
    path = tmp_path / "disk.luks"
    create_image(str(path), "luks", MIB, options=QUICK)
    with open_image(str(path)) as image:
        assert image.format_name == "luks"
        assert image.info().encrypted
        with pytest.raises(ImageAccessDenied):
            image.pread(0, 512)
    with pytest.raises(ImageAccessDenied):
        open_image(str(path), secret=b"wrong")


def test_spoiled_headers_are_refused(tmp_path):
    path = tmp_path / "disk.luks"
    create_image(str(path), "luks", MIB, options=QUICK)
    good = path.read_bytes()
    rng = random.Random(3)
    for _ in range(200):
        bad = bytearray(good[:4096])
        bad[rng.randrange(592)] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            with open_image(str(path), format="luks") as image:
                image.info()
        except (CorruptImage, NotThisFormat, ImageError):
            continue
