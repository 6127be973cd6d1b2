"""The inverse of the compiler: any line of QEMU or KVM, old or new, becomes a machine.

::

    words ── line ──► (option, value, position) ── options/ ──► draft ── assemble ──► Machine
                                                     │                                  │
                                                     └──► notes                  qemu.compile

Pure: what the host knows (the format of an image, whether there is a screen) comes as
``Facts``.
"""
