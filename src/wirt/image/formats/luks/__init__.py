r"""luks: disks encrypted as Linux does it, versions 1 (read, written) and 2 (read).

Specification: "LUKS1 On-Disk Format" and "LUKS2 On-Disk Format" (cryptsetup project). Version 1
is laid out in ``wirt.image.luks``. Version 2, big-endian::

    0     "LUKS\xba\xbe"  6 version 2  8 length of the header  16 sequence number
          72 hash (32)  104 salt (64)  168 UUID  256 offset of this header  448 checksum (64)
    4096  JSON, up to the length of the header: keyslots, segments, digests, config
    then a second copy, its magic "SKUL\xba\xbe", then the key slots, then the segments

    checksum  of header and JSON, with the checksum's own bytes zero
    keyslot   kdf (pbkdf2, argon2i, argon2id) gives the key of its area, which holds the key
              of segments, spread as in version 1
    segment   crypt: sectors of 512 to 4096 bytes, each enciphered by itself, numbered in units
              of 512 bytes from iv_tweak on; or linear

Of two intact copies the one with the higher sequence number counts.
"""

from wirt.image.formats.luks.format import FORMAT

__all__ = ["FORMAT"]
