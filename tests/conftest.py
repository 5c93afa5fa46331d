"""What every test has: see ``tests/support`` and docs/dev/testing.md."""

pytest_plugins = [
    "support.needs",
    "support.isolation",
    "support.servers",
    "support.cli",
    "support.stage",
    "support.frontendimage",
    "support.uploadgate",
]
