"""Boot sectors of a few bytes: guests that say one letter, panic, or reset."""

_COM1 = 0x3F8
_PVPANIC = 0x505


def _out(port: int, value: int) -> bytes:
    """``mov dx, port; mov al, value; out dx, al``"""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes([value]) + b"\xee"


_HALT = b"\xfa\xf4"  # cli; hlt
_RESET = _out(0xCF9, 0x02) + _out(0xCF9, 0x06) + _HALT


def _sector(code: bytes) -> bytes:
    return code.ljust(510, b"\x00") + b"\x55\xaa"


def says(letter: str) -> bytes:
    """Write ``letter`` to the first serial port and halt."""
    return _sector(_out(_COM1, ord(letter)) + _HALT)


def says_and_resets(letter: str) -> bytes:
    """Write ``letter`` to the first serial port and reset the machine."""
    return _sector(_out(_COM1, ord(letter)) + _RESET)


def panics() -> bytes:
    """Tell the panic notifier that the kernel panicked, and halt."""
    return _sector(_out(_PVPANIC, 1) + _HALT)


def el_torito(sector: bytes) -> bytes:
    """Return a CD that boots ``sector`` without emulation (El Torito 1.0), and nothing else."""
    block = 2048
    cd = bytearray(22 * block)
    cd[16 * block : 16 * block + 7] = b"\x01CD001\x01"
    record = b"\x00CD001\x01EL TORITO SPECIFICATION"
    cd[17 * block : 17 * block + len(record)] = record
    cd[17 * block + 0x47 : 17 * block + 0x4B] = (19).to_bytes(4, "little")
    cd[18 * block : 18 * block + 7] = b"\xffCD001\x01"
    validation = bytearray(b"\x01\x00".ljust(30, b"\x00") + b"\x55\xaa")
    total = sum(int.from_bytes(validation[i : i + 2], "little") for i in range(0, 32, 2))
    validation[28:30] = (-total & 0xFFFF).to_bytes(2, "little")
    initial = b"\x88\x00\x00\x00\x00\x00\x04\x00" + (20).to_bytes(4, "little")
    cd[19 * block : 19 * block + 32] = validation
    cd[19 * block + 32 : 19 * block + 44] = initial
    cd[20 * block : 20 * block + 512] = sector
    return bytes(cd)
