#!/bin/sh
# Runs a container's command with the API keys that stand in files: for OPENAI_API_KEY_FILE=/run/secrets/openai it sets
# OPENAI_API_KEY. An absent or empty file sets nothing: that provider is then unavailable.
set -eu
for name in $(env | sed -n 's/^\([A-Z0-9_]*_API_KEY\)_FILE=.*/\1/p'); do
  file=$(printenv "${name}_FILE")
  if [ -s "$file" ]; then
    value=$(cat "$file")
    export "$name=$value"
  fi
done
exec "$@"
