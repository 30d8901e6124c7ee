"""Files: the store's tree as a POSIX file system. What it means is here, what carries it to the kernel in `fuse`."""
