#!/bin/sh
# The commands of the image: train, generate and evaluate, and page, which serves a page that draws faces on port 8000.
set -e
command=$1
shift
if [ "$command" != page ]; then
  exec python "$command.py" "$@" # as process 1, so that it receives the SIGTERM of `docker stop`
fi
trap 'exit 0' INT TERM # which process 1 ignores otherwise
page=$(mktemp -d)/page
python generate.py --page "$page" "$@" >/dev/null &
wait $!
echo 'The page: http://localhost:8000 (with docker run -p 8000:8000). Ctrl-C ends it.'
python -m http.server 8000 --directory "$page" >/dev/null 2>&1 &
wait $!
