"""The creation options of all formats: names, kinds, defaults, and how they are shown.

The order is that of the line ``Formatting …``; help is sorted by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.keyvalue import escaped, parse_list
from wirt.cli.kvm_img.sizes import BadSize, SizeRange, number_argument, parse_size

TEXT, SWITCH, NUMBER, SIZE = "str", "bool (on/off)", "num", "size"
_ON = frozenset({"on", "yes", "true", "y"})
_OFF = frozenset({"off", "no", "false", "n"})


class Option(msgspec.Struct, frozen=True):
    name: str
    kind: str
    help: str
    default: str = ""

    def line(self) -> str:
        return f"{f'  {self.name}=<{self.kind}>':<24} - {self.help}"

    def normal(self, value: str) -> str:
        """Return ``value`` in its normal form. Raises Failure if it is not of the kind."""
        if self.kind == SWITCH and value not in _ON | _OFF:
            raise Failure(f"Parameter '{self.name}' expects 'on' or 'off'")
        if self.kind == NUMBER:
            return self._number(value)
        if self.kind == SIZE:
            return self._size(value)
        return value

    def _number(self, value: str) -> str:
        # As strtoull, which takes a negative number modulo 2^64.
        most = (1 << 64) - 1
        number = number_argument(value.removeprefix("-"), most)
        if number is not None and value.startswith("-"):
            number = -number & most
        if number is None:
            raise Failure(f"Parameter '{self.name}' expects a number")
        return str(number)

    def _size(self, value: str) -> str:
        try:
            return str(parse_size(value))
        except SizeRange:
            raise Failure(f"Value '{value}' is out of range for parameter '{self.name}'") from None
        except BadSize:
            raise Failure(
                f"Parameter '{self.name}' expects a non-negative number below 2^64",
                hint="Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                "and exabytes, respectively.\n",
            ) from None


def _luks(prefix: str) -> tuple[Option, ...]:
    return (
        Option(f"{prefix}cipher-alg", TEXT, "Name of encryption cipher algorithm"),
        Option(f"{prefix}cipher-mode", TEXT, "Name of encryption cipher mode"),
        Option(f"{prefix}ivgen-alg", TEXT, "Name of IV generator algorithm"),
        Option(f"{prefix}ivgen-hash-alg", TEXT, "Name of IV generator hash algorithm"),
        Option(f"{prefix}hash-alg", TEXT, "Name of encryption hash algorithm"),
        Option(f"{prefix}iter-time", NUMBER, "Time to spend in PBKDF in milliseconds"),
    )


def _luks_keys(prefix: str) -> tuple[Option, ...]:
    return (
        Option(f"{prefix}state", TEXT, "Select new state of affected keyslots (active/inactive)"),
        Option(f"{prefix}keyslot", NUMBER, "Select a single keyslot to modify explicitly"),
        Option(f"{prefix}old-secret", TEXT, "Select all keyslots that match this password"),
        Option(
            f"{prefix}new-secret",
            TEXT,
            "New secret to set in the matching keyslots. Empty string to erase",
        ),
        Option(f"{prefix}iter-time", NUMBER, "Time to spend in PBKDF in milliseconds"),
    )


_DISK_SIZE = Option("size", SIZE, "Virtual disk size")
_BASE = Option("backing_file", TEXT, "File name of a base image")
_BASE_FORMAT = Option("backing_fmt", TEXT, "Image format of the base image")
_OLD_AES = Option(
    "encryption",
    SWITCH,
    "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
)
_PREALLOCATION = "Preallocation mode (allowed values: off, {}falloc, full)"

FILE_OPTIONS = (
    Option("nocow", SWITCH, "Turn off copy-on-write (valid only on btrfs)"),
    Option("preallocation", TEXT, _PREALLOCATION.format("")),
    Option("extent_size_hint", SIZE, "Extent size hint for the image file, 0 to disable"),
)

_QCOW2_COMMON = (
    _DISK_SIZE,
    Option("compat", TEXT, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    _BASE,
    _BASE_FORMAT,
    Option("data_file", TEXT, "File name of an external data file"),
    Option("data_file_raw", SWITCH, "The external data file must stay valid as a raw image"),
    Option("lazy_refcounts", SWITCH, "Postpone refcount updates", "off"),
    Option("refcount_bits", NUMBER, "Width of a reference count entry in bits", "16"),
)

CREATION: dict[str, tuple[Option, ...]] = {
    "raw": (_DISK_SIZE,),
    "qcow2": (
        _OLD_AES,
        Option("encrypt.format", TEXT, "Encrypt the image, format choices: 'aes', 'luks'"),
        Option(
            "encrypt.key-secret", TEXT, "ID of secret providing qcow AES key or LUKS passphrase"
        ),
        *_luks("encrypt."),
        Option("cluster_size", SIZE, "qcow2 cluster size", "65536"),
        Option("extended_l2", SWITCH, "Extended L2 tables", "off"),
        Option("preallocation", TEXT, _PREALLOCATION.format("metadata, ")),
        Option(
            "compression_type",
            TEXT,
            "Compression method used for image cluster compression",
            "zlib",
        ),
        *_QCOW2_COMMON,
    ),
    "qcow": (
        _DISK_SIZE,
        _BASE,
        Option("backing_fmt", TEXT, "Format of the backing image"),
        _OLD_AES,
        Option("encrypt.format", TEXT, "Encrypt the image, format choices: 'aes'"),
        Option("encrypt.key-secret", TEXT, "ID of the secret that provides the AES encryption key"),
    ),
    "qed": (
        _DISK_SIZE,
        _BASE,
        _BASE_FORMAT,
        Option("cluster_size", SIZE, "Cluster size (in bytes)", "65536"),
        Option("table_size", SIZE, "L1/L2 table size (in clusters)"),
    ),
    "vmdk": (
        _DISK_SIZE,
        Option(
            "adapter_type",
            TEXT,
            "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
        ),
        _BASE,
        Option("backing_fmt", TEXT, "Must be 'vmdk' if present"),
        Option("compat6", SWITCH, "VMDK version 6 image", "off"),
        Option("hwversion", TEXT, "VMDK hardware version", "undefined"),
        Option("toolsversion", TEXT, "VMware guest tools version"),
        Option(
            "subformat",
            TEXT,
            "VMDK flat extent format, can be one of {monolithicSparse (default) | "
            "monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
        ),
        Option(
            "zeroed_grain",
            SWITCH,
            "Enable efficient zero writes using the zeroed-grain GTE feature",
        ),
    ),
    "vpc": (
        _DISK_SIZE,
        Option(
            "subformat",
            TEXT,
            "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
        ),
        Option(
            "force_size",
            SWITCH,
            "Force disk size calculation to use the actual size specified, rather than using the "
            "nearest CHS-based calculation",
        ),
    ),
    "vhdx": (
        Option("size", SIZE, "Virtual disk size; max of 64TB."),
        Option("log_size", SIZE, "Log size; min 1MB.", "1048576"),
        Option(
            "block_size",
            SIZE,
            "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
            "0",
        ),
        Option(
            "subformat",
            TEXT,
            "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
        ),
        Option(
            "block_state_zero",
            SWITCH,
            "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set "
            "to 'off' when using 'qemu-img convert' with subformat=dynamic.",
        ),
    ),
    "vdi": (_DISK_SIZE, Option("static", SWITCH, "VDI static (pre-allocated) image", "off")),
    "parallels": (
        _DISK_SIZE,
        Option("cluster_size", SIZE, "Parallels image cluster size", "1048576"),
    ),
    # Formats that qemu-img 7.2 does not make; cow was kvm-88's.
    "cow": (
        _DISK_SIZE,
        _BASE,
        _BASE_FORMAT,
        Option("subformat", TEXT, "Whose cow: qemu, uml1, uml2 or uml3"),
    ),
    "bochs": (
        _DISK_SIZE,
        _BASE,
        _BASE_FORMAT,
        Option("subformat", TEXT, "Kind of Bochs disk: growing, sparse or undoable"),
    ),
    "cloop": (_DISK_SIZE, Option("block_size", SIZE, "Size of a compressed block", "65536")),
    "luks": (
        _DISK_SIZE,
        Option("key-secret", TEXT, "ID of the secret that provides the keyslot passphrase"),
        *_luks(""),
    ),
}

AMENDMENT: dict[str, tuple[Option, ...]] = {
    "qcow2": (*_luks_keys("encrypt."), *_QCOW2_COMMON),
    "luks": _luks_keys(""),
}


def options_of(name: str) -> tuple[Option, ...]:
    """Return a format's options and those of the file; the former win. Raises Failure."""
    own = CREATION.get(name)
    if own is None:
        raise Failure(f"Format driver '{name}' does not support image creation")
    names = {option.name for option in own}
    return (*own, *(option for option in FILE_OPTIONS if option.name not in names))


def parse_options(text: str, known: Sequence[Option]) -> dict[str, str]:
    """Return the options of a list, checked against ``known``. Raises Failure."""
    by_name = {option.name: option for option in known}
    given: dict[str, str] = {}
    for name, value in parse_list(text):
        if name == "id":
            continue
        if name not in by_name:
            raise Failure(f"Invalid parameter '{name}'")
        given.pop(name, None)
        given[name] = by_name[name].normal(value)
    return given


def switched_on(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "off") in _ON


def described(given: Mapping[str, str], known: Sequence[Option]) -> str:
    """Return the options in force as ``name=value`` words, in their order."""
    words = []
    for option in known:
        value = given.get(option.name, option.default)
        if option.name in given or option.default:
            shown = escaped(value) if option.kind == TEXT else value
            words.append(f"{option.name}={shown}")
    return " ".join(words)


def help_lines(known: Sequence[Option]) -> list[str]:
    return sorted(option.line() for option in known)
