"""wirt: the KVM stack of a Linux host in one typed library. See the documentation."""
