#!/bin/sh
# Releases a commit by Prefect's REST API, with curl, jq and git alone, and waits for the end.
#
#   PREFECT_API_URL=https://prefect.example.com/api PREFECT_API_AUTH_STRING=user:password \
#     GIT_URL=https://git.example.com/shop.git ENVIRONMENT=prod sh curl.sh dafnck.yaml
#
# FLOW (release) and DEPLOYMENT (local) name another deployment. Run it where the commit is checked
# out. The same commit and file join the run that was begun for them; AGAIN=2 begins a second one.
# Exit codes: 0 done, 1 refused or rolled back, 2 bad input, 3 the environment is not as it must be.
set -eu

file=${1:-dafnck.yaml}
: "${PREFECT_API_URL:?which Prefect server?}" "${GIT_URL:?from where does the worker fetch?}"
: "${ENVIRONMENT:?which environment of the service file?}"
flow=${FLOW:-release}
[ -r "$file" ] || { echo "$file: cannot be read" >&2; exit 2; }
commit=$(git rev-parse HEAD)

# api METHOD PATH [BODY]. Login and body go by pipes: what is in arguments, every process can read.
api() {
  {
    if [ -n "${PREFECT_API_AUTH_STRING:-}" ]; then
      printf 'user = "%s"\n' "$(printf %s "$PREFECT_API_AUTH_STRING" | sed 's/[\\"]/\\&/g')"
    fi
    if [ $# -gt 2 ]; then
      printf 'data-raw = "%s"\n' "$(printf %s "$3" | sed 's/[\\"]/\\&/g')"
    fi
  } | curl --silent --show-error --fail --max-time 30 --config - --request "$1" \
    --header 'Content-Type: application/json' "$PREFECT_API_URL$2" || return 3
}

answer=$(api GET "/deployments/name/$flow/${DEPLOYMENT:-local}") || exit 3
deployment=$(printf '%s' "$answer" | jq -r .id)
key=$(printf '%s ' "$deployment" "$ENVIRONMENT" "$GIT_URL" "$commit" "${AGAIN:-1}" |
  cat - "$file" | sha256sum | cut -d ' ' -f 1)
path=$(git -C "$(dirname "$file")" rev-parse --show-prefix)$(basename "$file")
request=$(jq -cn --rawfile content "$file" --arg key "$key" --arg git "$GIT_URL" \
  --arg commit "$commit" --arg path "$path" \
  --arg environment "$ENVIRONMENT" --arg by "${USER:-a CI job}" '{
    idempotency_key: $key, state: {type: "SCHEDULED"},
    parameters: {service_file: $path, environment: $environment, version: $commit[:12], by: $by,
                 git: $git, commit: $commit, content: $content}}')
answer=$(api POST "/deployments/$deployment/create_flow_run" "$request") || exit 3
run=$(printf '%s' "$answer" | jq -r .id)
echo "${PREFECT_API_URL%/api}/runs/flow-run/$run"

told=0 # lines of the log so far; one that arrives late may be missing here, Prefect's UI has all
logs() {
  while :; do
    wanted=$(jq -cn --arg run "$run" --argjson told "$told" \
      '{logs: {flow_run_id: {any_: [$run]}}, sort: "TIMESTAMP_ASC", offset: $told}')
    page=$(api POST /logs/filter "$wanted") || return 0
    [ "$page" != '[]' ] || return 0
    printf '%s' "$page" | jq -r '.[] | "\(.timestamp[11:19])  \(.message | gsub("\n"; "\n        | "))"'
    told=$((told + $(printf '%s' "$page" | jq length)))
  done
}

seen='' away=0
while :; do
  if answer=$(api GET "/flow_runs/$run"); then
    away=0
    state=$(printf '%s' "$answer" | jq -c .state)
  else
    away=$((away + 1)) # the release goes on without us
    [ "$away" -lt 60 ] || exit 3
    sleep 5
    continue
  fi
  name=$(printf '%s' "$state" | jq -r .name)
  if [ "$name" != "$seen" ]; then
    printf '%s' "$state" | jq -r '"state: \(.name)  \(.message // "")"'
    seen=$name
  fi
  logs
  case $(printf '%s' "$state" | jq -r .type) in
    COMPLETED) code=0 ;;
    CANCELLED) code=1 ;;
    FAILED)
      case $name in Refused | RolledBack | Cancelled) code=1 ;; BadInput) code=2 ;; *) code=3 ;; esac ;;
    CRASHED) code=3 ;;
    *) sleep 2; continue ;;
  esac
  sleep 4 # the last lines are on their way
  logs
  exit "$code"
done
