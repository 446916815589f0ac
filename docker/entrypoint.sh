#!/bin/sh
# Commands of the image: train, generate, evaluate, and page, which serves the web page on port 8000.
set -e
command=$1
shift
if [ "$command" != page ]; then
  exec python "$command.py" "$@" # process 1 receives the SIGTERM of `docker stop`
fi
trap 'exit 0' INT TERM # process 1 ignores these signals by default
page=$(mktemp -d)/page
python generate.py --page "$page" "$@" >/dev/null &
wait $!
echo 'Serving the page at http://localhost:8000 (docker run -p 8000:8000). Press Ctrl-C to stop.'
python -m http.server 8000 --directory "$page" >/dev/null 2>&1 &
wait $!
