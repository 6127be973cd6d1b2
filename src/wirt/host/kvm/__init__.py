"""Whether KVM really runs a guest on this host."""
