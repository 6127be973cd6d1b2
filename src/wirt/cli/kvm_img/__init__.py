"""``kvm-img``: the command line of qemu-img 7.2, and of kvm-88, on wirt's own image engine.

What it prints, to which stream, and its exit codes are qemu-img's, because programs read
them; ``docs/reference/kvm-img.md`` lists every deliberate difference. One module for each
sub-command, and one for each thing they share.
"""
