"""The verbs of ``wirt``: one module each in ``wirt.cli.commands``, imported when called.

A family (``wirt img convert``) has a package of its own there, with a module for each verb.
"""

from __future__ import annotations

GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Machines",
        (
            ("run", "make a machine from an image, start it, and run a command in it"),
            ("create", "make a machine without starting it"),
            ("start", "start machines"),
            ("stop", "ask machines to power off, then see that they do"),
            ("restart", "stop and start machines"),
            ("pause", "stop the vCPUs; nothing is lost"),
            ("resume", "let the vCPUs run again"),
            ("fork", "make running copies of a running machine, copy-on-write"),
            ("snapshot", "keep a machine as it is now, with its memory; it goes on"),
            ("snapshots", "list the snapshots of a machine, or remove some"),
            ("restore", "bring a machine back to a snapshot, or make a new one of it"),
            ("undo", "bring a machine back to its newest snapshot"),
            ("diff", "tell which blocks and files of two machines or snapshots differ"),
            ("tree", "draw who stands on which state, and what each costs"),
            ("keep", "make a machine or snapshot independent of the states below it"),
            ("rm", "remove machines with their disks"),
            ("ls", "list machines"),
            ("show", "show one machine: settings, state, what confines it, QEMU's line"),
            ("set", "change settings of a machine"),
            ("insert", "put a disc or floppy image into a machine's drive, also while it runs"),
            ("eject", "empty a CD or floppy drive of a machine, also while it runs"),
            ("edit", "edit a machine's description in your editor"),
            ("rename", "give a machine another name"),
            ("wait", "wait until a guest answers, or a machine has stopped"),
            ("autostart", "start every machine that is marked for it"),
            ("explain", "what an old line of kvm or qemu means today"),
            ("adopt", "make a machine of an old line, or of a QEMU that runs"),
            ("export", "print a machine as a line that needs no wirt"),
        ),
    ),
    (
        "Inside a guest",
        (
            ("exec", "run a command in a guest"),
            ("cp", "copy files into or out of a guest"),
            ("console", "use a guest's serial console"),
            ("logs", "show what a guest or its QEMU printed"),
            ("ssh", "log in over ssh, without a network if need be"),
            ("screenshot", "save a picture of a guest's screen"),
            ("guest", "put wirt's helper into a guest that others made"),
        ),
    ),
    (
        "Images",
        (
            ("build", "build a guest image from packages"),
            ("pull", "take a published disk image"),
            ("images", "list and remove guest images"),
            ("pool", "keep paused forks of a warm image ready for wirt run"),
            ("template", "look at warm images: frozen after boot, forked by wirt run"),
            ("img", "work with disk image files of all formats"),
        ),
    ),
    (
        "Networks",
        (
            ("net", "bridge networks with DHCP and names; forwards; the map of all networks"),
            ("lab", "several machines and the wires between them, from one file"),
            ("switch", "virtual switches (VDE)"),
            ("cable", "cables between switches, here or over ssh"),
            ("nic", "network cards of a machine, also while it runs"),
            ("capture", "record or watch what passes a card or a switch"),
        ),
    ),
    (
        "Host",
        (
            ("doctor", "what this host can do, and the cure for what it cannot"),
            ("check", "check a machine description"),
            ("schema", "print the JSON schema of machine descriptions"),
        ),
    ),
)


FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "lab": (
        ("up", "bring a lab up from its description"),
        ("fork", "fork a running lab: all machines at one instant, and their wires"),
        ("down", "remove labs with all that is in them"),
        ("ls", "list labs"),
        ("show", "show one lab: machines and wires as they are now"),
        ("exec", "run a command in a guest of a lab"),
        ("check", "check the description of a lab"),
    ),
    "template": (
        ("ls", "list templates"),
        ("show", "show one template"),
        ("rm", "remove templates"),
    ),
    "guest": (("install", "install wirt's helper in a guest that runs"),),
    "net": (
        ("create", "make a bridge network: address, DHCP, names, a way out"),
        ("ls", "list networks; with --json also switches, cables and cards"),
        ("show", "show one network and the addresses it gave"),
        ("start", "start what of a network does not live"),
        ("rm", "remove networks"),
        ("exec", "run a command on the host's side of a network"),
        ("forward", "make ports of a guest reachable on the host, while it runs"),
        ("map", "draw machines, cards, switches, cables and networks"),
    ),
    "switch": (
        ("create", "make a switch and start it"),
        ("ls", "list switches"),
        ("show", "show ports, counters and the MAC table of a switch"),
        ("vlan", "put ports of a switch into VLANs"),
        ("mend", "start what was killed, and plug cards in again"),
        ("plug", "join standard input and output to a switch"),
        ("rm", "remove switches"),
    ),
    "cable": (
        ("create", "lay a cable between two switches, here or over ssh"),
        ("ls", "list cables"),
        ("set", "change delay, jitter, loss and bandwidth of a cable"),
        ("cut", "cut cables"),
        ("mend", "put cables that were cut together again"),
        ("rm", "remove cables"),
    ),
    "nic": (
        ("add", "give a machine another network card"),
        ("ls", "list the network cards of a machine"),
        ("rm", "take a network card out"),
        ("plug", "plug a card into another network"),
        ("link", "pull the cable out of a card or put it in"),
        ("limit", "limit what a card moves"),
    ),
    "img": (
        ("info", "tell what images are, with the chains behind them"),
        ("create", "make an empty image, or an overlay of another one"),
        ("convert", "copy images into a new one of any format"),
        ("resize", "make a disk larger, or smaller with consent"),
        ("snapshot", "list, make, apply and remove snapshots inside an image"),
        ("check", "check an image, and repair it"),
        ("compare", "compare what guests see in two images"),
        ("map", "tell where each part of a disk lies"),
        ("commit", "write what an overlay holds into its backing image"),
        ("rebase", "give an overlay another backing image"),
        ("flatten", "make an overlay independent of its chain"),
        ("amend", "change options of an image"),
        ("bitmap", "work with the dirty bitmaps of an image"),
        ("key", "change the passphrases of an encrypted image"),
        ("dd", "make an image of a part of a disk"),
        ("measure", "tell how large a file an image would need"),
        ("bench", "time requests on an image"),
        ("serve", "serve images of any format as live disks, over NBD"),
        ("eject", "open or close a CD drive of this host"),
    ),
}
"""Verbs of two words, by their first; the family itself stands in ``GROUPS``."""


def verbs() -> dict[str, str]:
    """Return verb → help; a verb of a family is two words."""
    found = {}
    for _, members in GROUPS:
        for verb, text in members:
            if verb in FAMILIES:
                found.update({f"{verb} {second}": help_ for second, help_ in FAMILIES[verb]})
            else:
                found[verb] = text
    return found


def first_words() -> dict[str, str]:
    """Return what may stand behind ``wirt``: verbs and families, with their help."""
    return {word: text for _, members in GROUPS for word, text in members}
