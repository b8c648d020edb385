#!/bin/sh
# Enrols sites with a coordinator on one machine: setup.sh HOST:PORT FOLDER SITE...
# The folders are FOLDER/coordinator and FOLDER/SITE. Run it again: what is there stays.
set -eu
host=$1
folder=$2
shift 2
test -f "$folder/coordinator/federation.json" ||
    tacit-server init --dir "$folder/coordinator" --host "$host"
authority=$(tacit-server init --dir "$folder/coordinator" --json |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["authority"])')
for site in "$@"; do
    if test -f "$folder/$site/site.pem"; then
        continue
    fi
    key=$(tacit-client enroll --dir "$folder/$site" --site "$site" --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["fingerprint"])')
    tacit-server sign --dir "$folder/coordinator" "$folder/$site/$site.csr" --expect "$key"
    tacit-client join --dir "$folder/$site" "$folder/$site/$site.bundle" --expect "$authority"
done
