#!/bin/sh
# Turns each secret whose name is that of a variable into that variable, then runs the command.
set -eu
for file in /run/secrets/*; do
    name=$(basename "$file")
    case "$name" in
        *[!A-Z0-9_]*) ;;
        *) export "$name=$(cat "$file")" ;;
    esac
done
exec "$@"
