"""Sphinx configuration of wirt's documentation."""

from wirt.version import VERSION

project = "wirt"
author = "the developers of wirt"
project_copyright = "the developers of wirt, Apache-2.0"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Without the network there are no inventories of other projects, and few of our classes have pages.
nitpick_ignore_regex = [("py:.*", r"(collections|wirt|msgspec|typing)\..*")]
html_theme = "furo"
html_title = f"wirt {VERSION}"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
suppress_warnings = ["myst.header"]

man_pages = [
    ("man/wirt", "wirt", "virtual machines of this host, without a daemon", author, 1),
    ("man/kvm-img", "kvm-img", "disk images, with qemu-img's command line", author, 1),
    ("man/kvm", "kvm", "run lines of QEMU and KVM, old and new", author, 1),
    ("man/machine.toml", "machine.toml", "description of a machine of wirt", author, 5),
]
