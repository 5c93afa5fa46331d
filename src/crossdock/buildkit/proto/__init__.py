"""Generated protobuf classes of BuildKit's API; made by ``make proto``, wrapped at once in our own types."""
