# Sourced by the scripts that start one run over several hosts.

# Ends the script unless the program in the first argument can run over several hosts.
check_program() {
  case "${1:-}" in
    train | factorize) ;;
    *)
      echo "error: expected train or factorize as the first argument, got '${1:-}'" >&2
      exit 2
      ;;
  esac
}

# Becomes the command in its arguments, or prints it where DRY_RUN is set.
run_or_print() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
    exit
  fi
  exec "$@"
}
