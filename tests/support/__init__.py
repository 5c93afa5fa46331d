"""What the tests share: needs, isolation, real services, the command runner."""
