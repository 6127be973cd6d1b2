"""A writer of Apple's disk images, for what no Debian program makes."""

import bz2
import hashlib
import hmac
import lzma
import plistlib
import struct
import zlib

import lzfse
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SECTOR = 512
KINDS = {
    "zero": 0, "plain": 1, "unused": 2,
    "adc": 0x80000004, "zlib": 0x80000005, "bzip2": 0x80000006,
    "lzfse": 0x80000007, "lzma": 0x80000008,
}  # fmt: skip


def adc(data):
    """Compress with all three codes: greedy, matches looked up by their first three bytes."""
    out, literal, seen, at = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(literal), 128):
            piece = literal[start : start + 128]
            out.append(0x80 | len(piece) - 1)
            out.extend(piece)
        literal.clear()

    while at < len(data):
        start = seen.get(data[at : at + 3])
        if at + 3 <= len(data):
            seen[data[at : at + 3]] = at
        length = 0
        if start is not None and at - start <= 65536:
            while length < 67 and at + length < len(data):
                if data[start + length] != data[at + length]:
                    break
                length += 1
        far = at - (start or 0) - 1
        if 3 <= length <= 18 and far < 1024:
            flush()
            out.extend((length - 3 << 2 | far >> 8, far & 0xFF))
        elif length >= 4:
            flush()
            out.extend((0x40 | length - 4, far >> 8, far & 0xFF))
        else:
            literal.append(data[at])
            length = 1
        at += length
    flush()
    return bytes(out)


PACKERS = {
    "zero": lambda data: b"", "unused": lambda data: b"", "plain": bytes,
    "adc": adc, "zlib": zlib.compress, "bzip2": bz2.compress, "lzma": lzma.compress,
    "lzfse": lzfse.compress,
}  # fmt: skip


def table(first, chunks, *, data=0):
    """A block table of (kind, sector, sectors, offset, length), its sectors from ``first`` on."""
    end = max((sector + count for _, sector, count, _, _ in chunks), default=0)
    head = struct.pack(">4sIQQQIII", b"mish", 1, first, end, data, 2056, 1, 0)
    body = b"".join(struct.pack(">IIQQQQ", kind, 0, *rest) for kind, *rest in chunks)
    body += struct.pack(">IIQQQQ", 0xFFFFFFFF, 0, end, 0, 0, 0)
    return head.ljust(200, b"\0") + struct.pack(">I", len(chunks) + 1) + body


def resource_fork(tables):
    """The block tables as resources "blkx" of a classic resource fork, and one of another kind."""
    resources = [(b"plst", 0, b"x" * 50)] + [(b"blkx", n, raw) for n, raw in enumerate(tables)]
    data, places = b"", []
    for _, _, raw in resources:
        places.append(len(data))
        data += struct.pack(">I", len(raw)) + raw
    kinds = (b"plst", b"blkx")
    lists, refs = b"", b""
    for kind in kinds:
        own = [(r[1], p) for r, p in zip(resources, places, strict=True) if r[0] == kind]
        lists += struct.pack(">4sHH", kind, len(own) - 1, 2 + 8 * len(kinds) + len(refs))
        refs += b"".join(struct.pack(">hHII", n, 0xFFFF, p, 0) for n, p in own)
    types = struct.pack(">H", len(kinds) - 1) + lists + refs
    head = struct.pack(">IIII", 256, 256 + len(data), len(data), 28 + len(types))
    listed = head + bytes(8) + struct.pack(">HH", 28, 28 + len(types)) + types
    return head.ljust(256, b"\0") + data + listed


