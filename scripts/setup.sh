#!/usr/bin/env bash
# Install what Loupe needs on Debian 12: system packages, and ONNX Runtime out of its PyPI wheel.
# Idempotent: a second run finds everything in place and says nothing.
#   scripts/setup.sh run     what building and running need
#   scripts/setup.sh test    that, and the servers and tools the tests use
set -euo pipefail
cd "$(dirname "$0")/.."

run_packages=(cmake g++ gfortran libopenblas-dev libopencv-dev clang libclang-dev pkg-config python3 python3-pip ca-certificates)
test_packages=(postgresql pgbouncer openssl ffmpeg systemd chromium python3-venv)

onnxruntime_version=1.31.1
onnxruntime_dir=.cache/onnxruntime
case "$(uname -m)" in
  x86_64) wheel_platform=manylinux_2_28_x86_64; wheel_sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f ;;
  aarch64) wheel_platform=manylinux_2_28_aarch64; wheel_sha256=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3 ;;
  *) echo "setup: no ONNX Runtime wheel is known for $(uname -m); Loupe runs on x86_64 and aarch64" >&2; exit 1 ;;
esac

fail() { echo "setup: $*" >&2; exit 1; }

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "apt-get is missing: install these by hand: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "run as root or install sudo; missing packages: ${missing[*]}"
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq || fail "apt-get update failed: is a Debian mirror reachable?"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get could not install: ${missing[*]}"
}

install_onnxruntime() {
  local library="libonnxruntime.so.$onnxruntime_version"
  [ -e "$onnxruntime_dir/libonnxruntime.so" ] && [ "$(readlink "$onnxruntime_dir/libonnxruntime.so")" = "$library" ] && return 0
  echo "setup: fetching ONNX Runtime $onnxruntime_version"
  local work
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  # The wheel is a zip; only its shared library is used, so any Python's wheel of the platform would do: 3.11's is pinned.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "$wheel_platform" --python-version 3.11 --implementation cp \
    --dest "$work" "onnxruntime==$onnxruntime_version" || fail "pip could not fetch onnxruntime $onnxruntime_version: is PyPI reachable?"
  local wheel
  wheel=$(echo "$work"/onnxruntime-*.whl)
  echo "$wheel_sha256  $wheel" | sha256sum --check --status ||
    fail "the onnxruntime wheel has sha256 $(sha256sum "$wheel" | cut -d' ' -f1), expected $wheel_sha256"
  mkdir -p "$onnxruntime_dir"
  python3 - "$wheel" "$library" "$onnxruntime_dir" <<'PY'
import os, sys, zipfile
wheel, library, folder = sys.argv[1:]
target = os.path.join(folder, library)
with zipfile.ZipFile(wheel) as archive:
    data = archive.read(f"onnxruntime/capi/{library}")
    notices = {name: archive.read(f"onnxruntime/{name}") for name in ("LICENSE", "ThirdPartyNotices.txt")}
with open(target + ".new", "wb") as file:
    file.write(data)
os.replace(target + ".new", target)
for name, text in notices.items():
    with open(os.path.join(folder, name), "wb") as file:
        file.write(text)
PY
  ln -sfn "$library" "$onnxruntime_dir/libonnxruntime.so"
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.95 or newer with rustup (https://rustup.rs)"
case "${1:-run}" in
  run) install_packages "${run_packages[@]}" ;;
  test) install_packages "${run_packages[@]}" "${test_packages[@]}" ;;
  *) fail "unknown argument $1: use run or test" ;;
esac
install_onnxruntime
