"""Making a new image: the options as they are asked for, and what the engine needs of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from wirt.cli.kvm_img.creation import (
    Option,
    described,
    help_lines,
    options_of,
    parse_options,
    switched_on,
)
from wirt.cli.kvm_img.failure import Failure, failure_of, report
from wirt.cli.kvm_img.naming import beside
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.opening import Opening, known_format, open_user_name
from wirt.cli.kvm_img.protocols import local_path, protocol_name
from wirt.errors import (
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    ImageNoSpace,
    UnsupportedImage,
    WirtError,
)
from wirt.image.create import create_image


def print_option_help(name: str | None, format_name: str) -> int:
    """Print the creation options of a format."""
    try:
        known_format(format_name)
        options = options_of(format_name) if name else own_options(format_name)
    except Failure as failure:
        report(failure.message)
        return 1
    print("Supported options:" if name else f"Supported {format_name} options:")
    print("\n".join(help_lines(options)))
    if not name:
        print(
            "\nThe protocol level may support further options.\n"
            "Specify the target filename to include those options."
        )
    return 0


def own_options(format_name: str) -> tuple[Option, ...]:
    """Return a format's options without those of the file."""
    from wirt.cli.kvm_img.creation import CREATION

    options_of(format_name)
    return CREATION[format_name]


class Target(msgspec.Struct):
    """A new image that is about to be made."""

    name: str
    format: str
    known: tuple[Option, ...]
    options: dict[str, str]
    secrets: Secrets = msgspec.field(default_factory=Secrets)

    @property
    def size(self) -> int:
        """Whole sectors."""
        return -(-int(self.options["size"]) // SECTOR) * SECTOR

    @property
    def backing(self) -> str:
        return self.options.get("backing_file", "")

    @classmethod
    def plan(
        cls,
        name: str,
        format_name: str,
        options: str | None,
        *,
        size: int | None,
        backing: str | None,
        backing_format: str | None,
        open_backing: bool,
        secrets: Secrets,
    ) -> Target:
        """Check all that can be checked before anything is made. Raises Failure."""
        known_format(format_name)
        protocol_name(name)
        known = options_of(format_name)
        given = parse_options(options or "", known)
        if "size" not in given:
            if size is not None:
                given["size"] = str(size)
        elif size is not None:
            raise Failure("The image size must be specified only once")
        add_old_style(given, known, format_name, backing, backing_format)
        target = cls(name, format_name, known, given, secrets)
        target.check_backing(opens=open_backing)
        if "size" not in given:
            raise Failure("Image creation needs a size parameter")
        return target

    def check_backing(self, *, opens: bool) -> None:
        """Refuse a backing image that cannot be opened; take its size where none was given."""
        backing = self.options.get("backing_file")
        if backing is None:
            return
        if backing == self.name:
            raise Failure(
                "Error: Trying to create an image with the same filename as the backing file"
            )
        if not backing:
            raise Failure("Expected backing file name, got empty string")
        given = self.options.get("backing_fmt")
        if not opens:
            if given is None:
                raise Failure("Backing file specified without backing format")
            return
        try:
            opened = open_user_name(beside(self.name, backing), given, _LOOK)
        except Failure as failure:
            hint = f"{failure.hint}Could not open backing image.\n"
            raise Failure(failure.message, hint=hint) from failure
        with opened:
            if given is None:
                raise Failure(
                    "Backing file specified without backing format",
                    hint=f"Detected format of {opened.format}.",
                )
            self.options.setdefault("size", str(opened.image.virtual_size))

    def announcement(self) -> str:
        return f"Formatting '{self.name}', fmt={self.format} {described(self.options, self.known)}"

    def make(self) -> None:
        """Make the image. Raises Failure."""
        try:
            create_image(
                local_path(self.name), self.format, self.size, options=self.engine_options()
            )
        except (ImageNoSpace, UnsupportedImage) as error:
            raise self._too_large(error) from error
        except WirtError as error:
            raise creation_failure(error, local_path(self.name)) from error

    def _too_large(self, error: ImageError) -> Failure:
        """Say that the format cannot hold the disk, where that is so."""
        if "too large" not in error.message:
            return failure_of(error)
        hint = " (try using a larger cluster size)" if "cluster_size" in self.in_force() else ""
        return Failure(f"The image size is too large for file format '{self.format}'{hint}")

    def in_force(self) -> set[str]:
        """Return the names of the options that are set, by the user or by default."""
        return {option.name for option in self.known if option.default} | set(self.options)

    def engine_options(self) -> dict[str, str]:
        """Return the options as the engine takes them: secrets themselves, no defaults."""
        options = {key: value for key, value in self.options.items() if key != "size"}
        for key in _ALWAYS_SO:
            options.pop(key, None)
        for key in [key for key in options if key.endswith("key-secret")]:
            name = options.pop(key)
            try:
                options[key.replace("key-secret", "secret")] = self.secrets[name].decode()
            except UnicodeDecodeError:
                raise Failure(f"Data from secret {name} is not valid UTF-8") from None
        if switched_on({"compat6": options.pop("compat6", "off")}, "compat6"):
            options.setdefault("hwversion", "6")
        return options


def creation_failure(error: WirtError, path: str) -> Failure:
    """Return why the image at ``path`` could not be made."""
    failure = failure_of(error)
    if isinstance(error, ImageIoError | ImageAccessDenied) and not os.path.exists(path):
        return failure.prefixed(f"Could not create '{path}': ")
    return failure


SECTOR = 512
# About the file system's ways, or what the engine writes in any case.
_ALWAYS_SO = ("nocow", "extent_size_hint", "zeroed_grain", "toolsversion", "block_state_zero")
_LOOK = Opening(force_share=True, looks_only=True)


def add_old_style(
    given: dict[str, str],
    known: tuple[Option, ...],
    format_name: str,
    backing: str | None,
    backing_format: str | None,
) -> None:
    """Add what ``-b`` and ``-F`` say. Raises Failure for formats without backing images."""
    names = {option.name for option in known}
    if backing is not None:
        if "backing_file" not in names:
            raise Failure(f"Backing file not supported for file format '{format_name}'")
        given["backing_file"] = backing
    if backing_format is not None:
        if "backing_fmt" not in names:
            raise Failure(f"Backing file format not supported for file format '{format_name}'")
        given["backing_fmt"] = backing_format


def key_secrets(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options that a new image is to be opened with."""
    return {key: value for key, value in options.items() if key.endswith("key-secret")}
