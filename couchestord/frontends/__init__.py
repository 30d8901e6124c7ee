"""What speaks a protocol to the world and calls the store. Front ends do not know each other; `http` serves them."""
