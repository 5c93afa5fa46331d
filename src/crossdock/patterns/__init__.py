"""Path patterns as docker understands them: ignore files, include and exclude lists, links to follow.

Shared by the frontend (``.dockerignore``), the engine (local sources, ``COPY --exclude``) and the BuildKit client
(file sync), which must agree to the letter.
"""

from crossdock.patterns.matcher import Pattern, PatternMatcher, compile_patterns, read_ignore_file

__all__ = ["Pattern", "PatternMatcher", "compile_patterns", "read_ignore_file"]
