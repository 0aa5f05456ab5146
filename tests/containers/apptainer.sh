#!/usr/bin/env bash
# A real Apptainer on a Debian 12 machine, as root, and an image to train in: Debian 12 with Python and NumPy.
# Debian has the package in `sid` alone, where it asks for a newer C library: its packages are unpacked beside the system
# (/opt/apptainer), and its programs look for their library there. The host is that of this machine's own apt sources.
set -euo pipefail

readonly usage="usage: install | image FILE.sif | image DIRECTORY/     (as root; a directory is faster to make)"
readonly root=/opt/apptainer libraries=/opt/apptainer/usr/lib/x86_64-linux-gnu
readonly needed=(curl xz-utils patchelf debootstrap squashfs-tools squashfuse fuse-overlayfs uidmap charliecloud-runtime podman catatonit crun)

die() { echo "$*" >&2; exit 1; }

mirror() {
    { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null || true; } |
        grep -m 1 -oE "https?://[^ ]+/debian$"
}

install() {
    if command -v apptainer >/dev/null; then
        apptainer --version
        return
    fi
    [ "$(id -u)" = 0 ] || die "Apptainer is installed by root alone"
    command -v apt-get >/dev/null || die "no apt-get: this is for Debian 12"
    local host packages name file sum program
    host=$(mirror) || die "no Debian host among the apt sources"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
    packages=$work/packages
    curl -fsS "$host/dists/sid/main/binary-amd64/Packages.xz" | xz -dc >"$packages"
    for name in apptainer libc6 libseccomp2 libsqlite3-0; do
        file=$(field Filename "$name" "$packages") sum=$(field SHA256 "$name" "$packages")
        curl -fsS -o "$work/$name.deb" "$host/$file"
        echo "$sum  $work/$name.deb" | sha256sum --quiet --check
        dpkg-deb -x "$work/$name.deb" "$root"
    done
    for program in "$root/usr/bin/apptainer" "$libraries/apptainer/bin/starter"; do
        # DT_RPATH, not RUNPATH: the libraries' own libraries are looked up there too.
        patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$libraries" "$program"
    done
    # Its paths are compiled in.
    mkdir -p /usr/lib/x86_64-linux-gnu/apptainer /var/lib/apptainer/mnt/session
    cp -r "$root/etc/apptainer" /etc/
    cp -r "$libraries/apptainer/." /usr/lib/x86_64-linux-gnu/apptainer/
    # A sandboxed root lacks some capabilities, and Apptainer asks for all of them.
    sed -i 's/^root default capabilities.*/root default capabilities = no/' /etc/apptainer/apptainer.conf
    cp "$root/usr/bin/apptainer" /usr/bin/  # last: who finds it finds all of it
    apptainer --version
}

field() { # FIELD PACKAGE FILE: of a package, in an index of packages
    awk -v field="$1:" -v name="$2" '$1 == "Package:" { at = $2 } at == name && $1 == field { print $2; exit }' "$3"
}

image() {
    local host to=${1:?$usage} made
    host=$(mirror) || die "no Debian host among the apt sources"
    case $to in */) made=$(mktemp -d -p "$(dirname "$to")")/root ;; *) made=$(mktemp -d)/root ;; esac
    debootstrap --variant=minbase --include=python3-minimal,python3-numpy bookworm "$made" "$host" >"$made.log" ||
        { tail -n 20 "$made.log" >&2; die "debootstrap failed"; }
    chmod 755 "$made"
    case $to in
    */) rm -rf "$to" && mv "$made" "$to" ;;
    # Another process may look for the image meanwhile.
    *) apptainer --silent build --force "$to.$$" "$made" && mv "$to.$$" "$to" ;;
    esac
    rm -rf "$(dirname "$made")"
}

case ${1:-} in
install | image) "$@" ;;
*) die "$usage" ;;
esac
