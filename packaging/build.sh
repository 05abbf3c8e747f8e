#!/bin/bash
# build.sh RELEASE DIRECTORY: makes the packages for a Debian release there: cima-runc_VERSION_amd64.deb, and
# cima-runc-VERSION-debianRELEASE.tar.gz, a bundle of wheels for install.sh. CIMA_VERSION=VERSION in the
# environment makes the same program under another version, to try an upgrade.
release=$1 target=$2
lab=$(dirname "$(dirname "$(readlink -f "$0")")")/lab
# shellcheck source-path=SCRIPTDIR/../lab
. "$lab/layers.sh"
packaging=$checkout/packaging
own_version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$checkout/cima_runc/__init__.py")
version=${CIMA_VERSION:-$own_version}

make_debtools() {
    compose "$1" "$CIMA_CACHE/$tools/upper" "$CIMA_CACHE/$tree"
    reach_out "$1"
    install_packages "$1" debhelper dpkg-dev lintian
    decompose "$1"
}

# The hashes of every wheel that the environment takes, for pip to insist on.
lock() {
    # shellcheck disable=SC2016  # the inner shell expands it
    inside "$1" sh -c 'cd /bundle/wheels && for wheel in *.whl; do
        echo "$wheel" | sed "s/^\([^-]*\)-\([^-]*\)-.*/\1==\2/; s/_/-/g" | tr -d "\n"
        echo " --hash=sha256:$(sha256sum "$wheel" | cut -d" " -f1)"
    done' | sed 's/^cima-runc==/cima-runc[host,https]==/'
}

make_packages() {
    local build=$1 pip=/opt/build/bin/pip
    compose "$build" "$CIMA_CACHE/$debtools/upper" "$CIMA_CACHE/$wheels/upper" "$CIMA_CACHE/$tools/upper" "$CIMA_CACHE/$tree"
    mkdir -p "$build/root/src/cima-runc" "$build/root/bundle/wheels"
    # Files of now, which dpkg-deb clamps to SOURCE_DATE_EPOCH; lintian refuses those of 1970.
    source_archive | tar -x --touch -C "$build/root/src/cima-runc"
    sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$build/root/src/cima-runc/cima_runc/__init__.py"
    cp -R "$packaging" "$build/root/src/cima-runc/packaging"
    inside "$build" sh -c "cd /src/cima-runc && /opt/build/bin/hatchling build --target wheel"
    inside "$build" sh -c "$pip download --quiet --no-index --find-links /wheels --find-links /src/cima-runc/dist \
        --dest /bundle/wheels 'cima-runc[host,https]'"
    mv "$build/root/src/cima-runc/packaging/debian" "$build/root/src/cima-runc/debian"
    sed -e "s/@VERSION@/$version/; s/@RELEASE@/$release/; s/@DATE@/$(date --utc --rfc-email -d "@$source_date")/" \
        "$packaging/debian/changelog.in" >"$build/root/src/cima-runc/debian/changelog"
    rm "$build/root/src/cima-runc/debian/changelog.in"
    inside "$build" env PIP="$pip" WHEELS=/bundle/wheels SOURCE_DATE_EPOCH="$source_date" \
        sh -c 'cd /src/cima-runc && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps'
    # A later version, to try an upgrade, is the same package.
    [ "$version" != "$own_version" ] || inside "$build" sh -c 'cd /src && lintian --fail-on error,warning *.deb'
    mkdir "$build/out"
    cp "$build"/root/src/*.deb "$build/out/"
    lock "$build" >"$build/root/bundle/requirements.txt"
    cp "$checkout/examples/install.sh" "$checkout/examples/ima-policy" "$checkout"/examples/cima-agent.* "$build/root/bundle/"
    tar_of "$build/root/bundle" . | gzip -n >"$build/out/cima-runc-$version-debian$release.tar.gz"
    decompose "$build"
    rm -rf "$build/upper"
}

debtools=debtools-$release-$(echo "$tools debhelper dpkg-dev lintian" | key)
source_date=$(git -C "$checkout" log -1 --format=%ct 2>/dev/null || date +%s)
packages=packages-$release-$({ echo "$wheels"; cat "$0" "$lab/layers.sh"; source_archive; tar_of "$checkout" packaging; echo "$version"; } | key)
make_base_layers
layer "$debtools" "installing what makes packages (about 20 s)" make_debtools
layer "$packages" "making the packages (about a minute)" make_packages
mkdir -p "$target"
cp "$CIMA_CACHE/$packages"/out/* "$target/"