def udif(data, layout, *, fork=b"head", resources=False, partitions=1, shuffled=None, sectors=None):
    """An image of ``data``: ``layout`` yields (kind, sectors) until the disk ends.

    ``shuffled`` is a random.Random that stores the chunks in another order than the disk's.
    """
    chunks, at = [], 0
    layout = list(layout)
    while at < len(data):
        kind, count = layout[len(chunks) % len(layout)]
        count = min(count, (len(data) - at) // SECTOR)
        chunks.append((kind, at // SECTOR, count))
        at += count * SECTOR
    order = list(range(len(chunks)))
    if shuffled:
        shuffled.shuffle(order)
    stored, places = bytearray(), {}
    for number in order:
        kind, first, count = chunks[number]
        if kind == "hole":
            continue
        packed = PACKERS[kind](data[first * SECTOR : (first + count) * SECTOR])
        places[number] = (len(stored), len(packed))
        stored += packed
    tables, size = [], -(-len(chunks) // partitions)
    for start in range(0, len(chunks), size):
        part = chunks[start : start + size]
        base = part[0][1]
        entries = [
            (KINDS[kind], first - base, count, *places[start + n])
            for n, (kind, first, count) in enumerate(part)
            if kind != "hole"
        ]
        tables.append(table(base, entries))
    return assemble(
        bytes(stored), tables, len(data) // SECTOR if sectors is None else sectors,
        fork=fork, resources=resources,
    )  # fmt: skip


def assemble(stored, tables, sectors, *, fork=b"", resources=False):
    if resources:
        listing = resource_fork(tables)
    else:
        entries = [
            {"Attributes": "0x0050", "CFName": str(n), "Name": str(n), "ID": str(n), "Data": raw}
            for n, raw in enumerate(tables)
        ]
        listing = plistlib.dumps({"resource-fork": {"blkx": entries, "plst": []}})
    at = len(fork) + len(stored)
    trailer = bytearray(512)
    struct.pack_into(">4sIIIQQQ", trailer, 0, b"koly", 4, 512, 1, 0, len(fork), len(stored))
    struct.pack_into(">II", trailer, 56, 1, 1)
    struct.pack_into(">QQ", trailer, 40 if resources else 216, at, len(listing))
    struct.pack_into(">IQ", trailer, 488, 1, sectors)
    return fork + stored + listing + bytes(trailer)


def _cbc(cipher, iv, data):
    worker = Cipher(cipher, modes.CBC(iv)).encryptor()
    return worker.update(data) + worker.finalize()


def _padded(data):
    count = 8 - len(data) % 8
    return data + bytes([count]) * count


def blocks(data, aes, mac, size, first=0):
    """Encipher block by block, each under an IV of its own."""
    out = b""
    for at in range(0, len(data), size):
        number = struct.pack(">I", first + at // size)
        iv = hmac.new(mac, number, hashlib.sha1).digest()[:16]
        piece = data[at : at + size]
        out += _cbc(algorithms.AES(aes), iv, piece.ljust(size, b"\0"))
    return out


def encrypted_head(length, aes, mac, secret, *, size=512, entries=2, rounds=1000):
    """The header of version 2; the passphrase's key is the last of its entries."""
    salt, iv = b"s" * 20, b"i" * 8
    key = hashlib.pbkdf2_hmac("sha1", secret, salt, rounds, 24)
    wrapped = _cbc(TripleDES(key), iv, _padded(aes + mac + b"CKIE\0"))
    entry = struct.pack(
        ">III I32s I32s 5I", 0x67, 0, rounds, 20, salt, 8, iv, 192, 0x11, 7, 6, len(wrapped)
    )
    entry += wrapped
    head = struct.pack(
        ">8s7I16sIQQI", b"encrcdsa", 2, 16, 5, 0x80000001, 8 * len(aes), 0x5B, 160, b"u" * 16,
        size, length, 4096, entries,
    )  # fmt: skip
    for number in range(entries):
        kind = 1 if number == entries - 1 else 2
        head += struct.pack(">IQQ", kind, 1024, max(len(entry), 616))
    return (head.ljust(1024, b"\0") + entry).ljust(4096, b"\0")


def encrypted_2(data, secret, *, bits=128, size=512):
    aes, mac = b"a" * (bits // 8), b"m" * 20
    return encrypted_head(len(data), aes, mac, secret, size=size) + blocks(data, aes, mac, size)


def encrypted_1(data, secret, *, bits=128, size=4096, rounds=1000):
    aes, mac, salt = b"A" * (bits // 8), b"M" * 20, b"t" * 20
    key = hashlib.pbkdf2_hmac("sha1", secret, salt, rounds, 24)

    def wrapped(value):
        inner = _cbc(TripleDES(key), b"v" * 8, _padded(bytes(4) + value))
        fixed = bytes.fromhex("4adda22c79e82105")
        return _cbc(TripleDES(key), fixed, _padded((b"v" * 8 + inner)[::-1]))

    trailer = bytearray(1276)
    struct.pack_into(">10I", trailer, 16, size, 0x11, 7, 6, 192, 8, 0x67, 0, rounds, 20)
    trailer[56:76] = salt
    struct.pack_into(">IIII", trailer, 88, 16, 5, 0x80000001, 8 * len(aes))
    for at, value in ((136, aes), (436, mac)):
        packed = wrapped(value)
        struct.pack_into(">I", trailer, at, len(packed))
        trailer[at + 4 : at + 4 + len(packed)] = packed
    struct.pack_into(">QI8s", trailer, 1256, len(data), 1, b"cdsaencr")
    return blocks(data, aes, mac, size) + bytes(trailer)


def sparse_image(data, order, *, band=16, first=1008, further=1010):
    """A growing image that holds the bands ``order``; few entries a table try further ones."""
    size = band * SECTOR
    tables = [order[:first]]
    rest = order[first:]
    while rest:
        tables.append(rest[:further])
        rest = rest[further:]
    out = bytearray()
    starts, at = [], 0
    for number, numbers in enumerate(tables):
        starts.append(at)
        full = {0: 1008}.get(number, 1010) if number < len(tables) - 1 else len(numbers)
        at += 4096 + full * size
    for number, numbers in enumerate(tables):
        following = starts[number + 1] if number + 1 < len(tables) else 0
        out += bytes(starts[number] - len(out))
        if number == 0:
            head = struct.pack(
                ">4sIIIIQQ", b"sprs", 3, band, 1, len(data) // SECTOR, following,
                len(data) // SECTOR,
            ).ljust(64, b"\0")  # fmt: skip
        else:
            head = struct.pack(">4sIIQ", b"sprs", number, 1, following).ljust(56, b"\0")
        head += b"".join(struct.pack(">I", n + 1) for n in numbers)
        out += head.ljust(4096, b"\0")
        for n in numbers:
            out += data[n * size : (n + 1) * size].ljust(size, b"\0")
    return bytes(out)
