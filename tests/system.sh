#!/bin/sh
# What no wheel brings: a C++ compiler for MLX's CPU kernels (Linux), a Chromium for the browser
# tests. Both are looked for first, then installed where that is allowed. Prints the Chromium's
# path, or nothing: the browser tests are skipped then, by name, and fail in CI.
set -u
python=$1

say() { echo "tests/system.sh: $*" >&2; }

# Run as root: as we are, or by a sudo that asks nothing.
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_package() {
	if [ "$(uname)" = Darwin ]; then
		command -v brew >/dev/null && brew install --cask "$1" >&2
	elif command -v apt-get >/dev/null; then
		as_root apt-get update -qq >&2
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$1" >&2
	else
		return 1
	fi
}

find_chromium() {
	for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable \
		'/Applications/Chromium.app/Contents/MacOS/Chromium' \
		'/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'; do
		[ -n "$candidate" ] && command -v "$candidate" && return 0
	done
	return 1
}

playwrights_chromium() {
	"$python" -c 'if True:
		import pathlib, sys
		from playwright.sync_api import sync_playwright
		with sync_playwright() as playwright:
			path = playwright.chromium.executable_path
		sys.exit(not pathlib.Path(path).exists() or print(path))'
}

if [ "$(uname)" = Linux ] && ! command -v "${CXX:-g++}" >/dev/null; then
	say "there is no g++: installing one"
	install_package g++ || say "that failed; MLX cannot compute here without it"
fi

find_chromium || playwrights_chromium && exit 0
say "there is no Chromium: installing one"
install_package chromium && find_chromium && exit 0
"$python" -m playwright install chromium >&2 && playwrights_chromium && exit 0
say "no Chromium can be had here: the browser tests are skipped"
exit 0
