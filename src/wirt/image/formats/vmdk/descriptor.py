"""The descriptor: a text that names the disk's extents and its parent."""

from __future__ import annotations

import re

import msgspec

from wirt.errors import CorruptImage, NotThisFormat

NO_PARENT = 0xFFFFFFFF
MAX_DESCRIPTOR = 1 << 20
_MAX_EXTENTS = 4096
_EXTENT = re.compile(
    r'(RW|RDONLY|NOACCESS)\s+(\d{1,19})\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d{1,19}))?)?'
)
_SETTING = re.compile(r'([A-Za-z][\w.]*)\s*=\s*"?([^"]*)"?')


class ExtentLine(msgspec.Struct, frozen=True):
    access: str
    sectors: int
    kind: str
    file: str = ""
    offset: int = 0

    def text(self) -> str:
        if self.kind == "ZERO":
            return f"{self.access} {self.sectors} ZERO"
        # QEMU takes an offset of FLAT extents only.
        place = f" {self.offset}" if self.kind == "FLAT" or self.offset else ""
        return f'{self.access} {self.sectors} {self.kind} "{self.file}"{place}'


class Descriptor(msgspec.Struct, frozen=True):
    settings: dict[str, str]
    extents: tuple[ExtentLine, ...]

    @property
    def cid(self) -> int:
        return self._hexadecimal("CID")

    @property
    def parent_cid(self) -> int:
        return self._hexadecimal("parentCID")

    @property
    def create_type(self) -> str:
        return self.settings.get("createType", "")

    @property
    def parent_name(self) -> str:
        return self.settings.get("parentFileNameHint", "")

    def _hexadecimal(self, name: str) -> int:
        text = self.settings.get(name, "ffffffff")
        try:
            return int(text, 16) & 0xFFFFFFFF
        except ValueError as error:
            raise CorruptImage(f"{name} is no number: {text[:20]!r}") from error


def parse_descriptor(data: bytes) -> Descriptor:
    """Return what the text says. Raises NotThisFormat or CorruptImage."""
    text = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
    if "# Disk DescriptorFile" not in text[:1024]:
        raise NotThisFormat("there is no VMDK descriptor")
    settings: dict[str, str] = {}
    extents = []
    for raw in text.splitlines():
        line = raw.strip()
        extent = _EXTENT.fullmatch(line)
        setting = _SETTING.fullmatch(line)
        if extent:
            access, sectors, kind, file, offset = extent.groups()
            extents.append(ExtentLine(access, int(sectors), kind, file or "", int(offset or 0)))
        elif setting:
            settings.setdefault(setting[1], setting[2].strip())
    if len(extents) > _MAX_EXTENTS:
        raise CorruptImage(f"the descriptor names {len(extents)} extents")
    return Descriptor(settings, tuple(extents))


def replaced_cid(data: bytes, cid: int) -> bytes:
    """Return the descriptor with another CID, as long as before."""
    return re.sub(rb"(?m)^CID\s*=\s*[0-9a-fA-F]{8}", b"CID=%08x" % cid, data, count=1)


def changed_descriptor(
    data: bytes,
    *,
    settings: dict[str, str | None] | None = None,
    extents: list[ExtentLine] | None = None,
) -> bytes:
    """Return the text with other settings (None: without it) and other extents.

    Whatever else it says stays as it is.
    """
    left = dict(settings or {})
    lines: list[str] = []
    written = False
    for raw in data.split(b"\0")[0].decode("utf-8", "surrogateescape").splitlines():
        setting = _SETTING.fullmatch(raw.strip())
        if extents is not None and _EXTENT.fullmatch(raw.strip()):
            if not written:
                lines += [extent.text() for extent in extents]
                written = True
        elif setting and setting[1] in left:
            lines += _setting_line(setting[1], left.pop(setting[1]))
        else:
            if raw.startswith("# Extent"):
                for name in [name for name in left if "." not in name]:
                    lines += _setting_line(name, left.pop(name))
            lines.append(raw)
    for name, value in left.items():
        lines += _setting_line(name, value)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _setting_line(name: str, value: str | None) -> list[str]:
    if value is None:
        return []
    return [f"{name}={value}" if name.endswith("CID") else _quoted(name, value)]


def _quoted(name: str, value: str) -> str:
    return f'{name} = "{value}"' if name.startswith("ddb.") else f'{name}="{value}"'


def cylinders(size: int, heads: int, sectors: int = 63) -> int:
    """Return the geometry's cylinders, as far as an adapter counts."""
    return min(size // (sectors * heads * 512), 16383 if heads == 16 else 65535)


def format_descriptor(
    create_type: str,
    extents: list[ExtentLine],
    *,
    cid: int,
    size: int,
    parent_cid: int = NO_PARENT,
    parent_name: str = "",
    adapter: str = "ide",
    hardware: int = 4,
) -> bytes:
    heads = 16 if adapter == "ide" else 255
    hint = f'parentFileNameHint="{parent_name}"\n' if parent_name else ""
    lines = "\n".join(extent.text() for extent in extents)
    return (
        "# Disk DescriptorFile\n"
        f"version=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\n"
        f'createType="{create_type}"\n{hint}\n'
        f"# Extent description\n{lines}\n\n"
        "# The Disk Data Base\n#DDB\n\n"
        f'ddb.virtualHWVersion = "{hardware}"\n'
        f'ddb.geometry.cylinders = "{cylinders(size, heads)}"\n'
        f'ddb.geometry.heads = "{heads}"\n'
        f'ddb.geometry.sectors = "63"\n'
        f'ddb.adapterType = "{adapter}"\n'
    ).encode()
