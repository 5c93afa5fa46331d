#!/bin/sh
# what the image runs: the greeting made while it was built, and the machine it runs on now
cat "$GREETING"
uname -m
