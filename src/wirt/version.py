"""The version, as a constant: reading package metadata costs 50 ms at every start."""

VERSION = "0.1.0"
